"""Captions that are file names, prices, dates or markup more than words."""

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, at_least, column

_OTHERS = r"[^\p{L}\p{M}\p{Z}\s]"  # marks are part of letters in Indic scripts and in Thai


class CaptionCharacters:
    """Fraction of letters (of any script, with their marks) and spaces; no caption, or an empty one, goes."""

    needs = frozenset({"caption"})

    def __init__(self, spec: specs.CaptionCharacters) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the fraction; of an empty caption NaN would be no JSON, so it is null."""
        caption = column(rows, "caption")
        characters = pc.cast(pc.utf8_length(caption), pa.float64())
        others = pc.cast(pc.count_substring_regex(caption, _OTHERS), pa.float64())
        some = pc.if_else(pc.greater(characters, 0), characters, pa.scalar(None, pa.float64()))
        return at_least(pc.divide(pc.subtract(some, others), some), self.spec.min_letters_fraction)
