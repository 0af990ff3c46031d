"""What a metric is: a statistic over weighted clusters of samples.

A statistic takes weights (how often each cluster was drawn) and returns one value per draw, so that the value itself
(all weights 1), its bootstrap interval and a paired difference come from one definition.
Legend: Q samples, G clusters, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from evaluation.rows import Doubles, Ints, Rows

Statistic = Callable[[Doubles], Doubles]
Unit = Literal["fraction", "rank", "points", "number"]
Better = Literal["higher", "lower", "neither"]


class Metric(Protocol):
    """One metric over the rows of a task.

    A metric that is a sum of sizes, which noise can only raise, says so by a class variable `is_inflated = True`: its
    draws are then moved back so that their mean is its value.
    """

    @property
    def name(self) -> str:
        """Name in a report, unique within its task."""

    @property
    def unit(self) -> Unit:
        """`fraction` is shown in percent, `points` is a difference of fractions."""

    @property
    def better(self) -> Better:
        """Which way is better, where one is."""

    def statistic(self, rows: Rows) -> Statistic:
        """The metric as a function of cluster weights (R, G) -> values (R,); NaN where a draw does not define it."""

    def chance(self, rows: Rows) -> float | None:
        """What a model that knows nothing gets, exactly; None where that has no meaning."""

    def limits(self, rows: Rows) -> tuple[float, float]:
        """Lowest and highest value it can take."""


class Share:
    """Base of metrics that lie between 0 and 1."""

    def limits(self, rows: Rows) -> tuple[float, float]:
        """0 to 1."""
        del rows
        return 0.0, 1.0


@dataclass(frozen=True)
class Mean:
    """Mean of a column over samples: accuracy of `correct`, a loss, a score. NaN is no number: such rows are dropped
    before, with a reason.

    `where`: a 0/1 column; only samples with 1 count. `chance_column`: the chance of each sample, averaged alike.
    """

    name: str
    column: str
    unit: Unit = "fraction"
    better: Better = "higher"
    where: str | None = None
    chance_column: str | None = None
    chance_value: float | None = None
    bounds: tuple[float, float] = (0.0, 1.0)

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted mean of the column."""
        mask_Q = self._mask(rows)
        return mean_over_clusters(rows.numbers[self.column] * mask_Q, mask_Q, rows.clusters_Q)

    def chance(self, rows: Rows) -> float | None:
        """Mean chance of the samples that count."""
        if self.chance_column is None:
            return self.chance_value
        mask_Q = self._mask(rows)
        return float((rows.numbers[self.chance_column] * mask_Q).sum() / max(1.0, mask_Q.sum()))

    def limits(self, rows: Rows) -> tuple[float, float]:
        """`bounds`."""
        del rows
        return self.bounds

    def _mask(self, rows: Rows) -> Doubles:
        return np.ones(len(rows)) if self.where is None else np.asarray(rows.numbers[self.where], np.float64)


def mean_over_clusters(
    values_Q: npt.NDArray[np.generic], counts_Q: npt.NDArray[np.generic], clusters_Q: Ints
) -> Statistic:
    """Sum of values over sum of counts, both weighted by cluster; NaN for a draw in which nothing counts."""
    size = int(clusters_Q.max()) + 1
    values_G = np.bincount(clusters_Q, np.asarray(values_Q, np.float64), size)
    counts_G = np.bincount(clusters_Q, np.asarray(counts_Q, np.float64), size)

    def value(weights_RG: Doubles) -> Doubles:
        counts_R = weights_RG @ counts_G
        empty_R = counts_R == 0
        return np.asarray(np.where(empty_R, np.nan, weights_RG @ values_G / np.where(empty_R, 1.0, counts_R)))

    return value


def weights_of_samples(weights_RG: Doubles, clusters_Q: Ints) -> Doubles:
    """Weights of clusters as weights of samples, (R, Q)."""
    return weights_RG[:, clusters_Q]


def sums_by_cluster(values_Q: Doubles, groups_Q: Ints, clusters_Q: Ints, groups: int | None = None) -> Any:
    """Sums of values per group and cluster (groups, G), sparse: times weights (G, R), the weighted sums of groups.

    The product is fastest for weights that lie contiguous along R.
    """
    shape = (int(groups_Q.max()) + 1 if groups is None else groups, int(clusters_Q.max()) + 1)
    return sparse.csr_array((values_Q, (groups_Q, clusters_Q)), shape)
