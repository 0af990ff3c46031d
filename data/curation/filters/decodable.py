"""Pictures that cannot be trained on: they cannot be read, do not decode whole, or are too large to decode."""

import pyarrow as pa
import pyarrow.compute as pc

from data.curation import specs
from data.curation.filters.base import Verdict, column, verdict


class Decodable:
    """No problem was found; a pair that was not inspected goes."""

    needs = frozenset({"problem"})

    def __init__(self, spec: specs.Decodable) -> None:
        self.spec = spec

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the problem, empty for none."""
        problem = column(rows, "problem")
        return verdict(problem, pc.equal(problem, ""))
