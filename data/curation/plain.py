"""Values and texts as people and JSON may have them: captions come from anywhere and may hold anything."""

import math
from collections.abc import Mapping
from typing import Any


def as_json(value: Any) -> Any:
    """A value of named tuples, mappings and numbers as JSON has it; a number that is not finite is null."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(text: str, most: int) -> str:
    """Text on one line of at most `most` characters, every character visible."""
    cut = text[: most * 2 + 64]  # a caption may be 100 MB long
    shown = visible(" ".join(cut.split()))
    return shown if len(shown) <= most and len(cut) == len(text) else shown[: max(0, most - 1)] + "…"


def visible(text: str) -> str:
    """Escapes, controls and marks that turn the direction of text around, as codes like `\\x1b`."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or character == "\u200d":  # the joiner holds emoji and some scripts together
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
