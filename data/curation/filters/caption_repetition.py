"""Captions that say one word again and again."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, texts, verdict

_SHORT_WORDS = 32  # up to here counting word by word is twice as fast as a table of counts


class CaptionRepetition:
    """Share of the commonest word, case ignored; captions below `min_words` stay, a pair without caption goes."""

    needs = frozenset({"caption"})

    def __init__(self, spec: specs.CaptionRepetition) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the fraction; 0 for a caption that is too short to judge."""
        found = [None if text is None else self._fraction(text) for text in texts(rows, "caption")]
        fractions = pa.array(found, pa.float64())
        return verdict(fractions, pc.less_equal(fractions, self.spec.max_fraction))

    def _fraction(self, text: str) -> float:
        words = text.lower().split()
        return _most(words) / len(words) if len(words) >= self.spec.min_words else 0.0


def _most(words: list[str]) -> int:
    """How often the commonest word is there."""
    if len(words) > _SHORT_WORDS:
        return max(Counter(words).values())
    distinct = set(words)
    return 1 if len(distinct) == len(words) else max(map(words.count, distinct))
