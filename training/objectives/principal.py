"""Long-CLIP's short branch: pictures' features cut to their first principal components (arXiv 2403.15378, section 3.2).

Shapes: B pairs of this rank, N rows that share their components (B, or G of all ranks), D embed_dim, K components.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.contrast import InfoNCE
from training.specs import Gather

_CUT = "principal_image_features"
_NOTHING = 1e-30  # variance of a batch of one picture


class PrincipalInfoNCE:
    """InfoNCE between pictures cut to the first components of their batch and short captions.

    Cut features are not brought back to length 1, as in the released code. The part `kept` is the share of the
    features' variance that is left: 1 says that the cut does nothing and the term is a plain InfoNCE.
    """

    def __init__(self, spec: specs.PrincipalInfoNCE) -> None:
        self.spec = spec
        self.contrast = InfoNCE(
            specs.InfoNCE(image=_CUT, text=spec.text, label_smoothing=spec.label_smoothing, gather=spec.gather)
        )
        self.needs = self.contrast.needs - {_CUT} | {"image_features"}

    def __call__(self, names: Names, context: Context) -> Loss:
        """Cross-entropies of the cut pictures, and how much of them is left."""
        image_BD, pairs = names["image_features"], len(names["image_features"])
        whole_ND = context.columns(image_BD, self._policy())
        cut_ND = principal(whole_ND, self.spec.components)
        first = context.offset(pairs, self._policy())
        value, parts = self.contrast({**names, _CUT: cut_ND[first : first + pairs]}, context)
        return Loss(value, {**parts, "kept": variance(cut_ND) / variance(whole_ND).clamp(min=_NOTHING)})

    def _policy(self) -> Gather:
        """How the rows that share their components come together; `gather` itself says what is contrasted."""
        if self.spec.scope == "rank":
            return "local"
        return "gather_with_grad" if self.spec.gather == "local" else self.spec.gather


def variance(rows_ND: Tensor) -> Tensor:
    """Sum of the columns' variances, without gradient."""
    return rows_ND.detach().var(dim=0, correction=0).sum()


def principal(rows_ND: Tensor, components: int) -> Tensor:
    """(N, D) rows about their mean, projected on their first `components` right singular directions; mean added back.

    With no components every row is the mean; with at least N - 1 or D of them the rows themselves. The gradient flows
    through the directions; it needs the gaps between kept and dropped ones only, so that equal ones on either side of
    the cut, whose own derivative does not exist, do no harm.
    """
    if components >= min(len(rows_ND) - 1, rows_ND.shape[1]):
        return rows_ND
    cut: Tensor = _Cut.apply(rows_ND, components)
    return cut


class _Cut(torch.autograd.Function):
    """Centred rows X times P, the projector on the first eigenvectors of X^T X. In float64, which squares need."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, components: int) -> Tensor:
        mean_D = rows_ND.double().mean(dim=0)
        centred_ND = rows_ND.double() - mean_D
        power_D, direction_DD = torch.linalg.eigh(centred_ND.T @ centred_ND)  # smallest first
        ctx.save_for_backward(centred_ND, power_D, direction_DD)
        ctx.dropped = len(power_D) - components
        kept_DK = direction_DD[:, ctx.dropped :]
        cut_ND: Tensor = centred_ND @ kept_DK @ kept_DK.T + mean_D
        return cut_ND.to(rows_ND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        """dP = sum over kept i and dropped j of v_i (v_i^T d(X^T X) v_j) v_j^T / gap, and its transpose."""
        centred_ND, power_D, direction_DD = ctx.saved_tensors
        grad = grad_ND.double()
        dropped, kept = direction_DD[:, : ctx.dropped], direction_DD[:, ctx.dropped :]
        of_projector_DD = centred_ND.T @ grad
        mixed_KJ = kept.T @ (of_projector_DD + of_projector_DD.T) @ dropped
        of_square_DD = kept @ (mixed_KJ / _gaps(power_D, ctx.dropped)) @ dropped.T
        of_centred_ND = grad @ kept @ kept.T + centred_ND @ (of_square_DD + of_square_DD.T)
        centred = of_centred_ND - of_centred_ND.mean(dim=0) + grad.mean(dim=0)
        return centred.to(grad_ND.dtype), None


def _gaps(power_D: Tensor, dropped: int) -> Tensor:
    """(K, D - K) differences kept - dropped; infinite where they are rounding, which takes the direction's part out."""
    gap_KJ = power_D[dropped:, None] - power_D[None, :dropped]
    rounding = power_D[-1] * torch.finfo(power_D.dtype).eps * len(power_D)
    return gap_KJ.masked_fill(gap_KJ <= rounding, torch.inf)
