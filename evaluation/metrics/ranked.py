"""Metrics of ranked candidates: hits among the first k, recall per class, median rank. Ties are never credited.

Legend: Q samples, G clusters, C classes, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from evaluation.metrics.base import Better, Metric, Share, Statistic, Unit
from evaluation.rows import Doubles, Ints, Rows, group_ids

_TOP = 5


@dataclass(frozen=True)
class Hit(Share):
    """Share of samples with a correct candidate among the first k."""

    name: str
    k: int = 1
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted share of hits."""
        return _mean_of_shares(rows.numbers["rank"] <= self.k, np.zeros(len(rows), np.int64), rows.clusters_Q)

    def chance(self, rows: Rows) -> float:
        """The expected share for a random order of these very candidates."""
        return float(_chances(rows, self.k).mean())


@dataclass(frozen=True)
class GroupHit(Share):
    """Share of hits per group, then the mean over groups (mean per-class recall), or the worst group's share.

    `by`: a column of group numbers, or None for the label. Groups that a draw leaves out do not count in it.
    """

    name: str
    k: int = 1
    by: str | None = None
    over: Literal["mean", "worst"] = "mean"
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Mean or minimum over groups of the weighted share of hits."""
        hits_Q, groups_Q = rows.numbers["rank"] <= self.k, self._groups(rows)
        return _mean_of_shares(hits_Q, groups_Q, rows.clusters_Q, self.over == "worst")

    def chance(self, rows: Rows) -> float:
        """The same of the expected shares."""
        groups_Q = self._groups(rows)
        shares_C = np.bincount(groups_Q, _chances(rows, self.k)) / np.maximum(np.bincount(groups_Q), 1)
        shares_C = shares_C[np.bincount(groups_Q) > 0]
        return float(shares_C.min() if self.over == "worst" else shares_C.mean())

    def _groups(self, rows: Rows) -> Ints:
        return group_ids(rows.labels) if self.by is None else np.asarray(rows.numbers[self.by], np.int64)


@dataclass(frozen=True)
class MedianRank:
    """Smallest rank that at least half of the samples reach."""

    name: str
    unit: Unit = "rank"
    better: Better = "lower"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted median."""
        return _median(np.asarray(rows.numbers["rank"]), rows.clusters_Q)

    def chance(self, rows: Rows) -> float:
        """Median of the rank for a random order of these very candidates."""
        return _chance_median(np.asarray(rows.numbers["candidates"]), np.asarray(rows.numbers["positives"]))

    def limits(self, rows: Rows) -> tuple[float, float]:
        """1 to the number of candidates."""
        return 1.0, float(rows.numbers["candidates"].max())


def zero_shot_metrics(classes: int) -> list[Metric]:
    """Top-1, top-5 where it is not trivially 1, and mean per-class recall."""
    top = [Hit(f"top{_TOP}", _TOP)] if classes > _TOP else []
    return [Hit("top1"), *top, GroupHit("mean_per_class_recall")]


def retrieval_metrics(direction: str, ks: Sequence[int]) -> list[Metric]:
    """R@k as hit rate for every k, and the median rank, in one direction."""
    return [*(Hit(f"{direction}_R@{k}", k) for k in ks), MedianRank(f"{direction}_median_rank")]


def chance_hit(candidates: Ints, positives: Ints, k: int) -> Doubles:
    """P(at least one of P positives among the first k of M in random order) = 1 - C(M - P, k) / C(M, k)."""
    miss = np.ones(len(candidates))
    for drawn in range(k):
        miss *= np.clip(candidates - positives - drawn, 0, None) / np.maximum(candidates - drawn, 1)
    return 1 - miss


def _chances(rows: Rows, k: int) -> Doubles:
    return chance_hit(np.asarray(rows.numbers["candidates"]), np.asarray(rows.numbers["positives"]), k)


def _chance_median(candidates_Q: Ints, positives_Q: Ints) -> float:
    shapes, counts = np.unique(np.stack([candidates_Q, positives_Q]), axis=1, return_counts=True)
    (candidates, positives), weight = shapes, counts / counts.sum()
    beyond, rank = np.ones(len(weight)), 0  # P(rank > r), by shape of the query
    while (weight * beyond).sum() > 0.5 + 1e-12:
        beyond = beyond * np.clip(candidates - positives - rank, 0, None) / np.maximum(candidates - rank, 1)
        rank += 1
    return float(rank)


def _mean_of_shares(hits_Q: npt.NDArray[np.bool_], classes_Q: Ints, clusters_Q: Ints, worst: bool = False) -> Statistic:
    # sparse: most clusters have one class, and 50,000 clusters of 1,000 classes would be 400 MB
    shape = (int(classes_Q.max()) + 1, int(clusters_Q.max()) + 1)
    hits_CG = sparse.csr_array((hits_Q.astype(np.float64), (classes_Q, clusters_Q)), shape)
    all_CG = sparse.csr_array((np.ones(len(hits_Q)), (classes_Q, clusters_Q)), shape)

    def value(weights_RG: Doubles) -> Doubles:
        hits_CR, all_CR = hits_CG @ weights_RG.T, all_CG @ weights_RG.T
        share_CR = np.divide(hits_CR, all_CR, out=np.zeros_like(all_CR), where=all_CR > 0)
        if worst:
            return np.asarray(np.where(all_CR > 0, share_CR, np.inf).min(axis=0))
        return np.asarray(share_CR.sum(axis=0) / (all_CR > 0).sum(axis=0))  # classes that were not drawn do not count

    return value


def _median(ranks_Q: Ints, clusters_Q: Ints) -> Statistic:
    order = np.argsort(ranks_Q, kind="stable")
    ranks_Q, clusters_Q = ranks_Q[order], clusters_Q[order]

    def value(weights_RG: Doubles) -> Doubles:
        reached_RQ = weights_RG[:, clusters_Q].cumsum(axis=1)
        first_R = (reached_RQ * 2 < reached_RQ[:, -1:]).sum(axis=1)
        return np.asarray(ranks_Q[first_R], np.float64)

    return value
