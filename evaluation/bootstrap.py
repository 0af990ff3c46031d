"""95 % intervals by resampling whole clusters of queries: pictures of one concept rise and fall together.

Percentile bootstrap (Efron), seeded. The intervals say how far a value could move with other queries of the same kind;
they do not hold the luck of a training run. Legend: Q queries, G clusters, R resamples.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.metrics import Doubles, Metric, Statistic, group_ids
from evaluation.queries import Queries
from evaluation.specs import Bootstrap

_TAIL = 0.025
_BLOCK_WEIGHTS = 1 << 22


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(queries: Queries, metrics: Sequence[Metric], spec: Bootstrap) -> list[Estimate]:
    """Value and interval of every metric, all on the same resamples."""
    clusters_Q = group_ids(queries.clusters)
    statistics = [metric.statistic(queries, clusters_Q) for metric in metrics]
    count = int(clusters_Q.max()) + 1
    draws = _resampled(statistics, count, len(queries), spec)
    return [
        _interval(metric, statistic, draw, count, queries)
        for metric, statistic, draw in zip(metrics, statistics, draws, strict=True)
    ]


def paired_difference(ours: Queries, theirs: Queries, metric: Metric, spec: Bootstrap) -> Estimate:
    """`ours` minus `theirs` with its interval: both models meet the same resampled queries, so shared luck cancels.

    Raises:
        EvaluationError: the two did not answer the same queries.
    """
    theirs = theirs.aligned_to(ours)
    clusters_Q = group_ids(ours.clusters)
    first, second = metric.statistic(ours, clusters_Q), metric.statistic(theirs, clusters_Q)

    def difference(weights_RG: Doubles) -> Doubles:
        return first(weights_RG) - second(weights_RG)

    count = int(clusters_Q.max()) + 1
    (draw,) = _resampled([difference], count, len(ours), spec)
    value = float(difference(np.ones((1, count)))[0])
    low, high = np.quantile(draw, (_TAIL, 1 - _TAIL))
    if count < 2:
        span = float(np.subtract(*metric.limits(ours)))
        low, high = span, -span
    return Estimate(value, float(low), float(high))


def _resampled(statistics: Sequence[Statistic], clusters: int, queries: int, spec: Bootstrap) -> list[Doubles]:
    parts = [[statistic(weights) for statistic in statistics] for weights in _weights(clusters, queries, spec)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _weights(clusters: int, queries: int, spec: Bootstrap) -> Iterator[Doubles]:
    """Blocks (R, G) of how often each cluster was drawn; the draws do not depend on the size of a block."""
    random = np.random.default_rng(spec.seed)
    block = max(1, _BLOCK_WEIGHTS // max(clusters, queries))
    for start in range(0, spec.resamples, block):
        rows = min(block, spec.resamples - start)
        drawn = (random.integers(0, clusters, clusters) for _ in range(rows))
        yield np.stack([np.bincount(row, minlength=clusters) for row in drawn]).astype(np.float64)


def _interval(metric: Metric, statistic: Statistic, draw: Doubles, clusters: int, queries: Queries) -> Estimate:
    value = float(statistic(np.ones((1, clusters)))[0])
    lowest, highest = metric.limits(queries)
    if clusters < 2:  # one cluster says nothing of the spread between clusters
        return Estimate(value, lowest, highest)
    low, high = (float(bound) for bound in np.quantile(draw, (_TAIL, 1 - _TAIL)))
    # resampling cannot leave 0 % or 100 %; the exact binomial bound for that many clusters can
    if metric.unit == "fraction" and value == 0:
        high = 1 - _TAIL ** (1 / clusters)
    if metric.unit == "fraction" and value == 1:
        low = _TAIL ** (1 / clusters)
    return Estimate(value, low, high)
