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
