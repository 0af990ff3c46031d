"""Ranks, metrics and chance levels against hand-computed values, brute force and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from data.errors import EvaluationError
from evaluation import ranks as ranks_module
from evaluation.metrics import Metric, chance_hit, group_ids, metric_named, retrieval_metrics, zero_shot_metrics
from evaluation.queries import Queries
from evaluation.ranks import rank_candidates, require_finite


def queries(ranks, labels=None, clusters=None, candidates=10, positives=1):
    count = len(ranks)
    return Queries(
        ids=[f"q{i}" for i in range(count)], clusters=clusters or [f"q{i}" for i in range(count)],
        labels=labels or ["a"] * count, predictions=["a"] * count, ranks=np.array(ranks, np.int64),
        ties=np.zeros(count, np.int64), positives=np.full(count, positives, np.int64),
        candidates=np.full(count, candidates, np.int64),
    )  # fmt: skip


def value(metric, rows):
    clusters = group_ids(rows.clusters)
    return float(metric.statistic(rows, clusters)(np.ones((1, clusters.max() + 1)))[0])


def test_identity_similarity_is_found_first():
    eye = np.eye(7, dtype=np.float32)
    found = rank_candidates(eye, eye, [[i] for i in range(7)])
    assert found.rank.tolist() == [1] * 7
    assert found.ties.sum() == 0
    assert found.best.tolist() == list(range(7))


@pytest.mark.parametrize("total", [2, 7, 4099])
def test_a_constant_scorer_is_never_credited(total):
    same = np.full((max(total, 5), 96), 1 / math.sqrt(96), np.float32)
    found = rank_candidates(same[:5], same[:total], [[i % total] for i in range(5)])
    assert (found.rank == total).all()
    assert (found.ties == total - 1).all()


def test_best_of_several_positives_counts_and_a_tie_between_positives_costs_nothing():
    query = np.array([[1.0, 0.0]], np.float32)
    candidates = np.array([[0.9, 0.0], [0.5, 0.0], [0.5, 0.0], [0.1, 0.0]], np.float32)
    found = rank_candidates(query, candidates, [[1, 2]])
    assert (found.rank[0], found.ties[0], found.positives[0], found.best[0]) == (2, 0, 2, 0)


def test_a_tie_with_a_wrong_candidate_costs_a_rank_and_is_counted():
    query = np.array([[1.0]], np.float32)
    candidates = np.array([[0.5], [0.5], [0.2]], np.float32)
    found = rank_candidates(query, candidates, [[0]])
    assert (found.rank[0], found.ties[0]) == (2, 1)


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
    assert all((a == b).all() for a, b in zip(whole, blocks, strict=True))


def test_nan_is_an_error_and_never_a_number():
    features = np.ones((3, 2), np.float32)
    features[1, 0] = np.nan
    with pytest.raises(EvaluationError, match=r"'b'.*not finite"):
        require_finite(features, ["a", "b", "c"], "uid")


def test_hit_rate_and_median_rank_by_hand():
    rows = queries([1, 2, 6, 10])
    assert value(Metric("top1", "hit", 1), rows) == 0.25
    assert value(Metric("top5", "hit", 5), rows) == 0.5
    assert value(Metric("x_median_rank", "median_rank"), rows) == 2
    assert value(Metric("x_median_rank", "median_rank"), queries([1, 2, 6])) == 2


def test_mean_per_class_recall_is_balanced_accuracy():
    random = np.random.default_rng(1)
    labels = random.choice(["a", "b", "c"], size=200, p=[0.8, 0.15, 0.05])
    right = random.random(200) < np.where(labels == "a", 0.9, 0.3)
    predicted = np.where(right, labels, "other")
    with pytest.warns(UserWarning):  # classes that are only predicted
        expected = balanced_accuracy_score(labels, predicted)
    rows = queries(np.where(right, 1, 2), labels=labels.tolist())
    assert value(Metric("mean_per_class_recall", "class_recall"), rows) == pytest.approx(expected)
    assert value(Metric("mean_per_class_recall", "class_recall"), rows) != pytest.approx(right.mean(), abs=0.05)


@pytest.mark.parametrize(
    ("total", "positives", "k"), [(5, 1, 1), (6, 2, 3), (7, 3, 2), (4, 4, 1), (5, 2, 4), (3, 1, 9)]
)
def test_chance_of_a_hit_equals_counting_all_orders(total, positives, k):
    orders = list(itertools.permutations(range(total)))
    share = sum(min(order[:k]) < positives for order in orders) / len(orders)
    found = chance_hit(np.array([total]), np.array([positives]), k)
    assert found[0] == pytest.approx(share)


@pytest.mark.parametrize(("total", "positives"), [(5, 1), (4, 1), (6, 2), (7, 3), (3, 3)])
def test_chance_of_the_median_rank_equals_counting_all_orders(total, positives):
    first = sorted(
        next(i for i, item in enumerate(order) if item < positives) + 1
        for order in itertools.permutations(range(total))
    )
    expected = first[math.ceil(len(first) / 2) - 1]
    rows = queries([1], candidates=total, positives=positives)
    assert Metric("x_median_rank", "median_rank").chance(rows) == expected


def test_chance_of_class_recall_is_one_over_the_classes():
    rows = queries([1, 2, 3, 4], labels=["a", "a", "a", "b"], candidates=8)
    assert Metric("mean_per_class_recall", "class_recall").chance(rows) == pytest.approx(1 / 8)


def test_random_scores_reach_chance():
    random = np.random.default_rng(3)
    left, right = (random.normal(size=(n, 16)).astype(np.float32) for n in (4000, 20))
    found = rank_candidates(left, right, [[i % 20, (i + 1) % 20] for i in range(4000)])
    expected = chance_hit(np.array([20]), np.array([2]), 3)[0]
    assert (found.rank <= 3).mean() == pytest.approx(expected, abs=0.03)


def test_names_and_metrics_go_both_ways():
    made = [*zero_shot_metrics(100), *retrieval_metrics("image_to_text", (1, 5, 10))]
    assert [metric_named(metric.name) for metric in made] == made
    assert [metric.name for metric in zero_shot_metrics(5)] == ["top1", "mean_per_class_recall"]
    assert {metric.better for metric in made if metric.unit == "rank"} == {"lower"}
