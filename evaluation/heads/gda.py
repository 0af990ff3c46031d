"""GDA: Gaussian discriminant analysis added to zero-shot, without training.

Source: Wang et al., "A hard-to-beat baseline for training-free CLIP-based adaptation", ICLR 2024; the precision is that
of its released code. Legend: N pairs (every view is one), D embedding, C classes, B block of pictures.
"""

import numpy as np

from data.features import Floats
from evaluation import specs
from evaluation.heads.base import METHOD_SCALE, Chosen, Select, require_learnable
from evaluation.heads.selection import Candidate, best_of, count_correct
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Ints

_BLOCK_PAIRS = 4096


class GDA:
    """logits = scale cosine + alpha (images W + b), with W and b of Gaussians of one covariance and equal priors."""

    def __init__(self, spec: specs.GDA) -> None:
        self.spec = spec

    def fit(
        self, images_ND: Floats, labels_N: Ints, classes_CD: Floats, select: Select, scale: float = METHOD_SCALE, *,
        pictures_N: Ints | None = None, refit: bool = True,
    ) -> Chosen:  # fmt: skip
        """Choose `alpha` on `select`, of equals the smallest: the nearest to zero-shot.

        A class without a pair to fit on gets the mean of the other classes' means, so that it wins only where zero-shot
        names it and no known class fits better than their average.
        """
        del pictures_N, refit
        require_learnable(images_ND, labels_N, select)
        means_CD = class_means(images_ND, labels_N, len(classes_CD))
        precision_DD = ridge_precision(within_covariance(images_ND, labels_N, means_CD), len(images_ND))
        self._zero_shot_DC = scale * classes_CD.T.astype(np.float64)
        self._weights_DC, self._bias_C = discriminant(means_CD, precision_DD)
        alphas = sorted(self.spec.alphas)
        correct = dict.fromkeys(alphas, 0)
        for at in range(0, len(select[1]), _BLOCK_PAIRS):
            images_BD, labels_B = select[0][at : at + _BLOCK_PAIRS], select[1][at : at + _BLOCK_PAIRS]
            zero_shot_BC, gaussian_BC = images_BD @ self._zero_shot_DC, images_BD @ self._weights_DC + self._bias_C
            for alpha in alphas:
                scores_BC = zero_shot_BC + alpha * gaussian_BC
                correct[alpha] += count_correct(scores_BC, labels_B, self._tolerance(alpha))
        candidates = [Candidate((alpha,), correct[alpha] / len(select[1])) for alpha in alphas]
        best = best_of(candidates)
        self._alpha = best.values[0]
        self.tolerance = self._tolerance(self._alpha)
        return {
            "alpha": self._alpha, "zero_shot_scale": scale, "select_top1": best.top1,
            "candidates": [[*candidate.values, candidate.top1] for candidate in candidates],
        }  # fmt: skip

    def logits(self, images_BD: Floats) -> Doubles:
        """Scores (B, C)."""
        gaussian_BC = images_BD @ self._weights_DC + self._bias_C
        return np.asarray(images_BD @ self._zero_shot_DC + self._alpha * gaussian_BC)

    def _tolerance(self, alpha: float) -> float:
        # what a feature that is off by rounding can move a logit
        return TIE_TOLERANCE * float(np.linalg.norm(self._zero_shot_DC + alpha * self._weights_DC, axis=0).max())


def class_means(images_ND: Floats, labels_N: Ints, classes: int) -> Doubles:
    """Mean of each class (C, D); of a class without pairs, the mean of the others' means."""
    sums_CD, counts_C = np.zeros((classes, images_ND.shape[1])), np.bincount(labels_N, minlength=classes)
    np.add.at(sums_CD, labels_N, images_ND)
    means_CD = sums_CD / np.maximum(counts_C, 1)[:, None]
    means_CD[counts_C == 0] = means_CD[counts_C > 0].mean(axis=0)
    return np.asarray(means_CD)


def within_covariance(images_ND: Floats, labels_N: Ints, means_CD: Doubles) -> Doubles:
    """Unbiased covariance (D, D) of the pairs about the mean of their class, as the paper divides: by N - 1."""
    sum_DD = np.zeros((images_ND.shape[1],) * 2)
    for at in range(0, len(labels_N), _BLOCK_PAIRS):
        centred_BD = images_ND[at : at + _BLOCK_PAIRS] - means_CD[labels_N[at : at + _BLOCK_PAIRS]]
        sum_DD += centred_BD.T @ centred_BD
    return np.asarray(sum_DD / (len(labels_N) - 1))


def ridge_precision(covariance_DD: Doubles, pairs: int) -> Doubles:
    """D pinv((N - 1) S + tr(S) I), the paper's ridge after Kubokawa and Srivastava.

    It is 0, which leaves zero-shot, where no pair differs from the mean of its class.
    """
    trace, size = float(np.trace(covariance_DD)), len(covariance_DD)
    # one view of one picture a class: nothing to learn of the spread. Rounding of means is no spread either
    if trace <= size * np.finfo(np.float64).eps ** 2:
        return np.zeros_like(covariance_DD)
    return np.asarray(size * np.linalg.pinv((pairs - 1) * covariance_DD + trace * np.eye(size), hermitian=True))


def discriminant(means_CD: Doubles, precision_DD: Doubles) -> tuple[Doubles, Doubles]:
    """W (D, C) and b (C,) of the log posterior of Gaussians with one precision and equal priors, but for a constant."""
    weights_DC = precision_DD @ means_CD.T
    bias_C = -np.log(len(means_CD)) - (means_CD * weights_DC.T).sum(axis=1) / 2
    return weights_DC, bias_C
