"""Names that several modules must build alike: parameters by pattern, tensors by text slot. No torch."""

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the last glob pattern that fits `name` lets it in (`!pattern`: out); none does: it is out."""
    is_in = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            is_in = not pattern.startswith("!")
    return is_in


def of_slot(name: str, slot: str) -> str:
    """`name` of a text slot: `text_features.short`; the main caption's slot is the empty one."""
    return f"{name}.{slot}" if slot else name


def id_of(text: str) -> str:
    """The name of the caption ids that belong to text features: `text_features.short` -> `text_id.short`."""
    return of_slot("text_id", text.partition(".")[2])
