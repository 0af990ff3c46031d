"""What surgeries share."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Phases = Mapping[str, Mapping[str, Tensor]]  # phase name -> weights of its result; `init` is the stage's start


class Check(NamedTuple):
    """A declared invariant, what was measured and the limit it must keep."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """True when the invariant holds; NaN does not."""
        return self.value <= self.limit
