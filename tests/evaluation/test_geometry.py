"""Gap and uniformity from features: by hand, by brute force over pairs, by repeating samples; the projection."""

import itertools

import numpy as np
import pytest

from evaluation.bootstrap import estimate
from evaluation.metrics.geometry import Gap, Uniformity, principal_components
from evaluation.rows import Rows
from evaluation.specs import Bootstrap


def rows_of(count, clusters=None):
    ids = [f"q{i:03}" for i in range(count)]
    return Rows(ids, clusters or ids, [""] * count, [""] * count, {})


def directions(seed, count, dim=6, mean=0.0):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)) + mean
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def whole(metric, rows):
    return float(metric.statistic(rows)(np.ones((1, rows.clusters_Q.max() + 1)))[0])


def uniformity(features, samples=None, rows=None):
    samples = np.arange(len(features)) if samples is None else samples
    return whole(Uniformity("u", np.asarray(features, np.float32), samples), rows or rows_of(len(features)))


def brute_force(features):
    pairs = itertools.combinations(np.asarray(features, np.float64), 2)
    return np.log(np.mean([np.exp(-2 * ((x - y) ** 2).sum()) for x, y in pairs]))


def test_gap_is_nothing_when_text_is_image_and_by_hand():
    images = directions(0, 20)
    assert whole(Gap("gap", images, images), rows_of(20)) == 0
    right, up = np.tile([[1.0, 0]], (5, 1)), np.tile([[0, 1.0]], (5, 1))
    assert whole(Gap("gap", right, up), rows_of(5)) == pytest.approx(2**0.5)
    assert whole(Gap("gap", right, -right), rows_of(5)) == pytest.approx(2)
    # only the means count: pairs may be far apart without a gap
    assert whole(Gap("gap", right, np.concatenate([right[:2], up[:3]])), rows_of(5)) == pytest.approx(0.6 * 2**0.5)
    assert whole(Gap("gap", images, images[::-1]), rows_of(20)) == pytest.approx(0, abs=1e-7)


def test_uniformity_of_equal_and_antipodal_points():
    assert uniformity([[1, 0]] * 4) == pytest.approx(0)
    assert uniformity([[1, 0], [-1, 0]]) == pytest.approx(-8)
    # six pairs of four points at right angles: four at distance^2 2, two at 4
    square = [[1, 0], [0, 1], [-1, 0], [0, -1]]
    assert uniformity(square) == pytest.approx(np.log((4 * np.exp(-4) + 2 * np.exp(-8)) / 6))


def test_uniformity_equals_brute_force_and_prefers_spread():
    features = directions(1, 40)
    assert uniformity(features) == pytest.approx(brute_force(features), rel=1e-5)
    assert uniformity(features) < uniformity(directions(1, 40, mean=2.0))


def test_uniformity_looks_at_its_samples_only():
    features = directions(2, 30)
    samples = np.array([3, 7, 8, 20])
    rows = rows_of(30, [f"c{i // 5}" for i in range(30)])
    assert uniformity(features[samples], samples, rows) == pytest.approx(brute_force(features[samples]), rel=1e-5)


def test_weights_are_repeated_samples_but_no_sample_is_its_own_pair():
    images, texts = directions(3, 24), directions(4, 24)
    rows = rows_of(24, [f"c{i // 3}" for i in range(24)])
    weights_RG = np.random.default_rng(0).integers(0, 3, (20, 8))
    gaps = Gap("gap", images, texts).statistic(rows)(weights_RG.astype(float))
    spreads = Uniformity("u", images, np.arange(24)).statistic(rows)(weights_RG.astype(float))
    for weights_G, gap, spread in zip(weights_RG, gaps, spreads, strict=True):
        repeated = np.repeat(np.arange(24), np.repeat(weights_G, 3))
        mean = images[repeated].mean(axis=0, dtype=float) - texts[repeated].mean(axis=0, dtype=float)
        assert gap == pytest.approx(np.linalg.norm(mean), rel=1e-5)
        near = [
            np.exp(-2 * ((images[i].astype(float) - images[j]) ** 2).sum())
            for i, j in itertools.permutations(repeated, 2) if i != j
        ]  # fmt: skip
        assert spread == pytest.approx(np.log(np.mean(near)), rel=1e-5)


def test_a_draw_of_one_sample_has_no_uniformity():
    statistic = Uniformity("u", directions(0, 3), np.arange(3)).statistic(rows_of(3))
    found = statistic(np.array([[3.0, 0, 0], [1, 1, 0]]))
    assert np.isnan(found[0]) and np.isfinite(found[1])


def test_intervals_hold_the_values():
    images, texts = directions(5, 300), directions(6, 300, mean=0.5)
    metrics = [Gap("gap", images, texts), Uniformity("u", images, np.arange(300))]
    for found in estimate(rows_of(300), metrics, Bootstrap(resamples=200)):
        assert found.low < found.value < found.high


def test_principal_components_find_the_plane_whatever_its_sign():
    random = np.random.default_rng(7)
    plane = np.stack([3 * random.normal(size=50), random.normal(size=50)], axis=1)
    points = plane @ np.linalg.qr(random.normal(size=(5, 2)))[0].T + 4
    found, shares = principal_components(points)
    distances = np.linalg.norm(plane[:, None] - plane, axis=2)
    assert np.linalg.norm(found[:, None] - found, axis=2) == pytest.approx(distances)
    assert shares.sum() == pytest.approx(1) and shares[0] > shares[1]
    assert np.abs(principal_components(points[::-1])[0][::-1] - found).max() < 1e-9
    assert np.isfinite(principal_components(np.ones((4, 3)))[0]).all()
