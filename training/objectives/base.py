"""What every objective gets and gives.

Shapes: B pairs of this rank, G pairs of all ranks, D embed_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from training.specs import Gather

Names = Mapping[str, Tensor]


class Loss(NamedTuple):
    """A scalar to minimise and detached parts to log."""

    value: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """Where in training we are. `progress` runs from 0 to 1 over the phase; `generator` is the same on every rank."""

    progress: float
    rank: int
    world_size: int
    generator: torch.Generator

    def columns(self, rows_BD: Tensor, gather: Gather) -> Tensor:
        """The columns this rank contrasts its rows with: its own, or (G, D) of all ranks with or without gradient."""
        if self.is_alone(gather):
            return rows_BD
        if gather == "gather_with_grad":
            from torch.distributed.nn.functional import all_gather

            return torch.cat(all_gather(rows_BD))  # type: ignore[no-untyped-call]
        parts = [torch.empty_like(rows_BD) for _ in range(self.world_size)]
        dist.all_gather(parts, rows_BD.detach().contiguous())
        parts[self.rank] = rows_BD  # a rank's own columns keep their gradient, as in open_clip's default
        return torch.cat(parts)

    def is_alone(self, gather: Gather) -> bool:
        """Whether a loss under this policy sees nothing of other ranks."""
        return gather == "local" or self.world_size == 1

    def gathered(self, rows: Tensor, gather: Gather) -> Tensor:
        """Rows (B, ...) of all ranks in order, (G, ...), without gradient; this rank's own where it is alone."""
        if self.is_alone(gather):
            return rows.detach()
        joined = rows.new_empty((len(rows) * self.world_size, *rows.shape[1:]))
        dist.all_gather_into_tensor(joined, rows.detach().contiguous())
        return joined

    def reduced(self, values: Tensor, gather: Gather, operation: Literal["sum", "max"]) -> Tensor:
        """Values of equal shape added up over ranks, or their maxima, without gradient."""
        whole = values.detach().clone()
        if not self.is_alone(gather):
            dist.all_reduce(whole, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)
        return whole

    def owned(self, parts_GD: Tensor, gather: Gather) -> Tensor:
        """Add up every rank's (G, D) and keep this rank's (B, D) rows: what `gathered` needs of a gradient."""
        if self.is_alone(gather):
            return parts_GD
        own_BD = parts_GD.new_empty((len(parts_GD) // self.world_size, *parts_GD.shape[1:]))
        dist.reduce_scatter_tensor(own_BD, parts_GD)
        return own_BD

    def summed(self, values: Tensor, gather: Gather) -> Tensor:
        """Values of equal shape added up over ranks; the gradient is `gather`'s: everyone's, or only this rank's."""
        if self.is_alone(gather):
            return values
        if gather == "gather_with_grad":
            from torch.distributed.nn.functional import all_reduce

            return all_reduce(values)  # type: ignore[no-any-return, no-untyped-call]
        return self.reduced(values, gather, "sum") + (values - values.detach())

    def offset(self, rows: int, gather: Gather) -> int:
        """Column of this rank's first row."""
        return 0 if gather == "local" else self.rank * rows


class Objective(Protocol):
    """One term of a training loss."""

    needs: frozenset[str]

    def __call__(self, names: Names, context: Context) -> Loss:
        """Scalar and parts from named tensors.

        Names: `image_features`, `text_features` (B, D) of length 1, `raw_image_features`, `raw_text_features` before
        that, `logit_scale` (), `logit_bias` (), `text_id` (B,) int64 equal for equal captions; of text slot S
        `text_features.S`, `text_id.S`; by the view `label` (B,) int64, -1 for none, `boxes` (B, M, 4) and `box_valid`
        (B, M); `position` (B,) int64 in the run; `<teacher>.image_features` ..., and what surgeries expose.
        """
        ...
