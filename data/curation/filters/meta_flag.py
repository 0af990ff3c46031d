"""Flags that a pool came with: NSFW, UNSURE, a failed download."""

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, verdict
from data.curation.filters.meta import field_texts


class MetaFlag:
    """The field's text is none of the refused ones, case and outer spaces ignored; a pair without it stays."""

    needs = frozenset({"meta"})

    def __init__(self, spec: specs.MetaFlag) -> None:
        self.spec = spec
        self._refused = pa.array([_folded(value) for value in spec.values], pa.string())

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the field's text."""
        told = field_texts(rows, self.spec.field)
        folded = pa.array([None if text is None else _folded(text) for text in told], pa.string())
        return verdict(pa.array(told, pa.string()), pc.invert(pc.is_in(folded, value_set=self._refused)))


def _folded(text: str) -> str:
    return text.strip().casefold()
