"""What a look at a stage and its place found: one type, shown by commands and raised by stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "unfit"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `said` is a sentence with the numbers, `fix` what to change, "" where nothing."""

    level: Level
    what: str
    said: str
    fix: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The finding as one line."""
        return f"{self.said}; {self.fix}" if self.fix else self.said


def gigabytes(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"
