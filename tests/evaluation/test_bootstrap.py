"""Intervals: clusters against single samples, seeds, limits, and differences of models that met the same draws."""

import numpy as np
import pytest

from data.errors import EvaluationError
from evaluation import bootstrap
from evaluation.bootstrap import estimate, interval_of_difference, samples_digest
from evaluation.metrics.base import Mean
from evaluation.metrics.ranked import Hit, MedianRank
from evaluation.rows import Rows
from evaluation.specs import Bootstrap

TOP1, MEDIAN = Hit("top1", 1), MedianRank("median_rank")


def ranked(ranks, clusters=None, ids=None):
    count = len(ranks)
    ids = ids or [f"q{i}" for i in range(count)]
    ranks = np.asarray(ranks, np.int64)
    numbers = {"rank": ranks, "positives": np.ones(count, np.int64), "candidates": np.full(count, 50)}
    return Rows(ids, clusters or ids, ["a"] * count, [""] * count, numbers)


def clustered(random, clusters=60, size=8):
    """Hits that come in clusters: one concept is found in most of its pictures, another in few."""
    hits = random.random((clusters, size)) < random.beta(1.0, 1.0, clusters)[:, None]
    return ranked(np.where(hits.ravel(), 1, 9), [f"c{i}" for i in range(clusters) for _ in range(size)])


def same(ours, theirs):
    return ours[:3] == theirs[:3] and np.array_equal(ours.draws, theirs.draws)


def test_draws_equal_resampling_clusters_by_hand():
    rows = ranked([1, 9, 1, 1, 9, 9, 1], clusters=["a", "a", "b", "c", "c", "c", "d"])
    (found,) = estimate(rows, [TOP1], Bootstrap(resamples=100, seed=5))
    random, ranks = np.random.default_rng(5), rows.numbers["rank"]
    members = [np.flatnonzero(rows.clusters_Q == g) for g in range(4)]
    expected = [(ranks[np.concatenate([members[g] for g in random.integers(0, 4, 4)])] == 1).mean() for _ in range(100)]
    assert found.draws == pytest.approx(expected)
    assert (found.low, found.high) == tuple(np.quantile(expected, (0.025, 0.975)))


def test_clusters_make_an_interval_wider_as_theory_says():
    random = np.random.default_rng(0)
    rows = clustered(random)
    together, apart = (estimate(r, [TOP1], Bootstrap())[0] for r in (rows, ranked(rows.numbers["rank"])))
    assert together.value == apart.value
    # variance grows by 1 + (size - 1) * correlation within a cluster; Beta(1, 1) correlates by 1 / 3
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(np.sqrt(1 + 7 / 3), rel=0.2)


def test_same_seed_same_draws_whatever_the_block(monkeypatch):
    rows = clustered(np.random.default_rng(4))
    first = estimate(rows, [TOP1, MEDIAN], Bootstrap(resamples=150, seed=7))
    monkeypatch.setattr(bootstrap, "_BLOCK_WEIGHTS", 5 * 480)
    again = estimate(rows, [TOP1, MEDIAN], Bootstrap(resamples=150, seed=7))
    other = estimate(rows, [TOP1, MEDIAN], Bootstrap(resamples=150, seed=8))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].value == other[0].value
    assert not np.array_equal(first[0].draws, other[0].draws)


def test_a_metric_has_the_same_draws_alone_and_among_others():
    rows = clustered(np.random.default_rng(4))
    assert same(estimate(rows, [MEDIAN, TOP1], Bootstrap())[1], estimate(rows, [TOP1], Bootstrap())[0])


def test_an_interval_holds_its_value_and_shrinks_with_more_samples():
    random, widths = np.random.default_rng(2), []
    for count in (100, 10_000):
        (found,) = estimate(ranked(np.where(random.random(count) < 0.3, 1, 5)), [TOP1], Bootstrap(resamples=300))
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.4)


def test_nothing_found_is_not_certainty():
    (found,) = estimate(ranked([9] * 20), [TOP1], Bootstrap())
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 20))  # Clopper-Pearson for 0 of 20
    (found,) = estimate(ranked([1] * 20), [TOP1], Bootstrap())
    assert (found.high, found.low) == (1, pytest.approx(0.025 ** (1 / 20)))
    # 20 samples of 2 clusters are 2 observations
    (found,) = estimate(ranked([9] * 20, clusters=["a", "b"] * 10), [TOP1], Bootstrap())
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 2))
    (found,) = estimate(ranked([1] * 20, clusters=["a", "b"] * 10), [TOP1], Bootstrap())
    assert found.low == pytest.approx(0.025 ** (1 / 2))


def test_one_cluster_says_nothing():
    found = estimate(ranked([1, 9, 1], clusters=["c"] * 3), [TOP1, MEDIAN], Bootstrap())
    assert [(one.low, one.high) for one in found] == [(0, 1), (1, 50)]
    assert all(np.isnan(one.draws).all() for one in found)  # nothing that could be compared


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_a_number_is_an_error(bad):
    rows = Rows(["q0", "q1"], ["q0", "q1"], ["", ""], ["", ""], {"loss": np.array([0.5, bad])})
    with pytest.raises(EvaluationError, match=r"^metric 'nll': not defined on these 2 samples"):
        estimate(rows, [Mean("nll", "loss", unit="number", bounds=(0, np.inf))], Bootstrap())


def test_draws_that_do_not_define_a_metric_are_left_out_of_its_interval():
    chosen = np.array([1, 0, 0, 0, 0])
    rows = Rows([*"abcde"], [*"abcde"], [""] * 5, [""] * 5, {"score": np.arange(5) + 3.0, "chosen": chosen})
    (found,) = estimate(rows, [Mean("score", "score", "number", where="chosen", bounds=(0, 9))], Bootstrap())
    missed = np.isnan(found.draws).mean()
    assert missed == pytest.approx((4 / 5) ** 5, abs=0.06)  # the only sample that counts was not drawn
    assert (found.value, found.low, found.high) == (3, 3, 3)


def test_the_difference_of_a_model_with_itself_is_zero():
    (found,) = estimate(clustered(np.random.default_rng(1)), [TOP1], Bootstrap())
    assert interval_of_difference(found.draws, found.draws) == (0, 0)


def test_a_paired_difference_is_sharper_than_two_intervals_and_signed():
    random = np.random.default_rng(6)
    base = np.where(random.random(1500) < 0.4, 1, 9)
    better = np.where((base == 1) | (random.random(1500) < 0.06), 1, 9)
    (ours,), (theirs,) = (estimate(ranked(ranks), [TOP1], Bootstrap()) for ranks in (better, base))
    low, high = interval_of_difference(ours.draws, theirs.draws)
    assert 0 < low < ours.value - theirs.value < high
    assert theirs.high > ours.low  # apart, the two intervals overlap
    assert interval_of_difference(theirs.draws, ours.draws) == pytest.approx((-high, -low))
    # the width is that of the samples that differ, not of all: sqrt(p (1 - p) / n) with p some 3.6 %
    differ = (better != base).mean()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(differ * (1 - differ) / 1500), rel=0.15)


def test_draws_do_not_depend_on_the_order_of_samples():
    random = np.random.default_rng(8)
    ranks, clusters, order = random.integers(1, 4, 50), [f"c{i % 7}" for i in range(50)], random.permutation(50)
    whole = ranked(ranks, clusters)
    shuffled = ranked(ranks[order], [clusters[i] for i in order], [f"q{i}" for i in order])
    for a, b in zip(*(estimate(rows, [TOP1, MEDIAN], Bootstrap()) for rows in (whole, shuffled)), strict=True):
        assert a.draws == pytest.approx(b.draws)
    assert samples_digest(whole) == samples_digest(shuffled)


@pytest.mark.parametrize(
    "other",
    [ranked([1, 2], ids=["q0", "q9"]), ranked([1, 2], clusters=["q0", "q0"]), ranked([1, 2, 3]), ranked([1])],
    ids=["sample", "cluster", "more", "fewer"],
)
def test_other_samples_or_clusters_have_another_digest(other):
    assert samples_digest(other) != samples_digest(ranked([1, 2]))
    assert samples_digest(ranked([7, 9])) == samples_digest(ranked([1, 2]))  # what was found does not count
