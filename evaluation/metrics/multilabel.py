"""Mean average precision of several classes a picture.

Legend: Q samples, G clusters, C classes, R resamples, S segments of one class's ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics.base import Better, Metric, Share, Statistic, Unit, sums_by_cluster
from evaluation.rows import Doubles, Rows


@dataclass(frozen=True)
class MeanAveragePrecision(Share):
    """Mean over classes of average precision: the mean over a class's positives of the precision at their rank.

    Tied samples are found together, as in scikit-learn's `average_precision_score`, so that a constant score gets the
    share of positives. Reads columns `score_<c>` and `truth_<c>`. A class without a positive has no precision: it does
    not count, here or in a draw that holds none of its positives; `classes_without_positives` of the task counts them.
    """

    name: str
    classes: int
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted mean over classes; NaN where no class has a positive."""
        parts = [_segments(rows, c) for c in range(self.classes) if rows.numbers[f"truth_{c}"].any()]

        def value(weights_RG: Doubles) -> Doubles:
            weights_GR = np.ascontiguousarray(weights_RG.T)
            total_R, counted_R = np.zeros(len(weights_RG)), np.zeros(len(weights_RG))
            for positive_SG, all_SG in parts:
                precision_R = _average_precision(positive_SG @ weights_GR, all_SG @ weights_GR)
                counted_R += ~np.isnan(precision_R)
                total_R += np.nan_to_num(precision_R)
            return np.divide(total_R, counted_R, out=np.full_like(total_R, np.nan), where=counted_R > 0)

        return value

    def chance(self, rows: Rows) -> float:
        """The expectation for a random order; a little above the share of positives, which is what a constant gets."""
        positives_C = np.array([rows.numbers[f"truth_{c}"].sum() for c in range(self.classes)])
        return float(random_average_precision(positives_C[positives_C > 0], len(rows)).mean())


def multilabel_metrics(classes: Sequence[str]) -> list[Metric]:
    """mAP over classes."""
    return [MeanAveragePrecision("mAP", len(classes))]


def random_average_precision(positives: Any, samples: int) -> Doubles:
    """Expected average precision of `positives` among `samples` in random order.

    A positive's rank k is uniform, and (P - 1) / (Q - 1) of the k - 1 before it are positive, so its precision is
    (1 + (k - 1) (P - 1) / (Q - 1)) / k on average; the mean over k uses the harmonic number.
    """
    harmonic = float((1 / np.arange(1, samples + 1)).mean())
    others = (np.asarray(positives, np.float64) - 1) / max(1, samples - 1)
    return np.asarray(harmonic + others * (1 - harmonic))


def _segments(rows: Rows, number: int) -> tuple[Any, Any]:
    """Positives and samples (S, G) between one score that has positives and the next, best first.

    Precision is only asked where there are positives, so a class costs its samples once a draw, without their order.
    """
    truth_Q = rows.numbers[f"truth_{number}"] > 0
    group_Q = np.unique(-np.asarray(rows.numbers[f"score_{number}"], np.float64), return_inverse=True)[1]
    ends_S = np.unique(group_Q[truth_Q])
    segment_Q = np.searchsorted(ends_S, group_Q)
    counts = [
        sums_by_cluster(which_Q.astype(np.float64), np.minimum(segment_Q, len(ends_S) - 1), rows.clusters_Q)
        for which_Q in (truth_Q, segment_Q < len(ends_S))
    ]
    return counts[0], counts[1]


def _average_precision(positive_SR: Doubles, all_SR: Doubles) -> Doubles:
    found_SR, asked_SR = positive_SR.cumsum(axis=0), all_SR.cumsum(axis=0)
    precision_SR = np.divide(found_SR, asked_SR, out=np.zeros_like(asked_SR), where=asked_SR > 0)
    sum_R = (positive_SR * precision_SR).sum(axis=0)
    return np.asarray(np.divide(sum_R, found_SR[-1], out=np.full_like(sum_R, np.nan), where=found_SR[-1] > 0))
