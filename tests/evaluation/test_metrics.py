"""Metrics of ranked candidates: hand-computed values, chance by counting all orders, weights by repeating samples."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from data.errors import EvaluationError
from evaluation import ranks as ranks_module
from evaluation.metrics.base import Mean, mean_over_clusters
from evaluation.metrics.ranked import GroupHit, Hit, MedianRank, chance_hit, retrieval_metrics, zero_shot_metrics
from evaluation.ranks import rank_candidates, rank_scores, require_finite
from evaluation.rows import Rows

RECALL = GroupHit("mean_per_class_recall")


def ranked(ranks, labels=None, clusters=None, candidates=10, positives=1, **numbers):
    count = len(ranks)
    ids = [f"q{i}" for i in range(count)]
    shape = {"positives": np.full(count, positives), "candidates": np.full(count, candidates)}
    ranks = np.asarray(ranks, np.int64)
    return Rows(
        ids, clusters or ids, labels or ["a"] * count, ["a"] * count,
        {"rank": ranks, "ties": np.zeros(count, np.int64), "correct": (ranks == 1).astype(int)} | shape | numbers,
    )  # fmt: skip


def value(metric, rows):
    return float(metric.statistic(rows)(np.ones((1, rows.clusters_Q.max() + 1)))[0])


# ------------------------------------------------------------------------------------------------------------- ranks


def test_best_of_several_positives_counts_and_a_tie_between_positives_costs_nothing():
    query = np.array([[1.0, 0.0]], np.float32)
    candidates = np.array([[0.9, 0.0], [0.5, 0.0], [0.5, 0.0], [0.1, 0.0]], np.float32)
    found = rank_candidates(query, candidates, [[1, 2]])
    assert (found.rank[0], found.ties[0], found.best[0]) == (2, 0, 0)


def test_a_tie_with_a_wrong_candidate_costs_a_rank_and_is_counted():
    found = rank_candidates(np.array([[1.0]], np.float32), np.array([[0.5], [0.5], [0.2]], np.float32), [[0]])
    assert (found.rank[0], found.ties[0]) == (2, 1)


def test_rounding_is_a_tie_and_an_opinion_is_not():
    for gap, rank, ties in ((3e-6, 2, 1), (8e-6, 1, 0), (-3e-6, 2, 1), (-8e-6, 2, 0)):
        found = rank_scores([np.array([[0.5, 0.5 - gap]])], [[0]])
        assert (found.rank[0], found.ties[0]) == (rank, ties), gap


def test_ranks_equal_brute_force_whatever_the_block(monkeypatch):
    random = np.random.default_rng(0)
    left, right = random.normal(size=(40, 8)).astype(np.float32), random.normal(size=(60, 8)).astype(np.float32)
    positives = [sorted(random.choice(60, size=random.integers(1, 4), replace=False).tolist()) for _ in range(40)]
    whole = rank_candidates(left, right, positives)
    monkeypatch.setattr(ranks_module, "_BLOCK_SCORES", 7 * 60)
    blocks = rank_candidates(left, right, positives)
    scores = left @ right.T
    for row, columns in enumerate(positives):
        wrong = [c for c in range(60) if c not in columns]
        assert whole.rank[row] == 1 + sum(scores[row, c] >= scores[row, columns].max() for c in wrong)
    assert whole.positives.tolist() == [len(columns) for columns in positives]
    assert all((a == b).all() for a, b in zip(whole, blocks, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_an_error(bad):
    features = np.ones((3, 2), np.float32)
    features[1, 0] = bad
    with pytest.raises(EvaluationError, match=r"^uid 'b': its feature is not finite \(1 of 3\)"):
        require_finite(features, ["a", "b", "c"], "uid")


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_score_that_is_not_a_number_is_never_a_rank(column):
    # every comparison with NaN is false: counting what lies above it would say rank 1
    scores = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    scores[1, column] = np.nan
    with pytest.raises(EvaluationError, match=r"sample 3 of 3.*not a number"):
        rank_scores([np.zeros((1, 3)), scores], [[0], [0], [0]])


def test_endless_scores_tie_with_each_other():
    found = rank_scores([np.array([[np.inf, np.inf, 0], [-np.inf, -np.inf, 0], [0, -np.inf, -np.inf]])], [[0]] * 3)
    assert found.rank.tolist() == [2, 3, 1]
    assert found.ties.tolist() == [1, 1, 0]


# ------------------------------------------------------------------------------------------------------------ values


def test_hit_rate_and_median_rank_by_hand():
    rows = ranked([1, 2, 6, 10])
    assert value(Hit("top1", 1), rows) == 0.25
    assert value(Hit("top5", 5), rows) == 0.5
    assert value(MedianRank("m"), rows) == 2
    assert value(MedianRank("m"), ranked([1, 2, 6])) == 2
    assert value(MedianRank("m"), ranked([9, 1, 9, 9])) == 9


def test_group_hits_by_hand():
    rows = ranked([1, 1, 2, 6, 1], labels=["a", "a", "a", "b", "c"], group=np.array([0, 0, 0, 0, 1]))
    assert value(RECALL, rows) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert value(GroupHit("r5", 5), rows) == pytest.approx((1 + 0 + 1) / 3)
    assert value(GroupHit("w", 1, over="worst"), rows) == 0
    assert value(GroupHit("w", 1, "group", "worst"), rows) == pytest.approx(0.5)
    assert value(GroupHit("w", 1, "group"), rows) == pytest.approx(0.75)


def test_a_mean_counts_only_the_samples_asked_for():
    rows = ranked([1, 2, 1, 2], score=np.array([4.0, 1.0, 2.0, 100.0]), chosen=np.array([1, 1, 1, 0]))
    assert value(Mean("s", "score", where="chosen"), rows) == pytest.approx(7 / 3)
    assert value(Mean("s", "score"), rows) == pytest.approx(107 / 4)
    some = Mean("s", "score", where="chosen", chance_column="correct")
    assert some.chance(rows) == pytest.approx(2 / 3)
    assert Mean("s", "score", chance_value=0.5).chance(rows) == 0.5
    assert Mean("s", "score").chance(rows) is None


def test_a_mean_over_nothing_is_not_a_number_and_not_zero():
    statistic = mean_over_clusters(np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([0, 1]))
    assert np.array_equal(statistic(np.array([[1.0, 1.0], [0.0, 2.0]])), [1.0, np.nan], equal_nan=True)


def test_values_equal_scikit_learn():
    random = np.random.default_rng(1)
    classes = 7
    labels = random.choice(classes, size=400, p=np.array([8, 4, 2, 2, 2, 1, 1]) / 20)
    scores = random.normal(size=(400, classes)) + 1.2 * np.eye(classes)[labels]
    found = rank_scores([scores[:150], scores[150:]], [[label] for label in labels.tolist()])
    rows = ranked(found.rank, labels=[str(label) for label in labels])
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
        assert value(Hit("top", k), rows) == pytest.approx(expected, abs=1e-12)
    recall = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert value(RECALL, rows) == pytest.approx(recall, abs=1e-12)
    assert abs(recall - value(Hit("top1", 1), rows)) > 0.01  # the two are not the same thing here


METRICS = [
    Hit("top1", 1), Hit("top5", 5), RECALL, GroupHit("worst", 1, "group", "worst"), GroupHit("mean", 2, "group"),
    MedianRank("median"), Mean("mean", "score"), Mean("some", "score", where="chosen"),
]  # fmt: skip


def random_rows(random, count=60, clusters=9):
    """Two of four labels and one of three groups lie in one cluster each, so that draws leave them out."""
    clusters_Q, labels_Q, groups_Q = (random.integers(0, size, count) for size in (clusters, 2, 2))
    labels_Q = np.where(clusters_Q < 2, 2 + clusters_Q, labels_Q)
    groups_Q = np.where(clusters_Q == 2, 2, groups_Q)
    return ranked(
        random.integers(1, 12, count), [f"l{i}" for i in labels_Q], [f"c{i}" for i in clusters_Q], candidates=12,
        group=groups_Q,
        score=random.normal(size=count), chosen=random.integers(0, 2, count),
    )  # fmt: skip


def repeated(rows, weights_G):
    """Every cluster as often as its weight says."""
    times = weights_G[rows.clusters_Q].astype(int)
    pick = np.repeat(np.arange(len(rows)), times)
    columns = ([getattr(rows, name)[i] for i in pick] for name in ("ids", "clusters", "labels", "predictions"))
    return Rows(*columns, {name: column[pick] for name, column in rows.numbers.items()})


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_weight_means_so_many_copies_of_a_cluster(metric):
    random = np.random.default_rng(3)
    rows = random_rows(random)
    clusters = rows.clusters_Q.max() + 1
    weights_RG = np.stack([np.bincount(random.integers(0, clusters, clusters), minlength=clusters) for _ in range(25)])
    found = metric.statistic(rows)(weights_RG.astype(float))
    expected = [value(metric, repeated(rows, weights_G)) for weights_G in weights_RG]
    assert found == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 1  # the draws do differ


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_order_of_samples_changes_nothing(metric):
    random = np.random.default_rng(4)
    rows = random_rows(random)
    pick = random.permutation(len(rows))
    columns = ([getattr(rows, name)[i] for i in pick] for name in ("ids", "clusters", "labels", "predictions"))
    shuffled = Rows(*columns, {name: column[pick] for name, column in rows.numbers.items()})
    weights_RG = random.integers(0, 3, (5, rows.clusters_Q.max() + 1)).astype(float) + [1] * 9
    assert metric.statistic(rows)(weights_RG) == pytest.approx(metric.statistic(shuffled)(weights_RG), abs=1e-12)


# ------------------------------------------------------------------------------------------------------------ chance


@pytest.mark.parametrize(
    ("total", "positives", "k"), [(5, 1, 1), (6, 2, 3), (7, 3, 2), (4, 4, 1), (5, 2, 4), (3, 1, 9)]
)
def test_chance_of_a_hit_equals_counting_all_orders(total, positives, k):
    orders = list(itertools.permutations(range(total)))
    share = sum(min(order[:k]) < positives for order in orders) / len(orders)
    assert chance_hit(np.array([total]), np.array([positives]), k)[0] == pytest.approx(share)


@pytest.mark.parametrize(("total", "positives"), [(5, 1), (4, 1), (6, 2), (7, 3), (3, 3)])
def test_chance_of_the_median_rank_equals_counting_all_orders(total, positives):
    first = sorted(
        next(i for i, item in enumerate(order) if item < positives) + 1
        for order in itertools.permutations(range(total))
    )
    expected = first[math.ceil(len(first) / 2) - 1]
    assert MedianRank("m").chance(ranked([1], candidates=total, positives=positives)) == expected


def test_chance_of_samples_with_other_numbers_of_candidates_is_their_mean():
    rows = ranked([1, 1], candidates=4)
    rows.numbers["candidates"][1] = 2
    assert Hit("top1", 1).chance(rows) == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_chance_of_class_recall_is_one_over_the_classes():
    assert RECALL.chance(ranked([1, 2, 3, 4], labels=["a", "a", "a", "b"], candidates=8)) == pytest.approx(1 / 8)


def test_metrics_and_their_direction():
    made = [*zero_shot_metrics(100), *retrieval_metrics("image_to_text", (1, 5, 10))]
    assert len({metric.name for metric in made}) == len(made)
    assert {"top1", "top5", "mean_per_class_recall"} <= {metric.name for metric in zero_shot_metrics(6)}
    assert "top5" not in {metric.name for metric in zero_shot_metrics(5)}  # it would be 1 for everybody
    assert {metric.better for metric in made if metric.unit == "rank"} == {"lower"}
    assert {metric.better for metric in made if metric.unit == "fraction"} == {"higher"}
    for metric in made:
        if metric.unit == "fraction":
            assert metric.limits(ranked([1])) == (0, 1)
    assert MedianRank("m").limits(ranked([1], candidates=9)) == (1, 9)
