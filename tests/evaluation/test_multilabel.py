"""mAP and macro F1: by hand, against scikit-learn, by repeating samples, and what who knows nothing gets."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from evaluation.bootstrap import estimate
from evaluation.metrics.classes import MacroF1
from evaluation.metrics.multilabel import multilabel_metrics, random_average_precision
from evaluation.rows import Rows
from evaluation.specs import Bootstrap


def rows_of(scores_QC, truth_QC, clusters=None):
    count = len(scores_QC)
    ids = [f"q{i}" for i in range(count)]
    numbers = {f"score_{c}": column for c, column in enumerate(np.asarray(scores_QC, float).T)}
    numbers |= {f"truth_{c}": column for c, column in enumerate(np.asarray(truth_QC, int).T)}
    return Rows(ids, clusters or ids, [""] * count, [""] * count, numbers)


def mean_ap(scores_QC, truth_QC, weights=None, clusters=None):
    rows = rows_of(scores_QC, truth_QC, clusters)
    (metric,) = multilabel_metrics([str(c) for c in range(np.shape(truth_QC)[1])])
    weights = np.ones((1, rows.clusters_Q.max() + 1)) if weights is None else np.asarray(weights, float)
    return metric.statistic(rows)(weights)


def drawn(seed, count=120, classes=9, levels=None):
    random = np.random.default_rng(seed)
    truth = random.random((count, classes)) < random.uniform(0.05, 0.5, classes)
    truth[0] = True
    scores = random.normal(size=(count, classes)) + truth
    return (np.floor(scores * levels) if levels else scores), truth


def test_average_precision_by_hand():
    # positives at ranks 1 and 3: (1/1 + 2/3) / 2
    assert mean_ap([[0.9], [0.8], [0.7], [0.6]], [[1], [0], [1], [0]])[0] == pytest.approx(5 / 6)
    # a tie of a positive and a negative at the top: both are found at once
    assert mean_ap([[0.9], [0.9], [0.7], [0.6]], [[1], [0], [1], [0]])[0] == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("levels", [None, 2])
def test_parity_with_scikit_learn(levels):
    scores, truth = drawn(0, levels=levels)
    assert mean_ap(scores, truth)[0] == pytest.approx(average_precision_score(truth, scores, average="macro"), abs=1e-9)


def test_a_constant_gets_the_share_of_positives_and_a_perfect_score_one():
    _, truth = drawn(1)
    assert mean_ap(np.zeros(truth.shape), truth)[0] == pytest.approx(truth.mean())
    assert mean_ap(truth, truth)[0] == 1


def test_chance_is_the_mean_over_all_orders():
    for positives in (1, 2, 4):
        truth = np.array([1] * positives + [0] * (5 - positives))
        found = [average_precision_score(truth, order) for order in itertools.permutations(range(5))]
        assert random_average_precision(positives, 5) == pytest.approx(np.mean(found))
    assert random_average_precision([1], 1) == [1]


def test_a_class_without_positives_does_not_count():
    scores, truth = drawn(2, classes=4)
    truth[:, 2] = False
    assert mean_ap(scores, truth)[0] == pytest.approx(mean_ap(scores[:, [0, 1, 3]], truth[:, [0, 1, 3]])[0])
    (metric,) = multilabel_metrics("abcd")
    both = metric.chance(rows_of(scores, truth)), random_average_precision(truth.sum(axis=0)[[0, 1, 3]], 120).mean()
    assert both[0] == pytest.approx(both[1])
    assert np.isnan(mean_ap(scores, np.zeros_like(truth))[0])


def test_weights_are_repeated_samples():
    scores, truth = drawn(3, count=30, levels=2)
    clusters = [f"c{i // 3}" for i in range(30)]
    weights_RG = np.random.default_rng(0).integers(0, 3, (20, 10))
    found = mean_ap(scores, truth, weights_RG, clusters)
    number = {name: i for i, name in enumerate(sorted(set(clusters)))}
    for weights_G, value in zip(weights_RG, found, strict=True):
        rows = np.repeat(np.arange(30), [weights_G[number[name]] for name in clusters])
        has = truth[rows].any(axis=0)  # a class that the draw leaves out does not count in it
        expected = average_precision_score(truth[rows][:, has], scores[rows][:, has], average="macro")
        assert value == pytest.approx(expected, abs=1e-9)


def test_shuffled_truth_is_at_chance():
    scores, truth = drawn(4, count=800)
    shuffled = truth[np.random.default_rng(1).permutation(800)]
    (metric,) = multilabel_metrics([str(c) for c in range(9)])
    for labels, is_chance in ((shuffled, True), (truth, False)):
        rows = rows_of(scores, labels)
        (found,) = estimate(rows, [metric], Bootstrap(resamples=200))
        # nine classes: the interval of shuffled labels may lie a little off
        assert (abs(found.value - metric.chance(rows)) < 0.02) == is_chance
        assert found.low < found.value < found.high


def classified(labels, predictions, candidates, correct=None, clusters=None):
    ids = [f"q{i}" for i in range(len(labels))]
    correct = np.asarray([a == b for a, b in zip(labels, predictions, strict=True)] if correct is None else correct)
    numbers = {"correct": correct.astype(int), "candidates": np.full(len(labels), candidates)}
    return Rows(ids, clusters or ids, list(labels), list(predictions), numbers)


def macro_f1(rows, weights=None):
    weights = np.ones((1, rows.clusters_Q.max() + 1)) if weights is None else np.asarray(weights, float)
    return MacroF1("macro_f1").statistic(rows)(weights)


def test_macro_f1_by_hand_and_a_tie_is_nobodys():
    # a: 1 hit of 2 samples, 1 prediction -> 2/3; b: 1 hit of 1, 2 predictions -> 2/3
    assert macro_f1(classified("aab", "abb", 2))[0] == pytest.approx(2 / 3)
    # the first is tied: a has no hit and no prediction left
    assert macro_f1(classified("aab", "abb", 2, correct=[0, 0, 1]))[0] == pytest.approx(1 / 3)
    assert macro_f1(classified("ab", "ab", 2, correct=[0, 0]))[0] == 0
    # a: 1 hit of 3 samples, its tie is no prediction -> 1/2; b: 1 hit of 1, 2 predictions -> 2/3
    assert macro_f1(classified("aaab", "aabb", 2, correct=[1, 0, 0, 1]))[0] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_macro_f1_is_scikit_learns_over_the_classes_that_samples_have():
    random = np.random.default_rng(0)
    labels, predictions = random.choice(list("abcde"), (2, 200))
    assert macro_f1(classified(labels, predictions, 5))[0] == pytest.approx(
        f1_score(labels, predictions, average="macro"), abs=1e-12
    )
    strange = np.where(random.random(200) < 0.2, "z", predictions)  # predicted, never right
    expected = f1_score(labels, strange, average="macro", labels=list("abcde"))
    assert macro_f1(classified(labels, strange, 6))[0] == pytest.approx(expected, abs=1e-12)
    assert expected > f1_score(labels, strange, average="macro")


def test_macro_f1_weights_are_repeated_samples():
    random = np.random.default_rng(5)
    labels, predictions = random.choice(list("abcd"), (2, 24))
    clusters = [f"c{i // 4}" for i in range(24)]
    weights_RG = random.integers(0, 3, (20, 6))
    found = macro_f1(classified(labels, predictions, 4, clusters=clusters), weights_RG)
    for weights_G, value in zip(weights_RG, found, strict=True):
        rows = np.repeat(np.arange(24), np.repeat(weights_G, 4))
        known = sorted(set(labels[rows]))
        expected = f1_score(labels[rows], predictions[rows], average="macro", labels=known, zero_division=0)
        assert value == pytest.approx(expected)


def test_macro_f1_chance_is_the_mean_over_all_guesses():
    labels = "aaab"
    guesses = [macro_f1(classified(labels, guess, 3))[0] for guess in itertools.product("abc", repeat=4)]
    assert MacroF1("macro_f1").chance(classified(labels, labels, 3)) == pytest.approx(np.mean(guesses))
