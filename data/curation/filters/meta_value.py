"""The pairs of some classes, sources or sessions only: the tasks of a continual stream, for one."""

import numpy as np
import pyarrow as pa

from data.curation import specs
from data.curation.filters.base import Verdict
from data.curation.filters.meta import field_texts


class MetaValue:
    """The field's text is one of the wanted ones; a pair without it goes or stays, as the spec says."""

    needs = frozenset({"meta"})

    def __init__(self, spec: specs.MetaValue) -> None:
        self.spec = spec
        self._wanted = frozenset(spec.values)

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the field's text."""
        told = field_texts(rows, self.spec.field)
        keeps = [self.spec.absent == "keep" if text is None else text in self._wanted for text in told]
        return Verdict(pa.array(told, pa.string()), np.array(keeps, np.bool_))
