"""95 % intervals hold the truth in 92 to 98 % of simulated samples; those that ignore clusters do not."""

from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import norm

from evaluation import bootstrap
from evaluation.bootstrap import estimate
from evaluation.metrics.base import Mean
from evaluation.metrics.calibration import ExpectedCalibrationError, expected_ece
from evaluation.metrics.detection import AUROC
from evaluation.metrics.ranked import GroupHit
from evaluation.rows import Rows
from evaluation.specs import Bootstrap

RUNS, SPEC = 400, Bootstrap(resamples=200)
ACCURACY, RECALL = Mean("accuracy", "correct"), GroupHit("mean_per_class_recall")
SHARES = (0.9, 0.6, 0.3)


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    """Every run has the same seed, hence the same draws of clusters: make them once, for they are most of the time."""
    made = bootstrap._weights
    draws = lru_cache(None)(lambda clusters, samples: list(made(clusters, samples, SPEC)))
    monkeypatch.setattr(bootstrap, "_weights", lambda clusters, samples, spec: draws(clusters, samples))


def rows_of(numbers, clusters=None, labels=None):
    count = len(next(iter(numbers.values())))
    ids = [f"q{i}" for i in range(count)]
    return Rows(ids, clusters or ids, labels or [""] * count, [""] * count, numbers)


def covered(draw, metric, truth):
    """Share of runs whose interval holds the truth."""
    random = np.random.default_rng(0)
    found = (estimate(draw(random), [metric], SPEC)[0] for _ in range(RUNS))
    return sum(one.low <= truth <= one.high for one in found) / RUNS


def single_hits(random):
    return rows_of({"correct": (random.random(150) < 0.7).astype(int)})


def recalls(random):
    classes = np.arange(150) % 3
    hits = random.random(150) < np.array(SHARES)[classes]
    return rows_of({"rank": np.where(hits, 1, 2)}, labels=[str(c) for c in classes])


def normal_scores(random):
    is_out = np.arange(150) % 2
    return rows_of({"s": random.normal(size=150) + is_out, "is_out": is_out})


CLUSTERS = [f"c{i}" for i in range(60) for _ in range(5)]


def clustered_hits(random, clusters=CLUSTERS):
    skill = np.repeat(random.beta(0.7, 0.3, 60), 5)
    return rows_of({"correct": (random.random(300) < skill).astype(int)}, clusters)


def clustered_scores(random, clusters=CLUSTERS):
    """Half of each score's variance is its cluster's."""
    is_out = np.repeat(np.arange(60) % 2, 5)
    shared = np.repeat(random.normal(size=60), 5)
    return rows_of({"s": (shared + random.normal(size=300)) / 2**0.5 + is_out, "is_out": is_out}, clusters)


SHIFTED = float(norm.cdf(1 / 2**0.5))  # AUROC of two normals one standard deviation apart


@pytest.mark.parametrize(
    ("draw", "metric", "truth"),
    [
        (single_hits, ACCURACY, 0.7),
        (recalls, RECALL, np.mean(SHARES)),
        (normal_scores, AUROC("auroc", "s"), SHIFTED),
        (clustered_hits, ACCURACY, 0.7),
        (clustered_scores, AUROC("auroc", "s"), SHIFTED),
    ],
)
def test_intervals_hold_the_truth(draw, metric, truth):
    assert 0.92 <= covered(draw, metric, truth) <= 0.98


@pytest.mark.parametrize(
    ("draw", "metric", "truth"),
    [(clustered_hits, ACCURACY, 0.7), (clustered_scores, AUROC("auroc", "s"), SHIFTED)],
)
def test_ignoring_clusters_pretends_to_know_more(draw, metric, truth):
    assert covered(lambda random: draw(random, None), metric, truth) < 0.85


def calibrated(random, shift=0.0):
    confidence = random.uniform(0.3, 1, 300)
    return rows_of({"confidence": confidence, "correct": (random.random(300) < confidence - shift).astype(int)})


def test_the_interval_of_ece_is_about_what_samples_of_its_size_get():
    metric = ExpectedCalibrationError("ece")
    # a calibrated model gets the noise floor, not 0; far from calibrated the floor no longer shows
    floor = expected_ece(np.random.default_rng(0).uniform(0.3, 1, 30_000), 15) * 10  # of 300 samples: sqrt(100) times
    assert 0.9 <= covered(calibrated, metric, floor) <= 1
    assert 0.9 <= covered(lambda random: calibrated(random, 0.2), metric, 0.2) <= 0.98
    random = np.random.default_rng(1)
    for _ in range(60):
        (found,) = estimate(calibrated(random), [metric], SPEC)
        assert found.low < found.value < found.high
