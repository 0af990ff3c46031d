"""Captions that do not tell what a CLIP model sees in the picture."""

import pyarrow as pa

from data.curation import specs
from data.curation.filters.base import Verdict, at_least, column


class ClipScore:
    """Cosine of image and caption features; a pair without features goes."""

    needs = frozenset({"clip_score"})

    def __init__(self, spec: specs.ClipScore) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the cosine."""
        return at_least(column(rows, "clip_score"), self.spec.min_cosine)
