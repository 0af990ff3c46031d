"""Every metric, defined once: its statistic over weighted clusters of queries, its exact chance level, its direction.

A statistic takes weights (how often each cluster was drawn) and returns one value per draw, so the value itself (all
weights 1), its bootstrap interval and a paired difference come from one definition.
Legend: Q queries, G clusters, C classes, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evaluation.queries import Ints, Queries

Doubles = npt.NDArray[np.float64]
Statistic = Callable[[Doubles], Doubles]
Kind = Literal["hit", "class_recall", "median_rank"]
_TOP = 5


@dataclass(frozen=True)
class Metric:
    """One metric. `hit`: share of queries with a correct candidate among the first k. `class_recall`: mean over classes
    of the share found first. `median_rank`: smallest rank that at least half of the queries reach."""

    name: str
    kind: Kind
    k: int = 1

    @property
    def better(self) -> str:
        """`higher` or `lower`."""
        return "lower" if self.kind == "median_rank" else "higher"

    @property
    def unit(self) -> str:
        """`fraction` or `rank`."""
        return "rank" if self.kind == "median_rank" else "fraction"

    def statistic(self, queries: Queries, clusters_Q: Ints) -> Statistic:
        """The metric as a function of cluster weights (R, G) -> values (R,)."""
        if self.kind == "median_rank":
            return _median(queries.ranks, clusters_Q)
        classes_Q = group_ids(queries.labels) if self.kind == "class_recall" else np.zeros(len(queries), np.int64)
        return _mean_of_shares(queries.ranks <= self.k, classes_Q, clusters_Q)

    def limits(self, queries: Queries) -> tuple[float, float]:
        """Lowest and highest value the metric can take."""
        return (1.0, float(queries.candidates.max())) if self.unit == "rank" else (0.0, 1.0)

    def chance(self, queries: Queries) -> float:
        """What a random order of these very candidates gives: the expected share, or the median of the rank."""
        if self.kind == "median_rank":
            return _chance_median(queries)
        hit_Q = chance_hit(queries.candidates, queries.positives, self.k)
        if self.kind == "hit":
            return float(hit_Q.mean())
        classes_Q = group_ids(queries.labels)
        return float((np.bincount(classes_Q, hit_Q) / np.bincount(classes_Q)).mean())


def group_ids(names: Sequence[str]) -> Ints:
    """Number equal names equally, 0 to the number of groups - 1."""
    return np.unique(np.asarray(names, dtype=object), return_inverse=True)[1].astype(np.int64)


def zero_shot_metrics(classes: int) -> list[Metric]:
    """Top-1, top-5 where it is not trivially 1, and mean per-class recall."""
    top = [Metric(f"top{_TOP}", "hit", _TOP)] if classes > _TOP else []
    return [Metric("top1", "hit"), *top, Metric("mean_per_class_recall", "class_recall")]


def retrieval_metrics(direction: str, ks: Sequence[int]) -> list[Metric]:
    """R@k as hit rate for every k, and the median rank, in one direction."""
    return [*(Metric(f"{direction}_R@{k}", "hit", k) for k in ks), Metric(f"{direction}_median_rank", "median_rank")]


def metric_named(name: str) -> Metric:
    """The metric a report row was made with."""
    if name == "mean_per_class_recall":
        return Metric(name, "class_recall")
    if name.endswith("_median_rank"):
        return Metric(name, "median_rank")
    return Metric(name, "hit", int(name.rpartition("R@")[2] if "R@" in name else name.removeprefix("top")))


def chance_hit(candidates: Ints, positives: Ints, k: int) -> Doubles:
    """P(at least one of P positives among the first k of M in random order) = 1 - C(M - P, k) / C(M, k)."""
    miss = np.ones(len(candidates))
    for drawn in range(k):
        miss *= np.clip(candidates - positives - drawn, 0, None) / np.maximum(candidates - drawn, 1)
    return 1 - miss


def _chance_median(queries: Queries) -> float:
    shapes, counts = np.unique(np.stack([queries.candidates, queries.positives]), axis=1, return_counts=True)
    (candidates, positives), weight = shapes, counts / counts.sum()
    beyond, rank = np.ones(len(weight)), 0  # P(rank > r), by shape of the query
    while (weight * beyond).sum() > 0.5 + 1e-12:
        beyond = beyond * np.clip(candidates - positives - rank, 0, None) / np.maximum(candidates - rank, 1)
        rank += 1
    return float(rank)


def _mean_of_shares(hits_Q: npt.NDArray[np.bool_], classes_Q: Ints, clusters_Q: Ints) -> Statistic:
    shape = (int(clusters_Q.max()) + 1, int(classes_Q.max()) + 1)
    hits_GC, all_GC = np.zeros(shape), np.zeros(shape)
    np.add.at(hits_GC, (clusters_Q, classes_Q), hits_Q)
    np.add.at(all_GC, (clusters_Q, classes_Q), 1)

    def value(weights_RG: Doubles) -> Doubles:
        all_RC = weights_RG @ all_GC
        share_RC = np.divide(weights_RG @ hits_GC, all_RC, out=np.zeros_like(all_RC), where=all_RC > 0)
        return np.asarray(share_RC.sum(axis=1) / (all_RC > 0).sum(axis=1))  # classes that were not drawn do not count

    return value


def _median(ranks_Q: Ints, clusters_Q: Ints) -> Statistic:
    order = np.argsort(ranks_Q, kind="stable")
    ranks_Q, clusters_Q = ranks_Q[order], clusters_Q[order]

    def value(weights_RG: Doubles) -> Doubles:
        reached_RQ = weights_RG[:, clusters_Q].cumsum(axis=1)
        first_R = (reached_RQ * 2 < reached_RQ[:, -1:]).sum(axis=1)
        return np.asarray(ranks_Q[first_R], np.float64)

    return value
