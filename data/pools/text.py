"""What a caption, a uid and metadata may hold, the same for every pool."""

import json
import math
import re
from itertools import accumulate
from typing import Any

_DEEPEST = 100  # levels of JSON inside JSON; img2dataset's have two
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def is_utf8(text: str) -> bool:
    """False for text with lone surrogates, which stand for bytes that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def caption_problem(caption: str, max_bytes: int) -> str:
    """Return "" for a usable caption, else `empty_caption`, `caption_not_utf8` or `caption_too_large`."""
    if not caption.strip():
        return "empty_caption"
    if not is_utf8(caption):
        return "caption_not_utf8"
    return "caption_too_large" if len(caption.encode()) > max_bytes else ""


def is_writable_uid(uid: str) -> bool:
    """True for what can name a tar member: no dot (it starts the extension), no slash, nothing unprintable."""
    return (
        0 < len(uid) <= 200 and uid.isprintable() and is_utf8(uid) and not set(uid) & set("./\\") and uid == uid.strip()
    )


def printable(name: str) -> str:
    """A member's name as it may stand in a table or a message."""
    return name.encode("utf-8", "backslashreplace").decode()


def parse_json(content: bytes) -> Any:
    """Value of a JSON text from outside.

    Raises:
        ValueError: not JSON, or nested deeper than a hundred levels: a parser that recurses to the interpreter's
            limit would take whatever runs inside it, the finalizers of unrelated objects, down with it.
    """
    if content.count(b"[") + content.count(b"{") > _DEEPEST:
        steps = ({b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0) for found in _BRACKETS.finditer(content))
        if max(accumulate(steps), default=0) > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST} levels")
    return json.loads(content)


def clean_json(value: Any) -> Any:
    """A copy that canonical JSON and parquet can hold: no NaN, no lone surrogates, dates as text."""
    if isinstance(value, str):
        return value if is_utf8(value) else printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)
