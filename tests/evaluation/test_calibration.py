"""ECE by hand and by brute force, its noise floor, and the temperature that makes probabilities honest."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from evaluation.metrics.calibration import ExpectedCalibrationError, bin_numbers, expected_ece, reliability
from evaluation.rows import Rows
from evaluation.scores import fitted_temperature, log_likelihoods, softmax


def rows_of(confidence, correct, clusters=None):
    ids = [f"q{i}" for i in range(len(confidence))]
    numbers = {"confidence": np.asarray(confidence, float), "correct": np.asarray(correct, int)}
    return Rows(ids, clusters or ids, [""] * len(ids), [""] * len(ids), numbers)


def ece(rows, bins=15, binning="width", weights=None):
    metric = ExpectedCalibrationError("ece", bins=bins, binning=binning)
    weights = np.ones((1, rows.clusters_Q.max() + 1)) if weights is None else np.asarray(weights, float)
    return metric.statistic(rows)(weights)


def brute_force(confidence, correct, bins):
    total = 0.0
    for number in range(bins):
        own = [i for i, c in enumerate(confidence) if number / bins < c <= (number + 1) / bins]
        if own:
            gap = np.mean([correct[i] for i in own]) - np.mean([confidence[i] for i in own])
            total += len(own) / len(confidence) * abs(gap)
    return total


def stream(seed, count, shift=0.0):
    """Right as often as it says, or less often by `shift`."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.3, 1, count)
    return confidence, random.random(count) < confidence - shift


def test_ece_by_hand():
    # bins (0, .5] and (.5, 1]: |.4 - 1| of one sample, |.75 - .5| of two
    rows = rows_of([0.4, 0.7, 0.8], [1, 0, 1])
    assert ece(rows, 2)[0] == pytest.approx((0.6 + 0.5) / 3)
    # one bin: mean confidence against accuracy
    assert ece(rows, 1)[0] == pytest.approx(abs(1.9 - 2) / 3)
    # equal mass: {.4, .7} and {.8}
    assert ece(rows, 2, "mass")[0] == pytest.approx((abs(1.1 - 1) + 0.2) / 3)


def test_ece_equals_brute_force_for_any_bins():
    confidence, correct = stream(0, 300)
    for bins in (1, 2, 10, 15, 40):
        assert ece(rows_of(confidence, correct), bins)[0] == pytest.approx(brute_force(confidence, correct, bins))


def test_an_edge_belongs_to_the_bin_below_and_zero_and_one_to_the_ends():
    assert bin_numbers(np.array([0, 0.2, 0.2000001, 0.4, 1.0]), 5).tolist() == [0, 0, 1, 1, 4]


def test_a_calibrated_stream_is_within_sampling_error_and_a_bold_one_is_not():
    for count in (500, 20_000):
        confidence, correct = stream(1, count)
        for binning in ("width", "mass"):
            floor = expected_ece(confidence, 15, binning)
            assert 0.4 * floor < ece(rows_of(confidence, correct), binning=binning)[0] < 1.7 * floor
            bold = rows_of(*stream(1, count, shift=0.2))
            assert ece(bold, binning=binning)[0] == pytest.approx(0.2, abs=0.05)


def test_the_noise_floor_is_the_mean_ece_of_calibrated_streams():
    random = np.random.default_rng(3)
    confidence = random.uniform(0.3, 1, 400)
    found = [ece(rows_of(confidence, random.random(400) < confidence), 10)[0] for _ in range(300)]
    assert expected_ece(confidence, 10) == pytest.approx(np.mean(found), rel=0.05)


def test_equal_mass_bins_hold_equal_counts_and_do_not_depend_on_order():
    random = np.random.default_rng(2)
    confidence = random.random(150)
    assert np.bincount(bin_numbers(confidence, 15, "mass")).tolist() == [10] * 15
    tied, correct = np.round(confidence, 1), random.random(150) < 0.5
    order = random.permutation(150)
    whole = ece(rows_of(tied, correct), binning="mass")[0]
    assert ece(rows_of(tied[order], correct[order]), binning="mass")[0] == pytest.approx(whole, abs=1e-15)
    for value in np.unique(tied):  # equal confidences are never parted
        assert len(set(bin_numbers(tied, 15, "mass")[tied == value])) == 1
    assert ece(rows_of(np.full(9, 0.25), [0] * 9), binning="mass")[0] == pytest.approx(0.25)


def test_weights_are_repeated_samples_in_the_bins_of_the_whole():
    confidence, correct = stream(4, 40)
    clusters = [f"c{i // 4}" for i in range(40)]
    weights_RG = np.random.default_rng(0).integers(0, 3, (10, 10))
    rows = rows_of(confidence, correct, clusters)
    for weights_G, value in zip(weights_RG, ece(rows, weights=weights_RG), strict=True):
        repeated = np.repeat(np.arange(40), np.repeat(weights_G, 4))
        assert value == pytest.approx(brute_force(confidence[repeated], correct[repeated], 15))


def test_reliability_bins_give_back_the_ece():
    confidence, correct = stream(5, 200)
    bins = reliability(rows_of(confidence, correct), "confidence", 15)
    filled = [b for b in bins if b["count"]]
    total = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in filled) / 200
    assert total == pytest.approx(ece(rows_of(confidence, correct))[0])
    assert (len(bins), sum(b["count"] for b in bins)) == (15, 200)
    assert bins[0] == {"low": 0, "high": 1 / 15, "count": 0, "confidence": None, "accuracy": None}


# ------------------------------------------------------------------------------------------------------- temperature


def logits_of(seed, count=400, classes=6, sharpness=1.0):
    """Logits that are calibrated at sharpness 1: labels are drawn from their softmax."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)) * 2
    cumulative = softmax(logits).cumsum(axis=1)
    return logits * sharpness, (random.random((count, 1)) > cumulative).sum(axis=1)


def test_temperature_is_the_minimum_of_the_nll():
    logits, labels = logits_of(0, sharpness=5)

    def nll(log_t):
        return -log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean()

    best = minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert fitted_temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-5)
    assert -log_likelihoods(logits, labels).mean() > nll(best.x)


def test_temperature_finds_the_sharpness_back():
    logits, labels = logits_of(1, count=20_000, sharpness=7)
    assert fitted_temperature(logits, labels) == pytest.approx(7, rel=0.05)


def test_logits_times_a_give_temperature_times_a_and_so_the_same_ece():
    logits, labels = logits_of(2)
    correct = logits.argmax(axis=1) == labels
    base = fitted_temperature(logits, labels)
    expected = ece(rows_of(softmax(logits / base).max(axis=1), correct))[0]
    for factor in (0.01, 3, 500):
        found = fitted_temperature(factor * logits, labels)
        assert found == pytest.approx(factor * base, rel=1e-9)
        assert ece(rows_of(softmax(factor * logits / found).max(axis=1), correct))[0] == pytest.approx(expected)


def test_temperature_does_not_depend_on_the_block(monkeypatch):
    logits, labels = logits_of(3)
    whole = fitted_temperature(logits, labels)
    monkeypatch.setattr("evaluation.scores._BLOCK_SCORES", 60)
    assert fitted_temperature(logits, labels) == pytest.approx(whole, rel=1e-10)


def test_where_no_temperature_is_best_it_stops_at_an_end():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert fitted_temperature(logits, np.array([0, 1])) == pytest.approx(1e-4)  # all right: would be 0
    assert fitted_temperature(logits, np.array([1, 0])) == pytest.approx(1e2)  # all wrong: would be infinite
    assert fitted_temperature(np.ones((3, 4)), np.array([0, 1, 2])) == 1


def test_a_sure_and_wrong_model_has_a_finite_nll():
    assert log_likelihoods(np.array([[0.0, 1e4]]), np.array([0]))[0] == pytest.approx(-1e4)
