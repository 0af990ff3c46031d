"""Probabilities and scores that a pool came with: NSFW, watermark, aesthetic, similarity."""

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, verdict
from data.curation.filters.meta import field_values


class MetaNumber:
    """A number within bounds, also one written as text; what is no finite number counts as missing."""

    needs = frozenset({"meta"})

    def __init__(self, spec: specs.MetaNumber) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the number."""
        spec = self.spec
        numbers = pa.array([_number(value) for value in field_values(rows, spec.field)], pa.float64())
        kept = pc.is_valid(numbers)
        if spec.at_least is not None:
            kept = pc.and_(kept, pc.fill_null(pc.greater_equal(numbers, spec.at_least), False))
        if spec.at_most is not None:
            kept = pc.and_(kept, pc.fill_null(pc.less_equal(numbers, spec.at_most), False))
        return verdict(numbers, pc.or_(kept, pc.is_null(numbers)) if spec.keep_missing else kept)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
