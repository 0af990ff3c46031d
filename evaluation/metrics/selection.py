"""Metrics of picking the right one: means per group, then over groups, and what random picks would score.

Legend: Q samples, G clusters, K groups, R resamples.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse, stats

from evaluation.metrics.base import Better, Share, Statistic, Unit
from evaluation.rows import Doubles, Ints, Rows


@dataclass(frozen=True)
class GroupMean(Share):
    """Mean of a column within each group, then the mean over groups (macro), or the lowest group's.

    `groups`: a column of group numbers; -1 is in no group. Groups that a draw leaves out do not count in it.
    """

    name: str
    column: str
    groups: str
    over: Literal["mean", "worst"] = "mean"
    chance_column: str | None = None
    chance_value: float | None = None
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted mean within groups, then over them; NaN for a draw without any group."""
        groups_Q = np.asarray(rows.numbers[self.groups], np.int64)
        sums_KG = _by_group(np.asarray(rows.numbers[self.column], np.float64), groups_Q, rows.clusters_Q)
        counts_KG = _by_group(np.ones(len(rows)), groups_Q, rows.clusters_Q)

        def value(weights_RG: Doubles) -> Doubles:
            sums_KR, counts_KR = sums_KG @ weights_RG.T, counts_KG @ weights_RG.T
            drawn_KR = counts_KR > 0
            means_KR = np.divide(sums_KR, counts_KR, out=np.zeros_like(sums_KR), where=drawn_KR)
            if self.over == "worst":
                lowest_R = np.where(drawn_KR, means_KR, np.inf).min(axis=0)
                return np.asarray(np.where(drawn_KR.any(axis=0), lowest_R, np.nan))
            groups_R = drawn_KR.sum(axis=0)
            return np.asarray(np.where(groups_R > 0, means_KR.sum(axis=0) / np.maximum(groups_R, 1), np.nan))

        return value

    def chance(self, rows: Rows) -> float | None:
        """The same of the samples' chances."""
        if self.chance_column is None:
            return self.chance_value
        chance = GroupMean(self.name, self.chance_column, self.groups, self.over).statistic(rows)
        return float(chance(np.ones((1, int(rows.clusters_Q.max()) + 1)))[0])


def chance_jaccard(candidates: int, answers: int) -> float:
    """Expected Jaccard of `answers` random candidates with the answers: h of them are right, so h / (2 n - h)."""
    hits = np.arange(answers + 1)
    return float(stats.hypergeom(candidates, answers, answers).pmf(hits) @ (hits / (2 * answers - hits)))


def _by_group(values_Q: Doubles, groups_Q: Ints, clusters_Q: Ints) -> sparse.csr_array:
    kept_Q = groups_Q >= 0
    shape = (int(groups_Q.max(initial=0)) + 1, int(clusters_Q.max()) + 1)
    return sparse.csr_array((values_Q[kept_Q], (groups_Q[kept_Q], clusters_Q[kept_Q])), shape)
