"""What a head is: it learns class scores from labelled image_features, and chooses its own hyper-parameters.

A head never sees a pair that is scored: it fits on one split and chooses on another.
Legend: N pairs to fit on, D embedding, C classes, B block of pictures.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation.rows import Doubles, Ints

# Tip-Adapter and GDA write zero-shot logits as 100 cosine, and their grids of alpha are made for that.
METHOD_SCALE = 100.0
# Logit of a class that a head cannot know: a probability of 0, never predicted, finite.
NEVER = -1e9

Select = tuple[Floats, Ints]
Chosen = Mapping[str, Any]


class Head(Protocol):
    """Fit once, then score blocks of pictures."""

    @property
    def tolerance(self) -> float:
        """Differences of two logits below this are rounding, not an opinion."""

    def fit(
        self, images_ND: Floats, labels_N: Ints, classes_CD: Floats, select: Select, scale: float = METHOD_SCALE, *,
        pictures_N: Ints | None = None, refit: bool = True,
    ) -> Chosen:  # fmt: skip
        """Learn from labelled features; hyper-parameters are those with the best top-1 on `select`.

        `labels_N` are rows of `classes_CD`, the class features of zero-shot, whose logits are `scale` times the cosine.
        `pictures_N` says which rows are views of one picture; None: each is a picture of its own. `refit`: a head
        that gains by it learns from `select` too once it has chosen. What is returned holds the hyper-parameters,
        `select_top1`, and `candidates`: a list [hyper-parameters ..., top-1 on select] of all that was tried.

        Raises:
            EvaluationError: fewer than two classes to fit on, or nothing to choose on.
        """

    def logits(self, images_BD: Floats) -> Doubles:
        """Scores (B, C); their softmax is the head's probability."""


def require_learnable(images_ND: Floats, labels_N: Ints, select: Select) -> None:
    """Refuse what nothing can be learned from.

    Raises:
        EvaluationError: fewer than two classes to fit on, or nothing to choose on.
    """
    assert len(images_ND) == len(labels_N), f"{len(images_ND)} features, {len(labels_N)} labels"
    assert len(select[0]) == len(select[1]), f"{len(select[0])} features to choose on, {len(select[1])} labels"
    classes = len(np.unique(labels_N))
    if classes < 2:
        raise EvaluationError(
            f"fit: {len(labels_N)} pairs of {classes} class{'es' * (classes != 1)}; fit a head on at least two classes"
        )
    if not len(select[1]):
        raise EvaluationError("select: no pair to choose hyper-parameters on; name a split that has some")
