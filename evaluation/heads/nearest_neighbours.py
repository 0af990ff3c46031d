"""k-nearest neighbours: a vote of the most similar pictures, each weighted by exp(cosine / temperature).

Source: Wu et al. 2018 (instance discrimination), section 3.4.
Legend: N pairs, D embedding, C classes, B block of pictures, K neighbours, nearest first.
"""

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation import specs
from evaluation.heads.base import METHOD_SCALE, Chosen, Select, require_learnable
from evaluation.heads.selection import Candidate, best_of, count_correct
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Ints

_BLOCK_SCORES = 1 << 23
_NO_VOTE = np.finfo(np.float64).tiny  # its logarithm is finite, so that classes without a vote are tied


class NearestNeighbours:
    """Remembers the pairs it is fitted on."""

    def __init__(self, spec: specs.NearestNeighbours) -> None:
        self.spec = spec
        self.tolerance = TIE_TOLERANCE / spec.temperature

    def fit(
        self, images_ND: Floats, labels_N: Ints, classes_CD: Floats, select: Select, scale: float = METHOD_SCALE, *,
        pictures_N: Ints | None = None, refit: bool = True,
    ) -> Chosen:  # fmt: skip
        """Choose `k` on `select`, of equals the largest; every k above the number of pairs is skipped.

        Raises:
            EvaluationError: every k is.
        """
        del scale, pictures_N, refit
        require_learnable(images_ND, labels_N, select)
        self._images_ND, self._labels_N, self._classes = images_ND, labels_N, len(classes_CD)
        ks = sorted({k for k in self.spec.ks if k <= len(labels_N)}, reverse=True)
        if not ks:
            raise EvaluationError(
                f"nearest_neighbours.ks: {min(self.spec.ks)} is the smallest, but there are {len(labels_N)} pairs to "
                "fit on; add a smaller one"
            )
        correct = dict.fromkeys(ks, 0)
        for images_BD, labels_B in self._blocks(*select):
            cosines_BK, neighbours_BK = self._nearest(images_BD, ks[0])
            for k in ks:
                votes_BC = self._votes(cosines_BK[:, :k], neighbours_BK[:, :k])
                correct[k] += count_correct(votes_BC, labels_B, self.tolerance)
        candidates = [Candidate((k,), correct[k] / len(select[1])) for k in ks]
        best = best_of(candidates)
        self._k = int(best.values[0])
        return {
            "k": self._k, "select_top1": best.top1,
            "candidates": [[*candidate.values, candidate.top1] for candidate in candidates],
        }  # fmt: skip

    def logits(self, images_BD: Floats) -> Doubles:
        """Logarithm of each class's share of the votes (B, C)."""
        empty = np.zeros(len(images_BD), np.int64)
        parts = [self._votes(*self._nearest(part_BD, self._k)) for part_BD, _ in self._blocks(images_BD, empty)]
        return np.concatenate(parts) if parts else np.zeros((0, self._classes))

    def _blocks(self, images_BD: Floats, labels_B: Ints) -> list[tuple[Floats, Ints]]:
        size = max(1, _BLOCK_SCORES // max(len(self._labels_N), self._classes))
        starts = range(0, len(images_BD), size)
        return [(images_BD[at : at + size], labels_B[at : at + size]) for at in starts]

    def _nearest(self, images_BD: Floats, k: int) -> tuple[Floats, Ints]:
        cosines_BN = images_BD @ self._images_ND.T
        nearest_BK = np.argpartition(-cosines_BN, k - 1, axis=1)[:, :k]
        nearest_BK.sort(axis=1)  # equally near: in the order of the pairs
        cosines_BK = np.take_along_axis(cosines_BN, nearest_BK, axis=1)
        order_BK = np.argsort(-cosines_BK, axis=1, kind="stable")
        return np.take_along_axis(cosines_BK, order_BK, axis=1), np.take_along_axis(nearest_BK, order_BK, axis=1)

    def _votes(self, cosines_BK: Floats, neighbours_BK: Ints) -> Doubles:
        # relative to the nearest: exp(1 / temperature) alone would overflow at small temperatures
        weight_BK = np.exp((cosines_BK.astype(np.float64) - cosines_BK[:, :1]) / self.spec.temperature)
        rows_B1 = np.arange(len(cosines_BK))[:, None] * self._classes
        cells = (rows_B1 + self._labels_N[neighbours_BK]).ravel()
        votes_BC = np.bincount(cells, weight_BK.ravel(), len(cosines_BK) * self._classes).reshape(-1, self._classes)
        return np.asarray(np.log(np.maximum(votes_BC / votes_BC.sum(axis=1, keepdims=True), _NO_VOTE)))
