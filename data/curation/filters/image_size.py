"""Pictures with too few pixels to show anything at the towers' input size."""

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, at_least, column


class ImageSize:
    """Pixels of the shorter side; a picture that does not decode goes."""

    needs = frozenset({"width", "height"})

    def __init__(self, spec: specs.ImageSize) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the shorter side."""
        shorter = pc.min_element_wise(column(rows, "width"), column(rows, "height"), skip_nulls=False)
        return at_least(shorter, self.spec.min_side)
