"""95 % intervals by resampling whole clusters of samples: pictures of one concept rise and fall together.

Percentile bootstrap (Efron), seeded. The intervals say how far a value could move with other samples of the same kind;
they do not hold the luck of a training run. The draws are kept: two models that answered the same samples met the same
draws, so their difference has an interval without asking again. Legend: Q samples, G clusters, R resamples.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.base import Metric, Statistic
from evaluation.rows import Doubles, Rows
from evaluation.specs import Bootstrap

_TAIL = 0.025
_BLOCK_WEIGHTS = 1 << 22


class Estimate(NamedTuple):
    """A value with its 95 % interval and the values of all resamples (R,)."""

    value: float
    low: float
    high: float
    draws: Doubles


def estimate(rows: Rows, metrics: Sequence[Metric], spec: Bootstrap) -> list[Estimate]:
    """Value and interval of every metric, all on the same resamples.

    Raises:
        EvaluationError: a metric is not defined on these rows, so it would be NaN.
    """
    statistics = [metric.statistic(rows) for metric in metrics]
    clusters = int(rows.clusters_Q.max()) + 1
    whole = [float(statistic(np.ones((1, clusters)))[0]) for statistic in statistics]
    for metric, value in zip(metrics, whole, strict=True):
        if not np.isfinite(value):
            raise EvaluationError(f"metric {metric.name!r}: not defined on these {len(rows)} samples ({value})")
    draws = _resampled(statistics, clusters, len(rows), spec)
    return [
        _interval(metric, value, draw, clusters, rows)
        for metric, value, draw in zip(metrics, whole, draws, strict=True)
    ]


def samples_digest(rows: Rows) -> str:
    """What must be equal for draws to be comparable: the samples asked and the clusters they are in."""
    pairs = sorted(zip(rows.ids, rows.clusters, strict=True))
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]


def interval_of_difference(ours: Doubles, theirs: Doubles) -> tuple[float, float]:
    """95 % interval of a difference of two metrics whose draws (R,) met the same resamples; shared luck cancels."""
    low, high = np.nanquantile(ours - theirs, (_TAIL, 1 - _TAIL))
    return float(low), float(high)


def _resampled(statistics: Sequence[Statistic], clusters: int, samples: int, spec: Bootstrap) -> list[Doubles]:
    parts = [[statistic(weights) for statistic in statistics] for weights in _weights(clusters, samples, spec)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _weights(clusters: int, samples: int, spec: Bootstrap) -> Iterator[Doubles]:
    """Blocks (R, G) of how often each cluster was drawn; the draws do not depend on the size of a block."""
    random = np.random.default_rng(spec.seed)
    block = max(1, _BLOCK_WEIGHTS // max(clusters, samples))
    for start in range(0, spec.resamples, block):
        rows = min(block, spec.resamples - start)
        drawn = (random.integers(0, clusters, clusters) for _ in range(rows))
        yield np.stack([np.bincount(row, minlength=clusters) for row in drawn]).astype(np.float64)


def _interval(metric: Metric, value: float, draws: Doubles, clusters: int, rows: Rows) -> Estimate:
    lowest, highest = metric.limits(rows)
    if clusters < 2:  # one cluster says nothing of the spread between clusters
        return Estimate(value, lowest, highest, np.full(len(draws), np.nan))
    if getattr(metric, "is_inflated", False):
        # noise adds to a sum of sizes, and a draw has the sample's noise and its own: without this the interval of a
        # calibrated model's ECE lay above its own value in one sample of six
        draws = np.clip(draws - (np.nanmean(draws) - value), lowest, highest)
    low, high = (float(bound) for bound in np.nanquantile(draws, (_TAIL, 1 - _TAIL)))
    # resampling cannot leave 0 % or 100 %; the exact binomial bound for that many clusters can
    if metric.unit == "fraction" and value == 0:
        high = 1 - _TAIL ** (1 / clusters)
    if metric.unit == "fraction" and value == 1:
        low = _TAIL ** (1 / clusters)
    return Estimate(value, low, high, draws)
