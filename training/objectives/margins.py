"""Additive angular margins: to class weights (ArcFace, arXiv 1801.07698) and to captions that stand for a class (MCIP).

Shapes: B pairs of this rank, R of them at a time, G pairs of all ranks unless `gather` is local, C classes,
K captions a picture, D embed_dim.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import ModelError
from training import specs
from training.names import of_slot
from training.objectives.base import Context, Loss, Names
from training.objectives.tiles import mean_over_rows


def with_margin(cosine: Tensor, margin: float) -> Tensor:
    """cos(angle + margin) of cosines of any shape, without acos, whose slope has no bound at 1 and -1.

    Beyond the angle pi - margin, where cos(angle + margin) would rise again, it goes on as cosine - margin *
    sin(margin): it falls with the angle everywhere, as in ArcFace's own code. Margin 0 gives the cosines themselves.
    """
    sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


class ArcMargin:
    """Cross-entropy to the own class over scale * cosines, the own one's angle made larger by the margin.

    Mean over the labelled pairs of all ranks; a pair without label (-1) takes no part. With margin 0 it is the plain
    softmax over scaled cosines.
    """

    needs = frozenset({"image_features", "class_weights", "label"})

    def __init__(self, spec: specs.ArcMargin) -> None:
        self.spec = spec

    def __call__(self, names: Names, context: Context) -> Loss:
        """The mean, and the share of labelled pairs whose own class is nearest, without margin.

        A rank's value is its sum times ranks over all ranks' labelled pairs, so that the ranks' mean is the whole's.

        Raises:
            ModelError: a label has no class weights.
        """
        label_B, weights_CD = names["label"], F.normalize(names["class_weights"], dim=1)
        _require_classes(label_B, len(weights_CD))
        is_labelled_B = label_B >= 0
        cosine_BC = names["image_features"] @ weights_CD.T
        own_B1 = label_B.clamp_min(0)[:, None]
        margined_BC = cosine_BC.scatter(1, own_B1, with_margin(cosine_BC.gather(1, own_B1), self.spec.margin))
        losses_B = F.cross_entropy(self.spec.scale * margined_BC, own_B1[:, 0], reduction="none")
        is_nearest_B = cosine_BC.argmax(dim=1) == label_B
        counted = context.reduced(is_labelled_B.sum(), "gather_without_grad", "sum").clamp_min(1)
        mean = counted.to(losses_B.dtype) / context.world_size
        return Loss((losses_B * is_labelled_B).sum() / mean, {"accuracy": is_nearest_B.sum() / mean})


def _require_classes(label_B: Tensor, classes: int) -> None:
    highest = int(label_B.max())
    if highest >= classes:
        raise ModelError(
            f"objective arc_margin: label {highest} is beyond the {classes} classes of the surgery `classifier`; "
            f"raise its `classes` to {highest + 1} or more, or name the classes in the view's label"
        )


@dataclass(frozen=True)
class CaptionCrossEntropy:
    """Sum over pictures of the mean over their captions; each caption against all captions of other pictures."""

    scale: float
    margin: float

    def __call__(self, image_RD: Tensor, column_R: Tensor, captions_GKD: Tensor) -> Tensor:
        """`column_R`: which of the G a picture itself is."""
        cosine_RGK = (image_RD @ captions_GKD.flatten(0, 1).T).view(-1, *captions_GKD.shape[:2])
        own_RK = cosine_RGK[torch.arange(len(image_RD), device=image_RD.device), column_R]
        right_RK = self.scale * with_margin(own_RK, self.margin)
        is_own_RG1 = F.one_hot(column_R, len(captions_GKD)).bool()[..., None]
        wrong_RGK = (self.scale * cosine_RGK).masked_fill(is_own_RG1, -math.inf)
        wrong_R1 = wrong_RGK.flatten(1).logsumexp(dim=1, keepdim=True)
        return F.softplus(wrong_R1 - right_RK).mean(dim=1).sum()


class CaptionArcMargin:
    """MCIP's multi-caption margin: a picture's captions are its class's weights, those of other pictures the others'.

    The equation is our reading of the paper's figure (arXiv 2409.01936). With one caption and margin 0 it is the
    image->text half of InfoNCE at this scale.
    """

    def __init__(self, spec: specs.CaptionArcMargin) -> None:
        self.spec = spec
        self.captions = ("text_features", *(of_slot("text_features", slot) for slot in spec.texts))
        self.needs = frozenset({"image_features", *self.captions})

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean over this rank's pictures and their captions."""
        spec, image_BD = self.spec, names["image_features"]
        own_BKD = torch.stack([names[name] for name in self.captions], dim=1)
        captions_GKD = context.columns(own_BKD, spec.gather)
        first = context.offset(len(image_BD), spec.gather)
        column_B = torch.arange(first, first + len(image_BD), device=image_BD.device)
        entropy = CaptionCrossEntropy(spec.scale, spec.margin)
        columns = captions_GKD.shape[0] * captions_GKD.shape[1]
        return Loss(mean_over_rows(entropy, [image_BD, column_B], [captions_GKD], columns), {})
