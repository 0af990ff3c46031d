"""Banners and skyscrapers: pictures of which a square crop shows little."""

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, column, verdict


class AspectRatio:
    """Longer side by shorter side; a picture that does not decode goes."""

    needs = frozenset({"width", "height"})

    def __init__(self, spec: specs.AspectRatio) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the ratio, 1 for a square."""
        sides = [pc.cast(column(rows, name), pa.float64()) for name in ("width", "height")]
        longer = pc.max_element_wise(*sides, skip_nulls=False)
        ratio = pc.divide(longer, pc.min_element_wise(*sides, skip_nulls=False))
        return verdict(ratio, pc.less_equal(ratio, self.spec.max_ratio))
