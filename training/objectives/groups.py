"""Pairs that share their targets: equal captions, or all pairs under label smoothing.

What shared targets add to a loss is linear in the similarities, so sums of a group's features say it all and no matrix
of pairs x pairs is needed: sum over i, j of a group of image_i . text_j = (sum of images) . (sum of texts).

Shapes: B pairs of this rank, G pairs of all ranks (B if `gather` is local), U groups, M of this rank's pairs in them, D
embed_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.objectives.base import Context
from training.specs import Gather


@dataclass(frozen=True)
class Groups:
    """Groups of pairs, the same list on every rank, and this rank's members of them."""

    members: Tensor  # (M,) int64 rows of this rank, sorted by group
    own_sizes: Tensor  # (U,) int64 members on this rank
    sizes: Tensor  # (U,) int64 members on all ranks

    @classmethod
    def of_equal(cls, text_id_B: Tensor, context: Context, gather: Gather) -> "Groups":
        """One group for every caption that more than one pair has."""
        pairs, offset = len(text_id_B), context.offset(len(text_id_B), gather)
        text_id_G = context.gathered(text_id_B, gather)
        _, group_G, sizes = torch.unique(text_id_G, return_inverse=True, return_counts=True)
        own_B = group_G[offset : offset + pairs]
        own_sizes = own_B.bincount(minlength=len(sizes))
        order_B = own_B.argsort(stable=True)
        return cls(order_B[sizes[own_B[order_B]] > 1], own_sizes[sizes > 1], sizes[sizes > 1])


@dataclass(frozen=True)
class Products:
    """Inner products of images and texts inside groups, with gradient as the policy has it."""

    matched: Tensor  # () sum over this rank's members with their own pair
    i2t: Tensor  # (U,) of this rank's images with the group's texts
    t2i: Tensor  # (U,) of this rank's texts with the group's images


def group_products(groups: Groups, image_BD: Tensor, text_BD: Tensor, context: Context, gather: Gather) -> Products:
    """Products of every group of captions."""
    image_MD, text_MD = image_BD[groups.members], text_BD[groups.members]
    # not index_add, whose order of addition is not fixed on a GPU
    image_UD, text_UD = (
        torch.segment_reduce(rows, "sum", lengths=groups.own_sizes, axis=0, initial=0) for rows in (image_MD, text_MD)
    )
    return _products((image_MD * text_MD).sum(), image_UD, text_UD, context, gather)


def whole_products(image_BD: Tensor, text_BD: Tensor, context: Context, gather: Gather) -> Products:
    """Products of the one group that holds every pair."""
    sums = image_BD.sum(0, keepdim=True), text_BD.sum(0, keepdim=True)
    return _products((image_BD * text_BD).sum(), *sums, context, gather)


def _products(matched: Tensor, image_UD: Tensor, text_UD: Tensor, context: Context, gather: Gather) -> Products:
    i2t_U = (image_UD * context.summed(text_UD, gather)).sum(1)
    t2i_U = (text_UD * context.summed(image_UD, gather)).sum(1)
    return Products(matched, i2t_U, t2i_U)
