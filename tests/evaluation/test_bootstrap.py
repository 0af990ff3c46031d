"""Intervals: coverage on simulated data, clusters against single queries, seeds, limits and paired differences."""

import numpy as np
import pytest

from data.errors import EvaluationError
from evaluation import bootstrap
from evaluation.bootstrap import estimate, paired_difference
from evaluation.metrics import Metric
from evaluation.queries import Queries
from evaluation.specs import Bootstrap

TOP1 = Metric("top1", "hit", 1)
MEDIAN = Metric("x_median_rank", "median_rank")


def queries(ranks, clusters=None, ids=None, labels=None):
    count = len(ranks)
    ids = ids or [f"q{i}" for i in range(count)]
    return Queries(
        ids=ids, clusters=clusters or ids, labels=labels or ["a"] * count, predictions=[""] * count,
        ranks=np.asarray(ranks, np.int64), ties=np.zeros(count, np.int64), positives=np.ones(count, np.int64),
        candidates=np.full(count, 50, np.int64),
    )  # fmt: skip


def clustered(random, clusters=60, size=8):
    """Hits that come in clusters: the truth is 0.5, one concept is found in most of its pictures or in few."""
    skill = random.beta(1.0, 1.0, clusters)
    hits = random.random((clusters, size)) < skill[:, None]
    return queries(np.where(hits.ravel(), 1, 9), [f"c{i}" for i in range(clusters) for _ in range(size)])


def test_interval_covers_the_truth_when_whole_clusters_are_resampled_and_not_otherwise():
    random, spec = np.random.default_rng(0), Bootstrap(resamples=200)
    covered = {"clusters": 0, "single": 0}
    for _ in range(150):
        rows = clustered(random)
        single = queries(rows.ranks)
        for name, sample in (("clusters", rows), ("single", single)):
            (found,) = estimate(sample, [TOP1], spec)
            covered[name] += found.low <= 0.5 <= found.high
    assert 0.88 <= covered["clusters"] / 150 <= 0.99
    assert covered["single"] / 150 < 0.80  # the negative control: ignoring clusters pretends to know more


def test_same_seed_same_interval_whatever_the_block(monkeypatch):
    rows = clustered(np.random.default_rng(4))
    first = estimate(rows, [TOP1, MEDIAN], Bootstrap(resamples=150, seed=7))
    monkeypatch.setattr(bootstrap, "_BLOCK_WEIGHTS", 5 * 480)
    assert estimate(rows, [TOP1, MEDIAN], Bootstrap(resamples=150, seed=7)) == first
    assert estimate(rows, [TOP1, MEDIAN], Bootstrap(resamples=150, seed=8)) != first


def test_an_interval_holds_its_value_and_shrinks_with_more_queries():
    random = np.random.default_rng(2)
    widths = []
    for count in (100, 10_000):
        (found,) = estimate(queries(np.where(random.random(count) < 0.3, 1, 5)), [TOP1], Bootstrap(resamples=300))
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.4)


def test_nothing_found_is_not_certainty():
    (found,) = estimate(queries([9] * 20), [TOP1], Bootstrap())
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 20))
    (all_found,) = estimate(queries([1] * 20), [TOP1], Bootstrap())
    assert (all_found.high, all_found.low) == (1, pytest.approx(0.025 ** (1 / 20)))


def test_one_cluster_says_nothing():
    found = estimate(queries([1, 9, 1], clusters=["c"] * 3), [TOP1, MEDIAN], Bootstrap())
    assert [estimate[1:] for estimate in found] == [(0, 1), (1, 50)]


def test_paired_difference_of_a_model_with_itself_is_zero():
    rows = clustered(np.random.default_rng(1))
    assert paired_difference(rows, rows, TOP1, Bootstrap()) == (0, 0, 0)


def test_paired_difference_is_sharper_than_two_intervals_and_signed():
    random = np.random.default_rng(6)
    base = np.where(random.random(1500) < 0.4, 1, 9)
    better = np.where((base == 1) | (random.random(1500) < 0.06), 1, 9)
    theirs, ours = queries(base), queries(better)
    difference = paired_difference(ours, theirs, TOP1, Bootstrap())
    (a,), (b,) = estimate(ours, [TOP1], Bootstrap()), estimate(theirs, [TOP1], Bootstrap())
    assert difference.value == pytest.approx(a.value - b.value)
    assert 0 < difference.low < difference.value < difference.high
    assert b.high > a.low  # apart, the two intervals overlap
    reverse = paired_difference(theirs, ours, TOP1, Bootstrap())
    assert reverse == pytest.approx((-difference.value, -difference.high, -difference.low))


def test_paired_difference_does_not_depend_on_the_order_of_queries():
    random = np.random.default_rng(8)
    ours, ranks = queries(random.integers(1, 4, 50)), random.integers(1, 4, 50)
    theirs, order = queries(ranks), random.permutation(50)
    shuffled = queries(ranks[order], ids=[f"q{i}" for i in order])
    assert paired_difference(ours, shuffled, TOP1, Bootstrap()) == paired_difference(ours, theirs, TOP1, Bootstrap())


def test_other_queries_cannot_be_compared():
    with pytest.raises(EvaluationError, match=r"differ in 2 queries, .* 'q1'"):
        paired_difference(queries([1, 2]), queries([1, 2], ids=["q0", "q9"]), TOP1, Bootstrap())
