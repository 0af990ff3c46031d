"""SigLIP's loss in tiles, on one rank or many: value and gradients, exact, in O(G D) memory and one pass.

A tile needs no other tile here, so its gradients leave with it: three matrix products, as many as the formula has. The
columns are gathered once, O(G D): broadcasting one rank's columns after the other would save less than the tiles did,
and cost a wait for every rank.

Shapes: B rows of this rank, G columns (of all ranks unless `gather` is local), D embed_dim, R x C one tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.base import Context
from training.objectives.tiles import Similarities, Tile, fused, inner, wanted, with_gradients
from training.specs import Gather

_LINEAR_ABOVE = 40  # where softplus(x) is x to float64's last bit


@fused
def softplus_sum(tile_RC: Tensor, spare: Tensor | None) -> Tensor:
    """Sum of log(1 + exp(x)) over a tile."""
    softplus_RC: Tensor = F.softplus(tile_RC, 1, _LINEAR_ABOVE, out=spare)  # type: ignore[call-arg]
    return softplus_RC.sum()


def sigmoid_contrast(
    image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, logit_bias: Tensor, context: Context, gather: Gather
) -> Tensor:
    """-log sigmoid(label * (scale * similarity + bias)), summed over columns, mean over this rank's rows.

    The label is 1 for a row's own column and -1 elsewhere. Gradients are those of the formula written with gathered
    columns, for every gather policy.
    """
    inputs = (image_BD, text_BD, logit_scale, logit_bias)
    needs = wanted(*inputs)
    with torch.no_grad():
        text_GD, offset = context.gathered(text_BD, gather), context.offset(len(text_BD), gather)
        similarities = Similarities(image_BD * logit_scale, text_GD, offset, spares=1)
        value, gradients = sweep(similarities, logit_scale, logit_bias, needs, context, gather)
    return with_gradients(value, inputs, gradients)


def sweep(
    similarities: Similarities,
    logit_scale: Tensor,
    logit_bias: Tensor,
    needs: list[bool],
    context: Context,
    gather: Gather,
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss () and the gradients of image_BD, text_BD, logit_scale and logit_bias, None where `needs` says so."""
    image_grad_BD, text_grad_GD = similarities.zero_gradients(needs)
    total, product, weight = similarities.rows_BD.new_zeros(3, dtype=torch.float64)
    for tile, logit_RC, (spare,) in similarities:
        logit_RC.add_(logit_bias)
        negate_matched(tile, logit_RC)  # their label is 1, the others' is -1
        total += softplus_sum(logit_RC, spare)
        if not any(needs):
            continue
        weight_RC = torch.sigmoid(logit_RC, out=spare)
        negate_matched(tile, logit_RC)
        negate_matched(tile, weight_RC)
        if image_grad_BD is not None:
            image_grad_BD[tile.rows].addmm_(weight_RC, similarities.columns_GD[tile.columns])
        if text_grad_GD is not None and (tile.is_own or gather != "gather_without_grad"):
            text_grad_GD[tile.columns].addmm_(weight_RC.T, similarities.rows_BD[tile.rows])
        weight += weight_RC.sum()
        product += inner(logit_RC, weight_RC, spare)
    pairs = len(similarities.rows_BD)
    return total.to(similarities.rows_BD.dtype) / pairs, [
        None if image_grad_BD is None else image_grad_BD.mul_(logit_scale / pairs),
        None if text_grad_GD is None else context.owned(text_grad_GD.div_(pairs), gather),
        ((product - weight * logit_bias) / logit_scale / pairs).to(logit_scale.dtype) if needs[2] else None,
        (weight / pairs).to(logit_bias.dtype) if needs[3] else None,
    ]


def negate_matched(tile: Tile, matrix_RC: Tensor) -> None:
    """Turn the sign of own pairs' entries, in place."""
    if tile.is_own:
        tile.diagonal(matrix_RC).neg_()
