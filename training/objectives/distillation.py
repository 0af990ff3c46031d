"""Learning from a teacher: similarity rows (CLIP-Refine's HyCD and plain KD) and features.

Shapes: B rows of this rank, R of them at a time, G columns (of all ranks unless `gather` is local), D embed_dim.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import ModelError
from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.tiles import mean_over_rows
from training.specs import Gather

_FEATURES = ("image_features", "text_features", "logit_scale")


def needs(teacher: str, extra: frozenset[str] = frozenset()) -> frozenset[str]:
    """Student's and teacher's features and temperatures, and more."""
    return frozenset(_FEATURES) | {f"{teacher}.{name}" for name in _FEATURES} | extra


@dataclass(frozen=True)
class Divergence:
    """KL(targets || student's row softmax) summed over rows; 0 log 0 counts as 0.

    Targets are `hard` * (own column, or all columns of an equal id, in equal parts) + (1 - hard) * teacher's softmax.
    """

    hard: float
    temperature: float

    def __call__(
        self, student_RD: Tensor, teacher_RD: Tensor, id_R: Tensor, student_GD: Tensor, teacher_GD: Tensor,
        id_G: Tensor, student_scale: Tensor, teacher_scale: Tensor,
    ) -> Tensor:  # fmt: skip
        """Rows' features and ids against all columns'; gradients go to the student's."""
        logits_RG = (student_scale / self.temperature) * student_RD @ student_GD.T
        with torch.no_grad():
            target_RG = ((teacher_scale / self.temperature) * teacher_RD @ teacher_GD.T).softmax(dim=1)
            if self.hard:
                equal_RG = (id_R[:, None] == id_G[None, :]).to(target_RG.dtype)
                target_RG.lerp_(equal_RG.div_(equal_RG.sum(dim=1, keepdim=True)), self.hard)
        return F.kl_div(logits_RG.log_softmax(dim=1), target_RG, reduction="sum")


def both_directions(
    divergence: Divergence, names: Names, teacher: str, id_B: Tensor, context: Context, gather: Gather
) -> tuple[Tensor, Tensor]:
    """Mean divergence of this rank's rows, image->text and text->image."""
    id_G = context.gathered(id_B, gather)
    labels = ("", f"{teacher}.")
    scales = [names[label + "logit_scale"] for label in labels]
    means = []
    for side, other in (("image_features", "text_features"), ("text_features", "image_features")):
        rows = [names[label + side] for label in labels]
        columns = [context.columns(names[label + other], gather) for label in labels]
        means.append(mean_over_rows(divergence, [*rows, id_B], [*columns, id_G, *scales], len(id_G)))
    return means[0], means[1]


def own_ids(names: Names, context: Context) -> Tensor:
    """(B,) int64, different for every pair of every rank."""
    pairs = len(names["image_features"])
    return torch.arange(pairs, device=names["image_features"].device) + context.rank * pairs


class HybridDistillation:
    """HyCD: KL to hard * one-hot + (1 - hard) * teacher's row softmax, mean of both directions (arXiv 2504.12717).

    hard = 1 has InfoNCE's gradient; hard = 0 with student = teacher has loss and gradient 0.
    """

    def __init__(self, spec: specs.HybridDistillation) -> None:
        self.spec = spec
        self.needs = needs(spec.teacher, frozenset({"text_id"}) if spec.multi_positive else frozenset())

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean of the two directions' divergences."""
        spec = self.spec
        ids = names["text_id"].to(names["image_features"].device) if spec.multi_positive else own_ids(names, context)
        i2t, t2i = both_directions(Divergence(spec.hard, 1.0), names, spec.teacher, ids, context, spec.gather)
        return Loss((i2t + t2i) / 2, {"i2t": i2t, "t2i": t2i})


class FeatureCosine:
    """1 - cosine(student, teacher), mean over the named features; needs equal widths."""

    def __init__(self, spec: specs.FeatureCosine) -> None:
        self.pairs = {student: f"{spec.teacher}.{teacher}" for student, teacher in spec.features.items()}
        self.needs = frozenset({*self.pairs, *self.pairs.values()})

    def __call__(self, names: Names, context: Context) -> Loss:  # noqa: ARG002
        """Mean over the names.

        Raises:
            ModelError: student and teacher differ in width.
        """
        parts = {mine: self._distance(names, mine, theirs) for mine, theirs in self.pairs.items()}
        return Loss(torch.stack(list(parts.values())).mean(), parts)

    def _distance(self, names: Names, mine: str, theirs: str) -> Tensor:
        student_BD, teacher_BD = names[mine], names[theirs]
        if student_BD.shape[1] != teacher_BD.shape[1]:
            raise ModelError(
                f"feature_cosine: {mine} has {student_BD.shape[1]} values, {theirs} {teacher_BD.shape[1]}; take a "
                "teacher of the student's embed_dim, or objective similarity_rows, which needs no common width"
            )
        return 1 - F.cosine_similarity(student_BD, teacher_BD).mean()
