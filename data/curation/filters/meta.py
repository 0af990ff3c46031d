"""Reading one field of the metadata that a pool came with."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from data.curation.filters.base import texts


def field_values(rows: pa.Table, field: str) -> Iterator[Any]:
    """Value of a top-level field of each pair's metadata, None where it is not there."""
    for text in texts(rows, "meta"):
        document = json.loads(text) if text else None
        yield document.get(field) if isinstance(document, dict) else None


def field_texts(rows: pa.Table, field: str) -> list[str | None]:
    """The same as text: text as it is, everything else as JSON writes it (true, 1)."""
    return [None if value is None else _text(value) for value in field_values(rows, field)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
