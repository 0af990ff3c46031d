"""How image_features and text_features of pairs lie: the modality gap and the uniformity of each modality.

These come from features, not from columns of rows: a metric holds the features of the rows it is asked about.
Legend: Q samples, G clusters, P samples that uniformity looks at, D embedding, R resamples.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.features import Floats
from evaluation.metrics.base import Better, Statistic, Unit, sums_by_cluster
from evaluation.rows import Doubles, Ints, Rows


@dataclass(frozen=True, eq=False)
class Gap:
    """Length of the difference between the mean image and the mean text feature (Liang et al. 2022)."""

    is_inflated: ClassVar[bool] = True
    name: str
    images: Floats  # (Q, D)
    texts: Floats  # (Q, D)
    unit: Unit = "number"
    better: Better = "neither"

    def statistic(self, rows: Rows) -> Statistic:
        """Length of the weighted mean of image - text."""
        differences_QD = self.images - self.texts
        samples = np.arange(len(rows))
        sums_GD = sums_by_cluster(np.ones(len(rows)), rows.clusters_Q, samples) @ differences_QD.astype(np.float64)
        count_G = np.bincount(rows.clusters_Q).astype(np.float64)

        def value(weights_RG: Doubles) -> Doubles:
            return np.asarray(np.linalg.norm(weights_RG @ sums_GD, axis=1) / (weights_RG @ count_G))

        return value

    def chance(self, rows: Rows) -> float | None:
        """Not defined."""
        del rows
        return None

    def limits(self, rows: Rows) -> tuple[float, float]:
        """0 to 2, for features of length 1."""
        del rows
        return 0.0, 2.0


@dataclass(frozen=True, eq=False)
class Uniformity:
    """log of the mean of exp(-2 |x - y|^2) over pairs of different samples (Wang & Isola 2020, t = 2).

    0 when all features are equal, lower the more evenly they fill the sphere. `samples` are rows; a sample drawn
    twice is no pair with itself, which would pull every draw towards 0.
    """

    name: str
    features: Floats  # (P, D)
    samples: Ints  # (P,)
    unit: Unit = "number"
    better: Better = "lower"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted mean over pairs; NaN for a draw with fewer than two samples."""
        own_G, of_P = np.unique(rows.clusters_Q[self.samples], return_inverse=True)
        kernel_GG, pairs_GG = _sums_of_pairs(np.asarray(self.features, np.float64), of_P.astype(np.int64))

        def value(weights_RG: Doubles) -> Doubles:
            drawn_RG = weights_RG[:, own_G]
            near_R, count_R = (((drawn_RG @ sums_GG) * drawn_RG).sum(axis=1) for sums_GG in (kernel_GG, pairs_GG))
            mean_R = np.divide(near_R, count_R, out=np.full_like(near_R, np.nan), where=count_R > 0)
            return np.asarray(np.log(mean_R))

        return value

    def chance(self, rows: Rows) -> float | None:
        """Not defined."""
        del rows
        return None

    def limits(self, rows: Rows) -> tuple[float, float]:
        """-8 (all antipodal) to 0 (all equal)."""
        del rows
        return -8.0, 0.0


def principal_components(points_PD: Floats, components: int = 2) -> tuple[Doubles, Doubles]:
    """Centred points along their first principal components (P, K), and the share of variance of each (K,).

    Signs are fixed: the largest coordinate of every direction is positive.
    """
    centred_PD = np.asarray(points_PD, np.float64) - np.asarray(points_PD, np.float64).mean(axis=0)
    _, lengths, directions_KD = np.linalg.svd(centred_PD, full_matrices=False)
    directions_KD = directions_KD[:components]
    largest_K1 = np.take_along_axis(directions_KD, np.abs(directions_KD).argmax(axis=1)[:, None], axis=1)
    directions_KD = directions_KD * np.where(largest_K1 < 0, -1.0, 1.0)
    shares = lengths[:components] ** 2 / max(float((lengths**2).sum()), 1e-300)
    return np.asarray(centred_PD @ directions_KD.T), np.asarray(shares)


def _sums_of_pairs(features_PD: Doubles, of_P: Ints) -> tuple[Doubles, Doubles]:
    """Sums of the kernel and numbers of pairs of different samples, by both samples' clusters (G, G)."""
    squared_P = (features_PD**2).sum(axis=1)
    distances_PP = squared_P[:, None] + squared_P - 2 * features_PD @ features_PD.T
    kernel_PP = np.exp(-2 * np.maximum(distances_PP, 0))
    np.fill_diagonal(kernel_PP, 0)
    members_GP = sums_by_cluster(np.ones(len(of_P)), of_P, np.arange(len(of_P)))
    count_G = np.bincount(of_P).astype(np.float64)
    return np.asarray((members_GP @ (members_GP @ kernel_PP).T).T), np.outer(count_G, count_G) - np.diag(count_G)
