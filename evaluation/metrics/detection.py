"""How well a score tells samples of another distribution: AUROC, and FPR95 under two rules.

A score is higher for what looks more out of distribution (OOD); a threshold accepts what is not above it. Rows have a
column `is_out` (1 for OOD, 0 for in distribution, ID) and one per score.
Legend: U distinct scores in ascending order, G clusters, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics.base import Better, Share, Statistic, Unit, sums_by_cluster
from evaluation.rows import Doubles, Ints, Rows

# ID recall asked of FPR95, as 19 / 20: sums of whole weights then compare exactly
_SHARE, _OF = 19, 20


@dataclass(frozen=True)
class AUROC(Share):
    """Chance that an OOD sample scores above an ID one; equal scores count half (scikit-learn's `roc_auc_score`)."""

    name: str
    score: str
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted share of such pairs."""
        return _over_scores(rows, self.score, _auroc)

    def chance(self, rows: Rows) -> float:
        """One half."""
        del rows
        return 0.5


@dataclass(frozen=True)
class FPR95(Share):
    """Share of OOD accepted at the smallest threshold, among the scores, that accepts at least 95 % of ID."""

    name: str
    score: str
    unit: Unit = "fraction"
    better: Better = "lower"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted share."""
        return _over_scores(rows, self.score, _fpr95)

    def chance(self, rows: Rows) -> float:
        """k / (n + 1), where k of n ID samples are 95 %: where the k-th of them lies among exchangeable scores."""
        inside = int((rows.numbers["is_out"] == 0).sum())
        return -(-_SHARE * inside // _OF) / (inside + 1)


@dataclass(frozen=True)
class ClosestFPR95(Share):
    """The same at the threshold whose share of accepted ID is closest to 95 %, above or below (COOkeD, and before it
    the baseline of Hendrycks & Gimpel).

    Of two that are equally close the one that accepts more ID; of those that accept the same ID, less than all of it,
    the loosest. On few ID samples it differs from `FPR95` by up to a step of the ID recall.
    """

    name: str
    score: str
    unit: Unit = "fraction"
    better: Better = "lower"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted share."""
        return _over_scores(rows, self.score, _closest_fpr95)

    def chance(self, rows: Rows) -> float:
        """(k + 1) / (n + 1), where k of n ID samples are closest to 95 %: OOD up to the next ID sample is accepted."""
        inside = int((rows.numbers["is_out"] == 0).sum())
        closest = (2 * _SHARE * inside + _OF) // (2 * _OF)
        return min(closest + 1, inside) / (inside + 1)


def _over_scores(rows: Rows, score: str, measure: Callable[[Doubles, Doubles], Doubles]) -> Statistic:
    """`measure` of the weights of ID and OOD at each distinct score (U, R); NaN for a draw that lacks one of them."""
    group_Q: Ints = np.unique(rows.numbers[score], return_inverse=True)[1].astype(np.int64)
    is_out_Q = np.asarray(rows.numbers["is_out"], np.float64)
    inside_UG = sums_by_cluster(1 - is_out_Q, group_Q, rows.clusters_Q)
    outside_UG = sums_by_cluster(is_out_Q, group_Q, rows.clusters_Q)

    def value(weights_RG: Doubles) -> Doubles:
        weights_GR = np.ascontiguousarray(weights_RG.T)
        inside_UR, outside_UR = inside_UG @ weights_GR, outside_UG @ weights_GR
        is_defined_R = (inside_UR.sum(axis=0) > 0) & (outside_UR.sum(axis=0) > 0)
        value_R = np.full(len(weights_RG), np.nan)
        value_R[is_defined_R] = measure(inside_UR[:, is_defined_R], outside_UR[:, is_defined_R])
        return value_R

    return value


def _auroc(inside_UR: Doubles, outside_UR: Doubles) -> Doubles:
    below_UR = inside_UR.cumsum(axis=0) - inside_UR / 2
    return np.asarray((outside_UR * below_UR).sum(axis=0) / (inside_UR.sum(axis=0) * outside_UR.sum(axis=0)))


def _fpr95(inside_UR: Doubles, outside_UR: Doubles) -> Doubles:
    accepted_UR = inside_UR.cumsum(axis=0)
    first_R = (_OF * accepted_UR >= _SHARE * accepted_UR[-1]).argmax(axis=0)
    return _accepted_share(outside_UR, first_R)


def _closest_fpr95(inside_UR: Doubles, outside_UR: Doubles) -> Doubles:
    accepted_UR = inside_UR.cumsum(axis=0)
    distance_UR = np.abs(_OF * accepted_UR - _SHARE * accepted_UR[-1])
    distance_UR[1:][accepted_UR[:-1] == accepted_UR[-1]] = np.inf  # all ID is accepted already
    last_R = len(distance_UR) - 1 - distance_UR[::-1].argmin(axis=0)
    return _accepted_share(outside_UR, last_R)


def _accepted_share(outside_UR: Doubles, threshold_R: Any) -> Doubles:
    accepted_UR = outside_UR.cumsum(axis=0)
    return np.asarray(np.take_along_axis(accepted_UR, threshold_R[None], axis=0)[0] / accepted_UR[-1])
