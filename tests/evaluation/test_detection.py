"""AUROC and both FPR95 rules against counting all pairs and thresholds, with ties; OOD scores and their ensemble."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.bootstrap import estimate
from evaluation.metrics.detection import AUROC, FPR95, ClosestFPR95
from evaluation.rows import Rows
from evaluation.scores import out_scores, probability_scores, softmax
from evaluation.specs import Bootstrap

ALL = (AUROC("auroc", "s"), FPR95("fpr95", "s"), ClosestFPR95("fpr95_closest", "s"))


def rows_of(inside, outside, clusters=None):
    scores = np.concatenate([inside, outside]).astype(float)
    ids = [f"q{i}" for i in range(len(scores))]
    numbers = {"s": scores, "is_out": np.repeat([0, 1], [len(inside), len(outside)])}
    return Rows(ids, clusters or ids, [""] * len(ids), [""] * len(ids), numbers)


def values(rows, weights=None):
    weights = np.ones((1, rows.clusters_Q.max() + 1)) if weights is None else np.asarray(weights, float)
    return np.stack([metric.statistic(rows)(weights) for metric in ALL])


def brute_force(inside, outside):
    """All pairs; then every threshold by its definition."""
    wins = np.mean([(out > own) + 0.5 * (out == own) for out in outside for own in inside])
    found = []
    for threshold in sorted({*inside, *outside}):
        accepted_in = sum(own <= threshold for own in inside)
        found.append((accepted_in, sum(out <= threshold for out in outside) / len(outside)))
    smallest = next(share for accepted, share in found if 100 * accepted >= 95 * len(inside))
    full = next(i for i, (accepted, _) in enumerate(found) if accepted == len(inside))
    best = min(found[: full + 1], key=lambda one: (abs(100 * one[0] - 95 * len(inside)), -one[0], -one[1]))
    return wins, smallest, best[1]


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_equal_brute_force_with_ties(levels):
    random = np.random.default_rng(levels)
    for inside, outside in ((1, 1), (3, 20), (20, 3), (37, 41), (40, 40), (100, 30)):
        own, other = random.integers(0, levels, inside), random.integers(0, levels, outside) + levels // 5
        assert values(rows_of(own, other))[:, 0] == pytest.approx(brute_force(own, other)), (inside, outside)


def test_auroc_is_scikit_learns():
    random = np.random.default_rng(0)
    rows = rows_of(random.normal(size=80).round(1), random.normal(size=50).round(1) + 0.5)
    expected = roc_auc_score(rows.numbers["is_out"], rows.numbers["s"])
    assert values(rows)[0, 0] == pytest.approx(expected, abs=1e-12)


def test_by_hand_the_two_rules_differ():
    # 10 ID: 95 % needs all of them, but 9 and 10 are equally close and the larger recall is taken
    inside, outside = np.arange(10), np.array([0.5, 8.5, 9.5])
    assert values(rows_of(inside, outside))[1:, 0].tolist() == pytest.approx([2 / 3, 2 / 3])
    # 14 ID: 14 are asked by ours; 13 (92.9 %) are closer to 95 % than 14, up to the next ID sample
    inside = np.arange(14)
    assert values(rows_of(inside, np.array([11.5, 12.5, 14.0])))[1:, 0].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert values(rows_of(inside, np.array([12.5, 13.0, 14.0])))[1:, 0].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_limits_perfect_constant_and_reversed():
    assert values(rows_of([0, 1], [2, 3]))[:, 0].tolist() == [1, 0, 0]
    assert values(rows_of([1, 1, 1], [1, 1]))[:, 0].tolist() == [0.5, 1, 1]  # a constant earns nothing
    assert values(rows_of([2, 3], [0, 1]))[:, 0].tolist() == [0, 1, 1]


def test_only_the_order_of_scores_matters():
    random = np.random.default_rng(1)
    own, other = random.normal(size=30), random.normal(size=30)
    assert values(rows_of(own, other)) == pytest.approx(values(rows_of(np.exp(own), np.exp(other))))


def test_weights_are_repeated_samples_and_a_draw_without_one_side_is_not_defined():
    random = np.random.default_rng(2)
    own, other = random.integers(0, 9, 24), random.integers(2, 11, 16)
    clusters = [f"c{i // 4}" for i in range(40)]
    names = sorted(set(clusters))
    weights_RG = random.integers(0, 3, (30, 10))
    weights_RG[0, [names.index(f"c{i}") for i in range(6)]] = 0  # no ID drawn
    found = values(rows_of(own, other, clusters), weights_RG)
    assert np.isnan(found[:, 0]).all()
    scores, is_out = np.concatenate([own, other]), np.arange(40) >= 24
    for weights_G, value in zip(weights_RG[1:], found.T[1:], strict=True):
        repeats = [weights_G[names.index(name)] for name in clusters]
        own, other = np.repeat(scores, repeats * ~is_out), np.repeat(scores, repeats * is_out)
        if len(other):
            assert value == pytest.approx(brute_force(own, other))
        else:
            assert np.isnan(value).all()


@pytest.mark.parametrize("inside", [7, 10, 19, 20, 50])
def test_chance_is_what_random_scores_get_and_the_interval_holds_it(inside):
    random = np.random.default_rng(inside)
    found = np.stack([values(rows_of(random.random(inside), random.random(60)))[:, 0] for _ in range(300)])
    expected = [metric.chance(rows_of(np.zeros(inside), np.zeros(60))) for metric in ALL]
    assert found.mean(axis=0) == pytest.approx(expected, abs=4 * (found.std(axis=0) / np.sqrt(300)).max())


def test_identical_laws_are_told_apart_by_nobody():
    random = np.random.default_rng(4)
    (found,) = estimate(rows_of(random.normal(size=400), random.normal(size=400)), ALL[:1], Bootstrap(resamples=300))
    assert found.low < 0.5 < found.high


# ------------------------------------------------------------------------------------------------------------ scores


def test_scores_by_hand():
    cosines = np.array([[0.5, 0.5], [1.0, 0.0]])
    found = out_scores(cosines, np.log(3), ("msp", "entropy", "mcm", "energy"))
    assert found["msp"] == pytest.approx([0.5, 0.25])
    assert found["entropy"] == pytest.approx([np.log(2), -0.75 * np.log(0.75) - 0.25 * np.log(0.25)])
    assert found["mcm"] == pytest.approx([0.5, 1 / (np.e + 1)])  # the scale is not used
    assert found["energy"] == pytest.approx([-np.log(2 * 3**0.5), -np.log(3 + 1)])
    assert list(out_scores(cosines, 2.0, ("mcm",))) == ["mcm"]


def test_every_score_is_higher_for_what_fits_no_class():
    flat, sharp = np.array([[0.2, 0.2, 0.2]]), np.array([[0.3, 0.1, 0.1]])
    names = ("msp", "entropy", "mcm", "energy")
    strange, plain = out_scores(flat, 100.0, names), out_scores(sharp, 100.0, names)
    assert all(strange[name][0] > plain[name][0] for name in names)


def test_sure_pictures_keep_their_order_and_rounding_is_a_tie():
    found = out_scores(np.array([[0.9, 0.1], [0.8, 0.1], [0.8 + 1e-16, 0.1]]), 100.0, ("msp", "entropy", "energy"))
    assert softmax(np.array([[90.0, 10.0], [80.0, 10.0]])).max(axis=1).tolist() == [1, 1]
    for scores in found.values():
        assert scores[0] < scores[1] == scores[2]


def simplices(seed, members, count=200, classes=5):
    return softmax(np.random.default_rng(seed).normal(size=(members * count, classes)) * 3).reshape(members, count, -1)


def test_entropy_of_a_mean_is_at_least_the_mean_of_entropies_and_order_free():
    members = simplices(0, 3)
    mean = probability_scores(members.mean(axis=0))["entropy"]
    own = [probability_scores(member)["entropy"] for member in members]
    assert (mean >= np.mean(own, axis=0) - 1e-12).all()
    assert probability_scores(members[::-1].mean(axis=0))["entropy"] == pytest.approx(mean)
    same = probability_scores(np.stack([members[0]] * 3).mean(axis=0))["entropy"]
    assert same == pytest.approx(own[0])


def test_an_ensemble_beats_its_members_when_their_errors_are_independent_and_not_when_they_are_the_same():
    random = np.random.default_rng(5)

    def auroc(probabilities):
        return values(rows_of(*np.split(probability_scores(probabilities)["entropy"], [500])))[0, 0]

    def member(noise):
        logits = noise * 2.0
        logits[:500, 0] += 2.5  # ID has a class
        return softmax(logits)

    apart = [member(random.normal(size=(1000, 6))) for _ in range(3)]
    assert auroc(np.mean(apart, axis=0)) > max(map(auroc, apart)) + 0.02
    noise = random.normal(size=(1000, 6))
    together = [member(noise.copy()) for _ in range(3)]
    assert auroc(np.mean(together, axis=0)) == pytest.approx(auroc(together[0]))
