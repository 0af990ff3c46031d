"""Tip-Adapter, training-free: zero-shot, and the shots' votes by how near they are.

Source: Zhang et al., ECCV 2022, equations 3 to 6; the grid as in its released code, with the upper ends of the spec.
Legend: K keys (one a picture), D embedding, C classes, B block of pictures, P classes that have a key.
"""

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation import specs
from evaluation.heads.base import METHOD_SCALE, Chosen, Select, require_learnable
from evaluation.heads.selection import Candidate, best_of, count_correct
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Ints

_BLOCK_SCORES = 1 << 22


class TipAdapter:
    """logits = scale cosine(picture, class) + alpha sum over keys of exp(-beta (1 - cosine(picture, key)))."""

    def __init__(self, spec: specs.TipAdapter) -> None:
        self.spec = spec

    def fit(
        self, images_ND: Floats, labels_N: Ints, classes_CD: Floats, select: Select, scale: float = METHOD_SCALE, *,
        pictures_N: Ints | None = None, refit: bool = True,
    ) -> Chosen:  # fmt: skip
        """Choose `alpha` and `beta` on `select`, of equals the smallest alpha, then beta: the nearest to zero-shot.

        A key is the normalised mean of a picture's views. A class without a pair to fit on has zero-shot alone.
        """
        del refit
        require_learnable(images_ND, labels_N, select)
        pictures_N = np.arange(len(labels_N)) if pictures_N is None else pictures_N
        keys_KD, labels_K = mean_keys(images_ND, labels_N, pictures_N)
        order_K = np.argsort(labels_K, kind="stable")
        self._keys_KD = keys_KD[order_K]
        self._present_P, self._first_P = np.unique(labels_K[order_K], return_index=True)
        self._zero_shot_DC = scale * classes_CD.T.astype(np.float64)
        self.tolerance = TIE_TOLERANCE * max(1.0, scale)
        alphas, betas = (np.linspace(*ends, self.spec.steps) for ends in (self.spec.alphas, self.spec.betas))
        correct = np.zeros((len(alphas), len(betas)), np.int64)
        for images_BD, labels_B in self._blocks(*select):
            zero_shot_BC, distances_BK = images_BD @ self._zero_shot_DC, self._distances(images_BD)
            for column, beta in enumerate(betas):
                votes_BP = self._votes(distances_BK, beta)
                for row, alpha in enumerate(alphas):
                    scores_BC = zero_shot_BC.copy()
                    scores_BC[:, self._present_P] += alpha * votes_BP
                    correct[row, column] += count_correct(scores_BC, labels_B, self.tolerance)
        candidates = [
            Candidate((float(alpha), float(beta)), int(correct[row, column]) / len(select[1]))
            for row, alpha in enumerate(alphas) for column, beta in enumerate(betas)
        ]  # fmt: skip
        best = best_of(candidates)
        self._alpha, self._beta = best.values
        return {
            "alpha": self._alpha, "beta": self._beta, "zero_shot_scale": scale, "select_top1": best.top1,
            "candidates": [[*candidate.values, candidate.top1] for candidate in candidates],
        }  # fmt: skip

    def logits(self, images_BD: Floats) -> Doubles:
        """Scores (B, C)."""
        scores_BC: Doubles = images_BD @ self._zero_shot_DC
        start = 0
        for part_BD, _ in self._blocks(images_BD, np.zeros(len(images_BD), np.int64)):
            votes_BP = self._votes(self._distances(part_BD), self._beta)
            scores_BC[start : start + len(part_BD), self._present_P] += self._alpha * votes_BP
            start += len(part_BD)
        return scores_BC

    def _blocks(self, images_BD: Floats, labels_B: Ints) -> list[tuple[Floats, Ints]]:
        size = max(1, _BLOCK_SCORES // max(len(self._keys_KD), self._zero_shot_DC.shape[1]))
        starts = range(0, len(images_BD), size)
        return [(images_BD[at : at + size], labels_B[at : at + size]) for at in starts]

    def _distances(self, images_BD: Floats) -> Floats:
        return np.asarray(1 - images_BD @ self._keys_KD.T, np.float32)

    def _votes(self, distances_BK: Floats, beta: float) -> Doubles:
        """Votes (B, P): keys are sorted by class, so a class's are neighbours."""
        return np.add.reduceat(np.exp(-np.float32(beta) * distances_BK), self._first_P, axis=1).astype(np.float64)


def mean_keys(images_ND: Floats, labels_N: Ints, pictures_N: Ints) -> tuple[Floats, Ints]:
    """(K, D) normalised mean feature of each picture's views, and its label (K,).

    Raises:
        EvaluationError: the views of a picture cancel out.
    """
    _, first_K, picture_N = np.unique(pictures_N, return_index=True, return_inverse=True)
    keys_KD = np.zeros((len(first_K), images_ND.shape[1]))
    np.add.at(keys_KD, picture_N, images_ND)
    norm_K1 = np.linalg.norm(keys_KD, axis=1, keepdims=True)
    if not norm_K1.all():
        raise EvaluationError(f"fit: the views of picture {int(norm_K1.argmin())} cancel out; the checkpoint diverged")
    return np.asarray(keys_KD / norm_K1, np.float32), labels_N[first_K]
