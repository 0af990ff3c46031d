"""Keeping a teacher's rows of similarities: plain distillation, and Mod-X's form of it (arXiv 2305.07437).

Shapes: R rows of this rank at a time, G columns (of all ranks unless `gather` is local), D embed_dim.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.distillation import Divergence, both_directions, needs, own_ids

_LEFT_OUT = -1e9  # finite: a target of exactly 0 times an infinite log would be no number
_TIE = 1e-6  # of cosines: equal columns may differ by their rounding


class SimilarityRows:
    """KL(teacher rows || student rows) at a temperature, times its square, mean of both directions.

    `rows` correct, Mod-X's cognition alignment: a row for which the teacher puts another column above the own one is
    replaced by the student's own, which is to say that it adds neither value nor gradient; the mean still counts it.
    Each direction judges its own rows. A tie is no mistake, for captions occur twice in a batch (the released code
    takes whichever column its argmax returns). Without `use_scale` rows are cosines, as in the released code.
    """

    def __init__(self, spec: specs.SimilarityRows) -> None:
        self.spec = spec
        self.needs = needs(spec.teacher)

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean of the two directions' divergences; 0 with zero gradient when student = teacher."""
        spec = self.spec
        soft = RowDivergence(0.0, spec.temperature, spec.rows == "correct", spec.drop_diagonal)
        scaled = names if spec.use_scale else {**names, **self._unscaled(names)}
        i2t, t2i = both_directions(soft, scaled, spec.teacher, own_ids(names, context), context, spec.gather)
        # ranks' losses are averaged, so that a rank's sum counts once for every rank
        rows = len(names["image_features"]) * context.world_size if spec.reduction == "sum" else 1
        factor = rows * spec.temperature**2
        return Loss((i2t + t2i) / 2 * factor, {"i2t": i2t * factor, "t2i": t2i * factor})

    def _unscaled(self, names: Names) -> dict[str, Tensor]:
        one = torch.ones_like(names["logit_scale"].detach())
        return {"logit_scale": one, f"{self.spec.teacher}.logit_scale": one}


@dataclass(frozen=True)
class RowDivergence(Divergence):
    """KL(teacher's row softmax || student's) summed over the rows that take part; ids tell a row's own column."""

    correct_only: bool
    drop_diagonal: bool

    def __call__(
        self, student_RD: Tensor, teacher_RD: Tensor, id_R: Tensor, student_GD: Tensor, teacher_GD: Tensor,
        id_G: Tensor, student_scale: Tensor, teacher_scale: Tensor,
    ) -> Tensor:  # fmt: skip
        """Rows' features and ids against all columns'; gradients go to the student's."""
        is_own_RG = id_R[:, None] == id_G[None, :]
        student_RG = self._logits(student_RD @ student_GD.T, student_scale, is_own_RG)
        with torch.no_grad():
            similarity_RG = teacher_RD @ teacher_GD.T
            target_RG = self._logits(similarity_RG, teacher_scale, is_own_RG).softmax(dim=1)
        losses_R = F.kl_div(student_RG.log_softmax(dim=1), target_RG, reduction="none").sum(dim=1)
        return (losses_R * is_correct(similarity_RG, is_own_RG)).sum() if self.correct_only else losses_R.sum()

    def _logits(self, similarity_RG: Tensor, scale: Tensor, is_own_RG: Tensor) -> Tensor:
        logits_RG = similarity_RG * (scale / self.temperature)
        return logits_RG.masked_fill(is_own_RG, _LEFT_OUT) if self.drop_diagonal else logits_RG


def is_correct(similarity_RG: Tensor, is_own_RG: Tensor) -> Tensor:
    """(R,) whether no column lies above a row's own."""
    own_R, best_other_R = (
        similarity_RG.masked_fill(left_out_RG, -math.inf).amax(dim=1) for left_out_RG in (~is_own_RG, is_own_RG)
    )
    return own_R > best_other_R - _TIE
