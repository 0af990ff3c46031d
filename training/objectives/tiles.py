"""Similarity matrices in tiles: what a loss over all pairs needs, without a tensor of rows x columns.

Shapes: B rows of this rank, G columns (of all ranks unless `gather` is local), D embed_dim, R x C one tile.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# A tile is at most edge x edge: 4 MiB in float32, so that on a CPU it stays in the cache between its passes; a GPU
# wants more arithmetic a launch, and three buffers of 64 MiB are little there.
EDGES = {"cpu": 1024, "cuda": 4096}


def tile_edge(device: torch.device) -> int:
    """Rows and columns of a tile on a device."""
    return EDGES.get(device.type, EDGES["cuda"])


def spans(start: int, stop: int, longest: int) -> list[slice]:
    """Cut [start, stop) into the fewest nearly equal slices of at most `longest`."""
    size = stop - start
    pieces = -(-size // longest)
    bounds = [start + size * number // pieces for number in range(pieces + 1)] if pieces else []
    return [slice(low, high) for low, high in pairwise(bounds)]


@dataclass(frozen=True)
class Tile:
    """One tile's place: rows of this rank, columns of all; `is_own`: the columns are this rank's as well."""

    rows: slice
    columns: slice
    is_own: bool
    shift: int  # of the diagonal, on which a row meets its own column

    @property
    def shape(self) -> tuple[int, int]:
        """R, C."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def diagonal(self, matrix_RC: Tensor) -> Tensor:
        """View of a row's similarity to its own column; empty where the tile holds none."""
        return matrix_RC.diagonal(self.shift)

    def diagonal_rows(self) -> slice:
        """The rows that `diagonal` belongs to."""
        start = max(self.rows.start, self.rows.start - self.shift)
        return slice(start, min(self.rows.stop, self.rows.start - self.shift + self.shape[1]))


def grid(rows: int, columns: int, offset: int, edge: int) -> list[Tile]:
    """Tiles of a (rows, columns) matrix; no tile mixes own columns, [offset, offset + rows), with other ranks'."""
    ends = (0, offset, offset + rows, columns)
    parts = [(part, number == 1) for number in range(3) for part in spans(ends[number], ends[number + 1], edge)]
    return [
        Tile(row, column, is_own, row.start + offset - column.start)
        for row in spans(0, rows, edge)
        for column, is_own in parts
    ]


class Similarities:
    """rows_BD @ columns_GD.T, a tile at a time in one buffer, and spare buffers of a tile's size.

    A CPU's allocator hands buffers of this size back to the system and faults them in again, at the price of a matrix
    product; on other devices `spares` are None, which torch's `out=` takes for a new tensor, and kernels fuse.
    """

    def __init__(self, rows_BD: Tensor, columns_GD: Tensor, offset: int, spares: int) -> None:
        self.rows_BD, self.columns_GD = rows_BD, columns_GD
        self.tiles = grid(len(rows_BD), len(columns_GD), offset, tile_edge(rows_BD.device))
        room = max(math.prod(tile.shape) for tile in self.tiles)
        self._buffer = rows_BD.new_empty(room)
        self._spares = [rows_BD.new_empty(room) if rows_BD.is_cpu else None for _ in range(spares)]
        self._held = -1

    def zero_gradients(self, needs: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        """Zeros (B, D) and (G, D) to add gradients of rows and columns to, None for what needs none."""
        rows_BD = torch.zeros_like(self.rows_BD) if needs[0] else None
        return rows_BD, torch.zeros_like(self.columns_GD) if needs[1] else None

    def __iter__(self) -> Iterator[tuple[Tile, Tensor, list[Tensor | None]]]:
        """Every tile's place, similarities (R, C) and spares; whoever writes to the similarities walks once."""
        return self._walk(range(len(self.tiles)))

    def __reversed__(self) -> Iterator[tuple[Tile, Tensor, list[Tensor | None]]]:
        """The same backwards: a second pass starts with the tile that the first left, and need not compute it."""
        return self._walk(range(len(self.tiles) - 1, -1, -1))

    def _walk(self, numbers: range) -> Iterator[tuple[Tile, Tensor, list[Tensor | None]]]:
        for number in numbers:
            tile = self.tiles[number]
            shape, size = tile.shape, math.prod(tile.shape)
            similarity_RC = self._buffer[:size].view(shape)
            if number != self._held:
                torch.mm(self.rows_BD[tile.rows], self.columns_GD[tile.columns].T, out=similarity_RC)
                self._held = number
            yield tile, similarity_RC, [None if spare is None else spare[:size].view(shape) for spare in self._spares]


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a pure function of a tile, its first argument, when that lies on CUDA; on other devices call it as it is.

    There every elementwise pass costs a trip to memory; one kernel makes one trip.
    """
    compiled = cache(lambda: torch.compile(function, dynamic=True))

    @wraps(function)
    def call(tile_RC: Tensor, *others: Any) -> Any:
        return (compiled() if tile_RC.is_cuda else function)(tile_RC, *others)

    return call


@fused
def inner(tile_RC: Tensor, weight_RC: Tensor, spare: Tensor | None) -> Tensor:
    """Sum of the products of two tiles; `spare` may be the second one."""
    return torch.mul(tile_RC, weight_RC, out=spare).sum()


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *_inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # under create_graph: the gradients are constants here, and a zero would be wrong
            raise RuntimeError("a loss in tiles has no second derivative; call backward without create_graph")
        return None, None, *(None if gradient is None else gradient * grad for gradient in ctx.saved_tensors)


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """`value` (), whose gradient to each of `inputs` is the given one, which is already known.

    The backward pass only multiplies, so it may run twice.

    Raises:
        RuntimeError: in a backward pass with create_graph, as second derivatives are not known.
    """
    attached: Tensor = _Attach.apply(value, gradients, *inputs)
    return attached


def wanted(*inputs: Tensor) -> list[bool]:
    """Which of the inputs a gradient is to be computed for, now."""
    return [torch.is_grad_enabled() and value.requires_grad for value in inputs]


def mean_over_rows(
    sum_of_rows: Callable[..., Tensor], rows: Sequence[Tensor], shared: Sequence[Tensor], columns: int
) -> Tensor:
    """Mean over B rows of a loss that needs a row's similarities to all columns; gradients come with it.

    `sum_of_rows(*rows, *shared)` gets a slice of every tensor of `rows` (B, ...; the first one floating) and all of
    `shared`, and returns the sum of its rows' losses. Its (slice, columns) tensors live for one slice: the gradients
    are taken slice by slice. A single slice is left to autograd.
    """
    inputs, edge, pairs = [*rows, *shared], tile_edge(rows[0].device), len(rows[0])
    slices = spans(0, pairs, max(1, edge // 4, edge * edge // columns))
    if len(slices) == 1:
        return sum_of_rows(*inputs) / pairs
    needs = wanted(*inputs)
    gradients = [torch.zeros_like(value) if need else None for value, need in zip(inputs, needs, strict=True)]
    total = rows[0].new_zeros(())
    for span in slices:
        leaves = [value[span].detach() for value in rows] + [value.detach() for value in shared]
        learned = [number for number, need in enumerate(needs) if need]
        value = sum_of_rows(*(leaf.requires_grad_(need) for leaf, need in zip(leaves, needs, strict=True)))
        found = torch.autograd.grad(value, [leaves[number] for number in learned]) if learned else ()
        for number, part in zip(learned, found, strict=True):
            gradient = gradients[number]
            assert gradient is not None
            (gradient[span] if number < len(rows) else gradient).add_(part)
        total += value.detach()
    known = [None if gradient is None else gradient.div_(pairs) for gradient in gradients]
    return with_gradients(total / pairs, inputs, known)
