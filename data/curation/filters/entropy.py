"""Empty pictures: placeholders, blank pages, one flat colour."""

import pyarrow as pa

from data.curation import specs
from data.curation.filters.base import Verdict, at_least, column


class Entropy:
    """Entropy of the grey values of the thumbnail; a picture that does not decode goes."""

    needs = frozenset({"entropy"})

    def __init__(self, spec: specs.Entropy) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the entropy, in bits."""
        return at_least(column(rows, "entropy"), self.spec.min_bits)
