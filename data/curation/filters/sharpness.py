"""Blurred pictures."""

import pyarrow as pa

from data.curation import specs
from data.curation.filters.base import Verdict, at_least, column


class Sharpness:
    """Variance of the Laplacian of the grey thumbnail; a picture that does not decode goes."""

    needs = frozenset({"sharpness"})

    def __init__(self, spec: specs.Sharpness) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the variance, in squared grey levels."""
        return at_least(column(rows, "sharpness"), self.spec.min_variance)
