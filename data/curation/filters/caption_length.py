"""Captions that are too short to say something, or too long to be captions."""

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, column, texts, verdict


class CaptionLength:
    """Words (what white space separates) and characters within bounds; a pair without caption goes."""

    needs = frozenset({"caption"})

    def __init__(self, spec: specs.CaptionLength) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: `7 words, 41 characters`."""
        words = pa.array([None if text is None else len(text.split()) for text in texts(rows, "caption")], pa.int32())
        characters = pc.utf8_length(column(rows, "caption"))
        told = pc.binary_join_element_wise(
            pc.cast(words, pa.string()), " words, ", pc.cast(characters, pa.string()), " characters", ""
        )
        spec = self.spec
        few_words = pc.and_(pc.greater_equal(words, spec.min_words), pc.less_equal(words, spec.max_words))
        few_characters = pc.and_(
            pc.greater_equal(characters, spec.min_characters), pc.less_equal(characters, spec.max_characters)
        )
        return verdict(told, pc.and_(few_words, few_characters))
