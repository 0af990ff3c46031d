"""Metrics that set one number against another on the same draws: a gap between two kinds of samples, a loss in part.

Both sides are counted on the same resampled clusters, so that what they share cancels in the interval.
Legend: Q samples, G clusters, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from evaluation.metrics.base import Better, Share, Statistic, Unit, mean_over_clusters
from evaluation.rows import Doubles, Rows


@dataclass(frozen=True)
class Gap:
    """Mean of a column over samples of one kind minus its mean over samples of another.

    `where`, `against`: 0/1 columns. A model that knows nothing has no gap.
    """

    name: str
    column: str
    where: str
    against: str
    unit: Unit = "points"
    better: Better = "neither"

    def statistic(self, rows: Rows) -> Statistic:
        """Difference of the weighted means; NaN where a draw has none of one kind."""
        first, second = (_mean_where(rows, self.column, where) for where in (self.where, self.against))

        def value(weights_RG: Doubles) -> Doubles:
            return np.asarray(first(weights_RG) - second(weights_RG))

        return value

    def chance(self, rows: Rows) -> float:
        """0."""
        del rows
        return 0.0

    def limits(self, rows: Rows) -> tuple[float, float]:
        """-1 to 1: the column holds shares."""
        del rows
        return -1.0, 1.0


@dataclass(frozen=True)
class Worst(Share):
    """Lowest mean of a column over several kinds of samples, which may overlap. `wheres`: their 0/1 columns."""

    name: str
    column: str
    wheres: tuple[str, ...]
    chance_value: float | None = None
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Minimum of the weighted means; a kind that a draw leaves out does not count in it."""
        means = [_mean_where(rows, self.column, where) for where in self.wheres]

        def value(weights_RG: Doubles) -> Doubles:
            return np.asarray(np.fmin.reduce([mean(weights_RG) for mean in means]))

        return value

    def chance(self, rows: Rows) -> float | None:
        """`chance_value`: the same for every kind, before the luck of choosing the lowest."""
        del rows
        return self.chance_value


@dataclass(frozen=True)
class RelativeDrop:
    """1 - mean of column `after` / mean of column `before`: the part of a score that is lost.

    Not defined, so NaN, where the mean before is 0. 0 for a model that has nothing to lose but luck.
    """

    name: str
    before: str
    after: str
    unit: Unit = "number"
    better: Better = "lower"

    def statistic(self, rows: Rows) -> Statistic:
        """One minus the ratio of the weighted sums."""
        ratio = mean_over_clusters(rows.numbers[self.after], rows.numbers[self.before], rows.clusters_Q)

        def value(weights_RG: Doubles) -> Doubles:
            return np.asarray(1 - ratio(weights_RG))

        return value

    def chance(self, rows: Rows) -> float:
        """0: without knowledge nothing is lost."""
        del rows
        return 0.0

    def limits(self, rows: Rows) -> tuple[float, float]:
        """From all right afterwards to nothing left."""
        before = float(np.mean(rows.numbers[self.before]))
        return (1 - 1 / before if before else -np.inf), 1.0


def _mean_where(rows: Rows, column: str, where: str) -> Statistic:
    mask_Q = np.asarray(rows.numbers[where], np.float64)
    return mean_over_clusters(rows.numbers[column] * mask_Q, mask_Q, rows.clusters_Q)
