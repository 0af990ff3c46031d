"""Linear probe: multinomial logistic regression on frozen features, L2 strength chosen on the select split.

Minimises mean cross entropy + weight_decay / 2 |W|^2, the intercept free: scikit-learn's LogisticRegression with
C = 1 / (N weight_decay). L-BFGS runs along the eigenvectors of the features' covariance, each scaled by the curvature
of the loss along it: the same optimum in a third of the steps or fewer, because image_features lie in a narrow cone.
Legend: N pairs, D embedding, E directions in which the features differ, C classes, B block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from data.features import Floats
from evaluation import specs
from evaluation.heads.base import METHOD_SCALE, NEVER, Chosen, Select, require_learnable
from evaluation.heads.selection import best_of, coarse_to_fine, count_correct
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Ints

_BLOCK_SCORES = 1 << 21
_LINE_SEARCH_STEPS = 10  # near the optimum the loss of float32 features is noise, which no longer search gets below


class Weights(NamedTuple):
    """logits = images @ weights + bias; classes that were not learned have weights 0 and bias NEVER."""

    weights: Doubles  # (D, C)
    bias: Doubles  # (C,)
    converged: bool = True

    def logits(self, images_BD: Floats) -> Doubles:
        """Scores (B, C)."""
        return np.asarray(images_BD @ self.weights + self.bias)

    @property
    def tolerance(self) -> float:
        """What a feature that is off by rounding can move a logit."""
        return TIE_TOLERANCE * max(1.0, float(np.linalg.norm(self.weights, axis=0).max()))


class LinearProbe:
    """Fit a path of strengths with warm starts, choose one, fit again on both splits (as CLIP_benchmark does).

    Holds the features it fits on in memory twice, but no (N, C) matrix.
    """

    def __init__(self, spec: specs.LinearProbe) -> None:
        self.spec = spec
        self._weights: Weights | None = None

    @property
    def tolerance(self) -> float:
        """What a feature that is off by rounding can move a logit."""
        return self._fitted().tolerance

    def fit(
        self, images_ND: Floats, labels_N: Ints, classes_CD: Floats, select: Select, scale: float = METHOD_SCALE, *,
        pictures_N: Ints | None = None, refit: bool = True,
    ) -> Chosen:  # fmt: skip
        """Choose `weight_decay` on `select`, of equals the largest; with `refit`, learn from both splits at it.

        Classes without a pair to fit on are never predicted. `not_converged` counts trials that ran out of iterations.
        """
        del scale, pictures_N
        require_learnable(images_ND, labels_N, select)
        path, most = dict[float, Weights](), self.spec.max_iterations
        problem = Problem(images_ND, labels_N, len(classes_CD))

        def top1(weight_decay: float) -> float:
            near = min(path, key=lambda other: abs(np.log(other / weight_decay)), default=None)
            found = problem.solve(weight_decay, most, None if near is None else path[near])
            path[weight_decay] = found
            return _correct(found, select) / len(select[1])

        candidates = coarse_to_fine(self.spec.weight_decays, top1)
        best = best_of(candidates)
        weight_decay = best.values[0]
        self._weights = path[weight_decay]
        tried = [*path.values()]
        if refit:
            both_ND, both_N = np.concatenate([images_ND, select[0]]), np.concatenate([labels_N, select[1]])
            self._weights = Problem(both_ND, both_N, len(classes_CD)).solve(weight_decay, most, self._weights)
            tried.append(self._weights)
        return {
            "weight_decay": weight_decay, "at_end_of_grid": best in (candidates[0], candidates[-1]),
            "select_top1": best.top1, "refit_on_both": refit,
            "not_converged": sum(not one.converged for one in tried),
            "candidates": [[*candidate.values, candidate.top1] for candidate in candidates],
        }  # fmt: skip

    def logits(self, images_BD: Floats) -> Doubles:
        """Scores (B, C)."""
        return self._fitted().logits(images_BD)

    def _fitted(self) -> Weights:
        assert self._weights is not None, "fit first"
        return self._weights


class Problem:
    """One set of labelled features, to be solved at any strength."""

    def __init__(self, images_ND: Floats, labels_N: Ints, classes: int) -> None:
        """`labels_N` are below `classes`; not every class need have a pair."""
        self._classes = classes
        self._present_C, self._labels_N = np.unique(labels_N, return_inverse=True)
        # with a free intercept, moving all features moves only the intercept
        self._mean_D = images_ND.mean(axis=0, dtype=np.float64)
        centred_ND = (images_ND - self._mean_D).astype(images_ND.dtype)
        spread_D, axes_DD = np.linalg.eigh((centred_ND.T @ centred_ND).astype(np.float64) / len(images_ND))
        # the optimum has no weight where the features do not differ (few shots: all but N directions)
        kept_D = spread_D > np.finfo(images_ND.dtype).eps * spread_D[-1]
        self._spread_E, self._axes_DE = spread_D[kept_D], axes_DD[:, kept_D]
        self._images_NE = centred_ND @ self._axes_DE.astype(images_ND.dtype)

    def solve(self, weight_decay: float, max_iterations: int, start: Weights | None = None) -> Weights:
        """The optimum for a strength; not `converged` where the iterations ran out."""
        classes, directions = len(self._present_C), len(self._spread_E)
        # curvature of the cross entropy along a direction, at equal probabilities: its spread / C
        scale_E1 = 1 / np.sqrt(self._spread_E / classes + weight_decay)[:, None]
        scale_bias = np.sqrt(classes)

        def unpacked(point: Doubles) -> tuple[Doubles, Doubles]:
            weights_EC = point[classes:].reshape(directions, classes) * scale_E1
            return weights_EC, point[:classes] * scale_bias

        def objective(point: Doubles) -> tuple[float, Doubles]:
            weights_EC, bias_C = unpacked(point)
            loss, slope_EC, slope_C = self._cross_entropy(weights_EC, bias_C)
            slope_EC = (slope_EC + weight_decay * weights_EC) * scale_E1
            penalty = weight_decay / 2 * float((weights_EC**2).sum())
            return loss + penalty, np.concatenate([slope_C * scale_bias, slope_EC.ravel()])

        weights_EC, bias_C = self._rotated(start)
        point = np.concatenate([bias_C / scale_bias, (weights_EC / scale_E1).ravel()])
        # the loss itself is only known to the precision of the features
        options = {
            "maxiter": max_iterations, "maxfun": 10 * max_iterations, "maxls": _LINE_SEARCH_STEPS,
            "ftol": max(1e-13, float(np.finfo(self._images_NE.dtype).eps)), "gtol": 1e-8,
        }  # fmt: skip
        found = minimize(objective, point, jac=True, method="L-BFGS-B", options=options)
        return self._restored(*unpacked(found.x), found.status != 1)

    def _cross_entropy(self, weights_EC: Doubles, bias_C: Doubles) -> tuple[float, Doubles, Doubles]:
        """Mean over pairs, and its slopes."""
        kind, pairs = self._images_NE.dtype, len(self._images_NE)
        weights_EC, bias_C = weights_EC.astype(kind), bias_C.astype(kind)
        loss, slope_EC, slope_C = 0.0, np.zeros(weights_EC.shape), np.zeros(len(bias_C))
        for images_BE, labels_B in self._blocks():
            rows_B = np.arange(len(labels_B))
            error_BC = images_BE @ weights_EC + bias_C
            error_BC -= error_BC.max(axis=1, keepdims=True)
            own_B = error_BC[rows_B, labels_B]
            np.exp(error_BC, out=error_BC)
            total_B1 = error_BC.sum(axis=1, keepdims=True)
            loss += float((np.log(total_B1[:, 0]) - own_B).sum(dtype=np.float64))
            error_BC /= total_B1
            error_BC[rows_B, labels_B] -= 1
            slope_EC += images_BE.T @ error_BC
            slope_C += error_BC.sum(axis=0, dtype=np.float64)
        return loss / pairs, slope_EC / pairs, slope_C / pairs

    def _blocks(self) -> Iterator[tuple[Floats, Ints]]:
        size = max(1, _BLOCK_SCORES // len(self._present_C))
        for at in range(0, len(self._labels_N), size):
            yield self._images_NE[at : at + size], self._labels_N[at : at + size]

    def _rotated(self, start: Weights | None) -> tuple[Doubles, Doubles]:
        if start is None:
            return np.zeros((len(self._spread_E), len(self._present_C))), np.zeros(len(self._present_C))
        weights_DC, bias_C = start.weights[:, self._present_C], start.bias[self._present_C]
        bias_C = np.where(bias_C == NEVER, start.bias[start.bias != NEVER].min(), bias_C)
        return self._axes_DE.T @ weights_DC, bias_C + self._mean_D @ weights_DC

    def _restored(self, weights_EC: Doubles, bias_C: Doubles, converged: bool) -> Weights:
        weights_DC = np.zeros((len(self._axes_DE), self._classes))
        weights_DC[:, self._present_C] = self._axes_DE @ weights_EC
        all_C = np.full(self._classes, NEVER)
        all_C[self._present_C] = bias_C - self._mean_D @ weights_DC[:, self._present_C]
        return Weights(weights_DC, all_C, converged)


def _correct(weights: Weights, select: Select) -> int:
    images_SD, labels_S = select
    size = max(1, _BLOCK_SCORES // len(weights.bias))
    return sum(
        count_correct(weights.logits(images_SD[at : at + size]), labels_S[at : at + size], weights.tolerance)
        for at in range(0, len(labels_S), size)
    )
