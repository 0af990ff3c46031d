"""Learning from a teacher: similarity rows (CLIP-Refine's HyCD and plain KD) and features.

Shapes: B rows of this rank, G columns (of all ranks unless `gather` is local), D embed_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.contrast import positives, similarity_rows

_FEATURES = ("image_features", "text_features", "logit_scale")


def _needs(teacher: str, extra: frozenset[str] = frozenset()) -> frozenset[str]:
    return frozenset(_FEATURES) | {f"{teacher}.{name}" for name in _FEATURES} | extra


def row_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || softmax(logits)), mean over rows; 0 log 0 counts as 0."""
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")


class HybridDistillation:
    """HyCD: KL to hard * one-hot + (1 - hard) * teacher's row softmax, mean of both directions (arXiv 2504.12717).

    hard = 1 has InfoNCE's gradient; hard = 0 with student = teacher has loss and gradient 0.
    """

    def __init__(self, spec: specs.HybridDistillation) -> None:
        self.spec = spec
        self.needs = _needs(spec.teacher, frozenset({"text_id"}) if spec.multi_positive else frozenset())

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean of the two directions' divergences."""
        spec = self.spec
        hard = positives(names, context, spec.gather, spec.multi_positive)
        hard = hard / hard.sum(dim=1, keepdim=True)
        student = similarity_rows(names, context, spec.gather)
        with torch.no_grad():
            teacher = similarity_rows(names, context, spec.gather, f"{spec.teacher}.")
            targets = [spec.hard * hard + (1 - spec.hard) * rows.softmax(dim=1) for rows in teacher]
        parts = [row_divergence(target, rows) for target, rows in zip(targets, student, strict=True)]
        return Loss((parts[0] + parts[1]) / 2, {"i2t": parts[0], "t2i": parts[1]})


class SimilarityRows:
    """KL(teacher rows || student rows) at a temperature, times its square, mean of both directions."""

    def __init__(self, spec: specs.SimilarityRows) -> None:
        self.spec = spec
        self.needs = _needs(spec.teacher)

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean of the two directions' divergences; 0 with zero gradient when student = teacher."""
        spec = self.spec
        student = similarity_rows(names, context, spec.gather)
        with torch.no_grad():
            teacher = similarity_rows(names, context, spec.gather, f"{spec.teacher}.")
            targets = [(rows / spec.temperature).softmax(dim=1) for rows in teacher]
        parts = [row_divergence(t, s / spec.temperature) for t, s in zip(targets, student, strict=True)]
        return Loss((parts[0] + parts[1]) / 2 * spec.temperature**2, {"i2t": parts[0], "t2i": parts[1]})


class FeatureCosine:
    """1 - cosine(student, teacher), mean over images and texts; needs equal embed_dim."""

    def __init__(self, spec: specs.FeatureCosine) -> None:
        self.teacher = spec.teacher
        self.needs = frozenset(
            {"image_features", "text_features"} | {f"{spec.teacher}.{n}" for n in ("image_features", "text_features")}
        )

    def __call__(self, names: Names, context: Context) -> Loss:  # noqa: ARG002
        """Mean of the two modalities."""
        parts = {
            modality: 1
            - F.cosine_similarity(names[f"{modality}_features"], names[f"{self.teacher}.{modality}_features"]).mean()
            for modality in ("image", "text")
        }
        return Loss((parts["image"] + parts["text"]) / 2, parts)
