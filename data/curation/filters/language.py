"""Captions in other languages than those asked for."""

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, column, reaches, verdict


class Language:
    """Language of the caption, with at least some certainty; a pair whose language is not known goes."""

    needs = frozenset({"language", "language_score"})

    def __init__(self, spec: specs.Language) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: `en 0.93`."""
        language, score = column(rows, "language"), column(rows, "language_score")
        asked = pc.is_in(language, value_set=pa.array(self.spec.languages, pa.string()))
        rounded = pc.round(pc.cast(score, pa.float64()), 2)
        told = pc.binary_join_element_wise(language, pc.cast(rounded, pa.string()), " ")
        return verdict(told, pc.and_(asked, reaches(score, self.spec.min_score)))
