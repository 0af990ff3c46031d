"""InfoNCE's two cross-entropies in tiles, on one rank or many: values and gradients, exact, in O((B + G) D) memory.

A rank computes only its rows of the similarities, images x all texts, and shares what it learns of the columns: the
text->image softmaxes need no second block. The first pass over the tiles gathers the maxima and sums of the softmaxes,
the second computes the tiles again and pulls the gradients out of them: four matrix products instead of six.

Shapes: B rows of this rank, G columns (of all ranks unless `gather` is local), D embed_dim, R x C one tile.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from training.objectives.base import Context
from training.objectives.tiles import Similarities, fused, inner, wanted, with_gradients
from training.specs import Gather

# Similarities are kept in units of ln 2: exp2 takes a quarter of exp's time on a CPU, and the mathematics is the same.
_LN_2 = math.log(2)


class Lines(NamedTuple):
    """Softmax denominators of rows or columns: the maximum, and the sum of 2 ** (similarity - maximum) about it."""

    maximum: Tensor
    total: Tensor

    @classmethod
    def empty(cls, count: int, like: Tensor) -> "Lines":
        """Lines that hold nothing yet."""
        return cls(like.new_full((count,), -math.inf), like.new_zeros(count))


@fused
def fold(
    tile_RC: Tensor, line_maximum: Tensor, line_total: Tensor, dim: int, spare: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The lines' maxima and totals with a tile's entries along `dim` added: exact for any range of similarities."""
    maximum = torch.maximum(line_maximum, tile_RC.amax(dim))
    powers_RC = torch.sub(tile_RC, maximum.unsqueeze(dim), out=spare).exp2_()
    return maximum, line_total * (line_maximum - maximum).exp2() + powers_RC.sum(dim)


@fused
def probabilities(tile_RC: Tensor, maximum: Tensor, inverse: Tensor, dim: int, spare: Tensor | None) -> Tensor:
    """A tile of the softmax along `dim`; `inverse` is 1 / total. About the maximum, so that 1 - p keeps its digits."""
    return torch.sub(tile_RC, maximum.unsqueeze(dim), out=spare).exp2_().mul_(inverse.unsqueeze(dim))


class Statistics(NamedTuple):
    """What the first pass knows: softmax denominators of own rows and all columns, similarity of own pairs."""

    rows: Lines  # (B,)
    columns: Lines  # (G,)
    matched: Tensor  # (B,)


def softmax_contrast(
    image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, context: Context, gather: Gather
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half of image->text plus text->image cross-entropy to the own pair, and both by name, without gradient.

    Values are means over this rank's B rows and columns. Gradients of features are those of the formula written with
    gathered columns, for every gather policy. logit_scale's is this rank's rows' part of both directions: ranks share
    the sum out differently than the formula does, which takes a rank's rows and columns; their sum is the same.
    """
    needs = wanted(image_BD, text_BD, logit_scale)
    with torch.no_grad():
        scaled_BD = image_BD * (logit_scale / _LN_2)
        text_GD, offset = context.gathered(text_BD, gather), context.offset(len(text_BD), gather)
        similarities = Similarities(scaled_BD, text_GD, offset, spares=2)
        found = gather_statistics(similarities, context, gather)
        own = slice(offset, offset + len(text_BD))
        losses = {
            "i2t": _cross_entropy(found.rows, found.matched),
            "t2i": _cross_entropy(Lines(*(line[own] for line in found.columns)), found.matched),
        }
        gradients: list[Tensor | None] = [None, None, None]
        if any(needs):
            gradients = pull(similarities, found, logit_scale, needs, context, gather)
    value = with_gradients((losses["i2t"] + losses["t2i"]) / 2, (image_BD, text_BD, logit_scale), gradients)
    return value, losses


def _cross_entropy(lines: Lines, matched: Tensor) -> Tensor:
    return ((lines.maximum - matched) * _LN_2 + lines.total.log()).mean()


def gather_statistics(similarities: Similarities, context: Context, gather: Gather) -> Statistics:
    """First pass: fold every tile into its rows' and columns' lines, then add up the columns' over ranks."""
    rows = Lines.empty(len(similarities.rows_BD), similarities.rows_BD)
    columns = Lines.empty(len(similarities.columns_GD), similarities.rows_BD)
    matched_B = similarities.rows_BD.new_empty(len(similarities.rows_BD))
    for tile, similarity_RC, (spare, _) in similarities:
        for lines, span, dim in ((rows, tile.rows, 1), (columns, tile.columns, 0)):
            lines.maximum[span], lines.total[span] = fold(
                similarity_RC, lines.maximum[span], lines.total[span], dim, spare
            )
        if tile.is_own:
            matched_B[tile.diagonal_rows()] = tile.diagonal(similarity_RC)
    if not context.is_alone(gather):
        maximum = context.reduced(columns.maximum, gather, "max")
        total = context.reduced(columns.total * (columns.maximum - maximum).exp2(), gather, "sum")
        columns = Lines(maximum, total)
    return Statistics(rows, columns, matched_B)


def pull(
    similarities: Similarities,
    found: Statistics,
    logit_scale: Tensor,
    needs: list[bool],
    context: Context,
    gather: Gather,
) -> list[Tensor | None]:
    """Second pass: gradients of image_BD (B, D), text_BD (B, D) and logit_scale (), None where `needs` says so.

    With d = (row softmax + column softmax - 2 on the diagonal) / 2B, the similarities' gradient, image_BD's is
    scale * d @ text and text's scale * d.T @ image. Without gradient through the gather, another rank's columns keep
    only the row softmax in the former and only the column softmax in the latter.
    """
    image_grad_BD, text_grad_GD = similarities.zero_gradients(needs)
    scale_grad = similarities.rows_BD.new_zeros((), dtype=torch.float64)
    inverse_B, inverse_G = found.rows.total.reciprocal(), found.columns.total.reciprocal()
    for tile, similarity_RC, (spare, other) in reversed(similarities):
        rows, columns = tile.rows, tile.columns
        row_RC = probabilities(similarity_RC, found.rows.maximum[rows], inverse_B[rows], 1, spare)
        column_RC = probabilities(similarity_RC, found.columns.maximum[columns], inverse_G[columns], 0, other)
        if tile.is_own:
            tile.diagonal(row_RC).sub_(1)
            tile.diagonal(column_RC).sub_(1)
        is_shared = tile.is_own or gather != "gather_without_grad"
        if is_shared:
            column_RC = row_RC.add_(column_RC)
        if image_grad_BD is not None:
            image_grad_BD[rows].addmm_(row_RC, similarities.columns_GD[columns])
        if text_grad_GD is not None:
            text_grad_GD[columns].addmm_(column_RC.T, similarities.rows_BD[rows])
        if needs[2]:
            scale_grad += inner(similarity_RC, row_RC, spare)
            scale_grad += 0 if is_shared else inner(similarity_RC, column_RC, other)
    half = 0.5 / len(similarities.rows_BD)
    return [
        None if image_grad_BD is None else image_grad_BD.mul_(logit_scale * half),
        None if text_grad_GD is None else context.owned(text_grad_GD.mul_(_LN_2 * half), gather),
        (scale_grad * (_LN_2 * half) / logit_scale).to(logit_scale.dtype) if needs[2] else None,
    ]
