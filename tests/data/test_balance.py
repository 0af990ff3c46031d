"""Balancing: the worked table, limiting cases, and that draws are fair and depend on nothing but the pair."""

import numpy as np
import pytest

from data.balance import count_entries, draw, draws, entry_probabilities, keep_probabilities
from data.match import Matcher

ENTRIES = ["dog", "black dog", "cat", "photo of", "the"]
CAPTIONS = ["a black dog", "dog, photo of the dog", "The dog", "cat.", "catalog"]


def keep(captions, entries, t):
    indptr, ids = Matcher(entries).match(captions)
    counts = count_entries(ids, len(entries))
    p = entry_probabilities(counts, t)
    return counts, p, keep_probabilities(indptr, ids, p)


def test_worked_table():
    counts, p, p_keep = keep(CAPTIONS, ENTRIES, t=2)
    assert counts.tolist() == [3, 1, 1, 1, 1]
    assert p.tolist() == [2 / 3, 1, 1, 1, 1]
    assert p_keep.tolist() == [1, 1, 2 / 3, 1, 0]


def test_count_equal_to_t_is_kept_surely():
    _, p, p_keep = keep(["dog", "dog"], ["dog"], t=2)
    assert p.tolist() == [1.0]
    assert p_keep.tolist() == [1.0, 1.0]


def test_large_t_keeps_every_matched_pair():
    _, _, p_keep = keep(CAPTIONS, ENTRIES, t=10**9)
    assert p_keep.tolist() == [1, 1, 1, 1, 0]


def test_unseen_entry_has_probability_one():
    assert entry_probabilities(np.array([0]), 1).tolist() == [1.0]


def test_product_over_entries():
    indptr, ids = np.array([0, 2, 3]), np.array([0, 1, 1], np.int32)
    assert keep_probabilities(indptr, ids, np.array([0.5, 0.25])) == pytest.approx([1 - 0.5 * 0.75, 0.25], rel=1e-15)


def test_tiny_probabilities_keep_their_digits():
    tiny = 1e-18
    indptr, ids = np.array([0, 2]), np.array([0, 1], np.int32)
    assert keep_probabilities(indptr, ids, np.array([tiny, tiny]))[0] == pytest.approx(2 * tiny, rel=1e-12)
    assert 1 - (1 - tiny) ** 2 == 0  # the formula as written loses it all


def test_draw_depends_on_all_three_and_keeps_them_apart():
    base = draw("ab", "c", 0)
    assert base == draw("ab", "c", 0)
    assert len({base, draw("a", "bc", 0), draw("ab", "c", 1), draw("ab", "d", 0), draw("b", "c", 0)}) == 5
    assert 0 <= base < 1


def test_draws_are_order_free():
    uids, captions = [f"u{i}" for i in range(50)], [f"caption {i % 7}" for i in range(50)]
    order = np.random.default_rng(0).permutation(50)
    shuffled = draws([uids[i] for i in order], [captions[i] for i in order], 3)
    np.testing.assert_array_equal(shuffled, draws(uids, captions, 3)[order])


def test_kept_fraction_follows_the_closed_form():
    # 20,000 pairs of one head entry with t = 5,000: 0.25 each; the standard error is 0.003
    captions = ["dog"] * 20_000
    _, _, p_keep = keep(captions, ["dog"], t=5_000)
    kept = draws([str(i) for i in range(len(captions))], captions, 0) < p_keep
    assert p_keep[0] == 0.25
    assert abs(kept.mean() - 0.25) < 0.015


def test_draws_are_uniform():
    values = draws([str(i) for i in range(20_000)], ["x"] * 20_000, 1)
    observed = np.histogram(values, bins=20, range=(0, 1))[0]
    chi_square = float(((observed - 1000) ** 2 / 1000).sum())
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001
