"""Macro F1: the score of long-tailed sets such as iWildCam.

Legend: Q samples, G clusters, C classes, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluation.metrics.base import Better, Share, Statistic, Unit, sums_by_cluster
from evaluation.rows import Doubles, Rows


@dataclass(frozen=True)
class MacroF1(Share):
    """Mean of F1 = 2 hits / (samples of the class + predictions of it) over the classes that samples have.

    That is WILDS' definition, hence DataComp's: scikit-learn's `f1_score(average="macro", labels=those classes)`, which
    is its default where every predicted class occurs. A prediction that ties with a wrong class is nobody's.
    """

    name: str
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted mean; classes that a draw leaves out do not count in it."""
        number = {name: row for row, name in enumerate(sorted(set(rows.labels)))}
        label_Q = np.array([number[name] for name in rows.labels])
        predicted_Q = np.array([number.get(name, len(number)) for name in rows.predictions])
        hit_Q = np.asarray(rows.numbers["correct"]) == 1
        predicted_Q[(predicted_Q == label_Q) & ~hit_Q] = len(number)
        hits_CG = sums_by_cluster(hit_Q.astype(np.float64), label_Q, rows.clusters_Q)
        own_CG = sums_by_cluster(np.ones(len(rows)), label_Q, rows.clusters_Q)
        made_CG = sums_by_cluster(np.ones(len(rows)), predicted_Q, rows.clusters_Q, len(number) + 1)[: len(number)]

        def value(weights_RG: Doubles) -> Doubles:
            weights_GR = np.ascontiguousarray(weights_RG.T)
            own_CR, both_CR = own_CG @ weights_GR, (own_CG + made_CG) @ weights_GR
            f1_CR = np.divide(2 * (hits_CG @ weights_GR), both_CR, out=np.zeros_like(own_CR), where=own_CR > 0)
            return np.asarray(f1_CR.sum(axis=0) / (own_CR > 0).sum(axis=0))

        return value

    def chance(self, rows: Rows) -> float:
        """The expectation for guesses that are uniform over all candidates."""
        own_C = np.unique(np.asarray(rows.labels, dtype=object), return_counts=True)[1]
        sizes, times = np.unique(own_C, return_counts=True)
        guess = stats.binom(len(rows), 1 / int(rows.numbers["candidates"].max()))
        made = np.arange(max(0, int(guess.ppf(1e-15)) - 1), int(guess.isf(1e-15)) + 2)
        # of m guesses of a class, m n_c / n are right on average
        f1 = [(guess.pmf(made) * 2 * made * size / len(rows) / (made + size)).sum() for size in sizes]
        return float(np.average(f1, weights=times))
