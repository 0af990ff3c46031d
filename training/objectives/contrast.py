"""Contrast between images and texts: InfoNCE (softmax) and SigLIP (sigmoid), with shared targets for equal captions.

Shapes: B rows of this rank, G columns (of all ranks unless `gather` is local).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.objectives.base import Context, Loss, Names
from training.specs import Gather


def positives(names: Names, context: Context, gather: Gather, multi_positive: bool) -> Tensor:
    """(B, G) of 0 and 1: which columns are right for a row: its own, or all with the same caption."""
    rows = len(names["image_features"])
    if multi_positive:
        text_id = names["text_id"].to(names["image_features"].device)
        columns = context.columns(text_id, "local" if gather == "local" else "gather_without_grad")
        return (text_id[:, None] == columns[None, :]).to(names["image_features"].dtype)
    width = rows if gather == "local" else rows * context.world_size
    index = torch.arange(rows, device=names["image_features"].device)
    return F.one_hot(index + context.offset(rows, gather), width).to(names["image_features"].dtype)


def similarity_rows(names: Names, context: Context, gather: Gather, prefix: str = "") -> tuple[Tensor, Tensor]:
    """Scaled similarities of this rank's rows, (B, G) image->text and (B, G) text->image."""
    image, text, scale = (names[prefix + key] for key in ("image_features", "text_features", "logit_scale"))
    return scale * image @ context.columns(text, gather).T, scale * text @ context.columns(image, gather).T


class InfoNCE:
    """Mean of the row cross-entropies of both directions (CLIP, arXiv 2103.00020).

    Optionally smoothed or multi-positive.
    """

    def __init__(self, spec: specs.InfoNCE) -> None:
        self.spec = spec
        self.needs = frozenset(
            {"image_features", "text_features", "logit_scale"} | ({"text_id"} if spec.multi_positive else set())
        )

    def __call__(self, names: Names, context: Context) -> Loss:
        """Cross-entropy to the (shared, smoothed) target rows."""
        spec = self.spec
        target = positives(names, context, spec.gather, spec.multi_positive)
        target = target / target.sum(dim=1, keepdim=True)
        if spec.label_smoothing:
            target = target * (1 - spec.label_smoothing) + spec.label_smoothing / target.shape[1]
        i2t, t2i = similarity_rows(names, context, spec.gather)
        loss_i2t, loss_t2i = F.cross_entropy(i2t, target), F.cross_entropy(t2i, target)
        return Loss((loss_i2t + loss_t2i) / 2, {"i2t": loss_i2t, "t2i": loss_t2i})


class SigLIP:
    """Sigmoid loss over all pairs of rows and columns, per row (arXiv 2303.15343, algorithm 1)."""

    def __init__(self, spec: specs.SigLIP) -> None:
        self.spec = spec
        needs = {"image_features", "text_features", "logit_scale", "logit_bias"}
        self.needs = frozenset(needs | ({"text_id"} if spec.multi_positive else set()))

    def __call__(self, names: Names, context: Context) -> Loss:
        """-log sigmoid(label * logit), summed over columns, mean over rows; label is 1 for positives, else -1."""
        i2t, _ = similarity_rows(names, context, self.spec.gather)
        label = 2 * positives(names, context, self.spec.gather, self.spec.multi_positive) - 1
        return Loss(-F.logsigmoid(label * (i2t + names["logit_bias"])).sum() / len(i2t), {})
