"""DCLIP's teacher: regions of a picture and words of its caption look at each other and become one vector.

arXiv 2505.21549. It stands beside frozen towers and is all that trains; a later stage's `FrozenModel` teacher gives its
`fused_features`. Shapes: B pairs, M regions, L places of words, X and Y rows that look and are looked at, N crops,
C channels, S side of the input in pixels, D embed_dim.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align  # type: ignore[import-untyped]

from data.errors import ModelError
from training.specs import CrossModal
from training.surgeries.aids import Aid, attach, seeded
from training.surgeries.base import Check, Phases, largest_difference
from training.towers import Towers

NAME = "cross_modal"
CROPS = 256  # crops of a pass: a batch has several regions a pair, and memory for a batch of pictures
_ROUNDING = 1e-5  # of features of length 1: tokens are read on another way through the towers


class Attended(nn.Module):
    """LN(X + MHA(X, Y, Y))."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, own_BXD: Tensor, other_BYD: Tensor, is_seen_BY: Tensor) -> Tensor:
        """(B, X, D). Where nothing of the others is seen, LN(X)."""
        has_any_B = is_seen_BY.any(dim=1)
        hidden_BY = ~is_seen_BY & has_any_B[:, None]  # a softmax over nothing would be NaN
        read_BXD, _ = self.attention(own_BXD, other_BYD, other_BYD, key_padding_mask=hidden_BY, need_weights=False)
        seen_BXD: Tensor = self.norm(own_BXD + read_BXD * has_any_B[:, None, None])
        return seen_BXD


def pooled(rows_BXD: Tensor, is_there_BX: Tensor, temperature: float) -> Tensor:
    """(B, D): rows weighted by the softmax of their cosine to their mean; 0 where there are none."""
    there_BX1 = is_there_BX[..., None].to(rows_BXD.dtype)
    mean_B1D = (rows_BXD * there_BX1).sum(dim=1, keepdim=True) / there_BX1.sum(dim=1, keepdim=True).clamp_min(1)
    cosine_BX = F.cosine_similarity(rows_BXD, mean_B1D, dim=2) / temperature
    weight_BX = cosine_BX.masked_fill(~is_there_BX, torch.finfo(cosine_BX.dtype).min).softmax(dim=1)
    return (weight_BX[..., None] * there_BX1 * rows_BXD).sum(dim=1)


def crops(image_BCSS: Tensor, rois_N5: Tensor) -> Tensor:
    """(N, C, S, S): boxes of the pictures, stretched to the input's square; rois are (pair, left, top, right, bottom).

    No box is larger than its picture, so that one bilinear sample a pixel is all that there is.
    """
    found: Tensor = roi_align(image_BCSS, rois_N5, image_BCSS.shape[-1], sampling_ratio=1, aligned=True)
    return found


@torch.no_grad()
def region_tokens(model: Any, image_BCSS: Tensor, boxes_BM4: Tensor, is_valid_BM: Tensor, width: int) -> Tensor:
    """(B, M, D) embeddings of the regions by the image tower, before normalisation; 0 for a box that is none.

    How often the tower runs depends on shapes alone: sharded over ranks, it must be equally often on all of them.
    """
    passes = max(1, -(-is_valid_BM.numel() // CROPS))
    pair_N, place_N = is_valid_BM.nonzero(as_tuple=True)
    corners_N4 = boxes_BM4[pair_N, place_N].float() * image_BCSS.shape[-1]
    rois_N5 = torch.cat([pair_N[:, None].to(corners_N4.dtype), corners_N4], dim=1)
    rois_N5 = F.pad(rois_N5, (0, 0, 0, max(0, passes - len(rois_N5))))  # every pass has one to do
    found = [model.encode_image(crops(image_BCSS, part)) for part in rois_N5.tensor_split(passes)]
    tokens_BMD = image_BCSS.new_zeros((*is_valid_BM.shape, width))
    tokens_BMD[pair_N, place_N] = torch.cat(found)[: len(pair_N)].to(tokens_BMD.dtype)
    return tokens_BMD


class Fusion(Aid):
    """One cross-attention block both ways; half of each side's pooled rows is the fused vector.

    W' = LN(W + MHA(W, R, R)), R' = LN(R + MHA(R, W, W)), g = 1/2 pool(W') + 1/2 pool(R'), of length 1. With
    `parts="image"` regions look at each other and g = pool(R'): as much attention, and no caption in it.
    """

    reads_tokens: ClassVar[bool] = True

    def __init__(self, spec: CrossModal, embed_dim: int) -> None:
        super().__init__()
        self.spec, self.width = spec, embed_dim
        with seeded(spec.seed):
            self.regions = Attended(embed_dim, spec.num_heads)
            self.words = Attended(embed_dim, spec.num_heads) if spec.parts == "both" else None

    def outputs(self, model: Any, inputs: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`fused_features` (B, D) from `boxes`, `box_valid` and the tokens; nothing where a view has no regions.

        No gradient goes into the towers. A pair with neither region nor word has zeros.
        """
        if "boxes" not in inputs:
            return {}  # held-out pairs of a validation have no regions, and their loss needs none
        is_valid_BM, is_word_BL = inputs["box_valid"], seen["text_mask"][:, 1:-1]  # first and last are never words
        region_BMD = region_tokens(model, inputs["image"], inputs["boxes"], is_valid_BM, self.width)
        word_BLD = seen["text_tokens"].detach()[:, 1:-1] * is_word_BL[..., None]
        if self.spec.padding == "zero":
            is_valid_BM, is_word_BL = torch.ones_like(is_valid_BM), torch.ones_like(is_word_BL)
        return {"fused_features": self.fused(region_BMD, is_valid_BM, word_BLD, is_word_BL)}

    def fused(self, region_BMD: Tensor, is_valid_BM: Tensor, word_BLD: Tensor, is_word_BL: Tensor) -> Tensor:
        """(B, D) of length 1 from tokens and which of their places count."""
        temperature = self.spec.pool_temperature
        if self.words is None:
            looked_BMD = self.regions(region_BMD, region_BMD, is_valid_BM)
            return F.normalize(pooled(looked_BMD, is_valid_BM, temperature), dim=-1)
        looked_BMD = self.regions(region_BMD, word_BLD, is_word_BL)
        looked_BLD = self.words(word_BLD, region_BMD, is_valid_BM)
        both = pooled(looked_BLD, is_word_BL, temperature), pooled(looked_BMD, is_valid_BM, temperature)
        return F.normalize((both[0] + both[1]) / 2, dim=-1)


def rebuild(towers: Towers, layout: dict[str, Any]) -> Towers:
    """The same block beside fresh towers, for loading weights."""
    return attach(towers, NAME, Fusion(CrossModal.model_validate(layout), towers.embed_dim), layout)


def apply(spec: CrossModal, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:
    """Towers with an untrained block beside them; their own weights are what they were.

    Checked: the towers' features are those without it.

    Raises:
        ModelError: patches or words of these towers cannot be told, heads do not divide embed_dim, or a second block.
    """
    del phases
    towers.require_tokens(f"surgery `{NAME}`")
    _require_room(spec, towers)
    beside = rebuild(towers, spec.model_dump())
    return beside, [Check("features unchanged", largest_difference(towers, beside), _ROUNDING)]


def _require_room(spec: CrossModal, towers: Towers) -> None:
    if NAME in towers.aids:
        raise ModelError(f"surgery `{NAME}`: these towers have such a block already; remove the surgery")
    if towers.embed_dim % spec.num_heads:
        fits = next(heads for heads in range(spec.num_heads, 0, -1) if towers.embed_dim % heads == 0)
        raise ModelError(
            f"surgery `{NAME}`: num_heads {spec.num_heads} does not divide embed_dim {towers.embed_dim}; use {fits}"
        )
