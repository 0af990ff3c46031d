"""LightCLIP's progressively softened contrast (arXiv 2312.00674); its equations are unverified, this form is ours.

Shapes: B pairs of this rank, R of them at a time, G columns (of all ranks unless `gather` is local), D embed_dim.
"""

import math

import torch
from torch import Tensor

from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.softmax import softmax_contrast
from training.objectives.tiles import mean_over_rows


class SoftInfoNCE:
    """Cross-entropy to (1 - a) * own pair + a * softmax of the other pairs' similarities, both directions.

    The similarities that weigh are taken without gradient; a rises from 0 to `max_softness` over the phase. At a = 0
    it is InfoNCE to the bit.
    """

    def __init__(self, spec: specs.SoftInfoNCE) -> None:
        self.spec = spec
        self.needs = frozenset({"image_features", "text_features", "logit_scale"})

    def __call__(self, names: Names, context: Context) -> Loss:
        """InfoNCE, and what softer targets change of it: cross-entropy is linear in its targets."""
        image, text, scale = (names[key] for key in ("image_features", "text_features", "logit_scale"))
        value, parts = softmax_contrast(image, text, scale, context, self.spec.gather)
        share = softness(self.spec, context.progress)
        if share:
            softer = {
                "i2t": self._excess(image, text, scale, context),
                "t2i": self._excess(text, image, scale, context),
            }
            value = value + share * sum(softer.values()) / 2
            parts = {key: part + share * softer[key].detach() for key, part in parts.items()}
        return Loss(value, {**parts, "softness": value.new_tensor(share)})

    def _excess(self, rows_BD: Tensor, others_BD: Tensor, scale: Tensor, context: Context) -> Tensor:
        gather = self.spec.gather
        own_B = torch.arange(len(rows_BD), device=rows_BD.device) + context.offset(len(rows_BD), gather)
        columns_GD = context.columns(others_BD, gather)
        if len(columns_GD) == 1:
            return rows_BD.new_zeros(())  # a lone pair has no others to give a share to
        return mean_over_rows(excess, [rows_BD, own_B], [columns_GD, scale], len(columns_GD))


def softness(spec: specs.SoftInfoNCE, progress: float) -> float:
    """The share of the target that is not the own pair's."""
    risen = progress if spec.ramp == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return spec.max_softness * risen


def excess(rows_RD: Tensor, own_R: Tensor, columns_GD: Tensor, scale: Tensor) -> Tensor:
    """Sum over rows of own similarity - weighted mean of the others': what moving the whole target adds."""
    logits_RG = scale * rows_RD @ columns_GD.T
    with torch.no_grad():
        weights_RG = soft_targets(logits_RG, own_R)
    return logits_RG.gather(1, own_R[:, None]).sum() - (weights_RG * logits_RG).sum()


def soft_targets(logits_RG: Tensor, own_R: Tensor) -> Tensor:
    """Softmax of each row over all columns but its own; rows sum to 1."""
    return logits_RG.detach().scatter(1, own_R[:, None], -math.inf).softmax(dim=1)
