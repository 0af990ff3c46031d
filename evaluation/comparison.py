"""Whether two models differ: paired tests over the samples both answered, corrected for how many were made.

Legend: Q samples, G clusters, R resamples.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import signal, stats

from data.errors import EvaluationError
from evaluation.rows import Doubles, Ints, Rows

ALPHA = 0.05
EXACT, WALD = "exact sign flips", "bootstrap z"
_RANKED = re.compile(r"^(?:image_to_text_|text_to_image_)?(?:R@|top)(\d+)$")


class Paired(NamedTuple):
    """A test that two models are the same. `only_ours`, `only_theirs`: samples that one of them alone has right."""

    test: str
    p: float
    only_ours: int | None = None
    only_theirs: int | None = None


def align(ours: Rows, theirs: Rows) -> Ints:
    """Row of `theirs` for every row of `ours`.

    Raises:
        EvaluationError: one has samples, or clusters of samples, that the other has not.
    """
    row_of = {sample: row for row, sample in enumerate(theirs.ids)}
    missing = [sample for sample in ours.ids if sample not in row_of]
    if missing or len(ours) != len(theirs):
        example = missing[0] if missing else next(iter(row_of.keys() - set(ours.ids)))
        raise EvaluationError(
            f"the two models answered {len(ours)} and {len(theirs)} samples, which differ in e.g. {example!r}; "
            "evaluate both with the same sets, splits and tasks"
        )
    order_Q = np.array([row_of[sample] for sample in ours.ids], np.int64)
    if any(theirs.clusters[row] != own for row, own in zip(order_Q.tolist(), ours.clusters, strict=True)):
        raise EvaluationError(
            "the two models' samples lie in different clusters; evaluate both with the same cluster_field"
        )
    return order_Q


def paired_test(ours: Rows, theirs: Rows, metric: str, values: tuple[float, float]) -> Paired | None:
    """The exact test of two models' right and wrong answers; None where a metric is not a share of right samples.

    `values`: the metric of both, which the shares must reproduce: a name alone does not say what a metric counts.

    Raises:
        EvaluationError: the samples or clusters differ.
    """
    hits = [_hits(rows, metric, value) for rows, value in zip((ours, theirs), values, strict=True)]
    if hits[0] is None or hits[1] is None:
        return None
    ours_Q, theirs_Q = hits[0], hits[1][align(ours, theirs)]
    differences_G = np.bincount(ours.clusters_Q, ours_Q - theirs_Q)
    only = [int(((one == 1) & (other == 0)).sum()) for one, other in ((ours_Q, theirs_Q), (theirs_Q, ours_Q))]
    return Paired(EXACT, flip_test(np.rint(differences_G).astype(np.int64)), *only)


def flip_test(differences_G: Ints) -> float:
    """Two-sided p that the sum is so far from 0 if every cluster's difference could as well have the other sign.

    Exact, by the law of the sum. With one sample a cluster it is McNemar's exact test (McNemar 1947); clusters of alike
    samples flip together, because they are not independent.
    """
    sizes, counts = np.unique(np.abs(differences_G[differences_G != 0]), return_counts=True)
    law = np.ones(1)  # law[h]: probability that the clusters with a positive sign sum to h
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        own = np.zeros(size * count + 1)
        own[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        law = np.clip(signal.convolve(law, own), 0.0, None)
    sums = 2 * np.arange(len(law)) - int((sizes * counts).sum())
    return float(min(1.0, law[np.abs(sums) >= abs(int(differences_G.sum()))].sum()))


def wald_test(difference: float, draws_R: Doubles) -> Paired | None:
    """Two-sided p of a difference by the spread of its resamples, which keep clusters whole; None where undefined."""
    drawn = draws_R[np.isfinite(draws_R)]
    if len(drawn) < 2:
        return None
    spread = float(drawn.std(ddof=1))
    if spread > 0:
        return Paired(WALD, float(2 * stats.norm.sf(abs(difference) / spread)))
    return Paired(WALD, 1.0 if difference == 0 else 2 / (len(drawn) + 1))


def holm(ps: Sequence[float]) -> list[float]:
    """p values so that all together err with probability `ALPHA` at most (Holm 1979): (m - i) p_(i), made monotone."""
    order = np.argsort(ps, kind="stable")
    scaled = np.maximum.accumulate(np.asarray(ps, np.float64)[order] * (len(ps) - np.arange(len(ps))))
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(1.0, scaled)
    return [float(p) for p in adjusted]


def _hits(rows: Rows, metric: str, value: float) -> Doubles | None:
    """The 0/1 column whose mean the metric is."""
    for column in _candidates(rows.numbers, metric):
        hits_Q = np.asarray(column, np.float64)
        if np.isin(hits_Q, (0.0, 1.0)).all() and abs(float(hits_Q.mean()) - value) < 1e-9:
            return hits_Q
    return None


def _candidates(numbers: Mapping[str, Any], metric: str) -> list[Any]:
    ranked = _RANKED.match(metric)
    found = [numbers["rank"] <= int(ranked[1])] if ranked and "rank" in numbers else []
    return found + [numbers[name] for name in (metric, "correct") if name in numbers]
