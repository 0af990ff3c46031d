"""Balancing: the worked table, limiting cases, and that draws are fair and depend on nothing but the pair."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curation.balance import count_entries, draw, draws, entry_probabilities, keep_probabilities
from data.curation.match import Matcher

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


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=40)), max_size=6),
    seed=st.integers(-(2**70), 2**70),
)
def test_draws_are_the_definition(pairs, seed):
    uids, captions = [uid for uid, _ in pairs], [caption for _, caption in pairs]
    assert draws(uids, captions, seed).tolist() == [draw(uid, caption, seed) for uid, caption in pairs]
    arrays = [pa.array(["x", *texts], pa.string()).slice(1) for texts in (uids, captions)]
    assert draws(*arrays, seed).tolist() == draws(uids, captions, seed).tolist()


@pytest.mark.parametrize("texts", [("a", "a\0"), ("", "\0"), ("a" * 16, "a" * 16 + "\0"), ("a" * 15, "a" * 16)])
def test_zeros_and_lengths_count(texts):
    assert len(set(draws(["u", "u"], texts, 0).tolist())) == 2


def test_every_bit_of_the_input_moves_half_of_the_draw():
    # 53 bits of 0.5: a mean of 26.5, its standard error over 200 texts 0.26
    random = np.random.default_rng(0)
    for size, bit in itertools.product((3, 8, 16, 21, 70), (0, 6)):
        texts = [bytes(random.integers(0, 128, size, np.uint8)) for _ in range(200)]
        for at in {0, size // 2, size - 1}:
            flipped = [text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :] for text in texts]
            one, other = (draws(["u"] * 200, [t.decode() for t in each], 7) for each in (texts, flipped))
            moved = np.bitwise_count((one * 2**53).astype(np.uint64) ^ (other * 2**53).astype(np.uint64))
            assert abs(moved.mean() - 26.5) < 1.5


def test_seeds_draw_independently():
    # correlation of 20,000 independent pairs has a standard deviation of 0.007
    uids = [str(number) for number in range(20_000)]
    one, other = draws(uids, ["x"] * 20_000, 0), draws(uids, ["x"] * 20_000, 1)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.035
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.035


def test_a_pool_has_no_equal_draws():
    assert len(np.unique(draws([str(number) for number in range(200_000)], ["x"] * 200_000, 0))) == 200_000


def test_t_can_be_one_an_entry():
    assert entry_probabilities(np.array([4, 4, 0]), np.array([1, 8, 1])).tolist() == [0.25, 1.0, 1.0]


def test_probabilities_do_not_forget_after_a_sure_entry():
    indptr, ids = np.array([0, 2, 3]), np.array([0, 1, 1], np.int32)
    assert keep_probabilities(indptr, ids, np.array([1.0, 0.5])).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("entry", [-1, 2])
def test_ids_of_no_entry_are_refused(entry):
    ids = np.array([entry], np.int32)
    with pytest.raises(IndexError, match="for 2 entries"):
        count_entries(ids, 2)
    with pytest.raises(IndexError, match="for 2 entries"):
        keep_probabilities(np.array([0, 1]), ids, np.ones(2))


def test_as_many_captions_as_uids():
    with pytest.raises(ValueError, match="2 uids for 1 captions"):
        draws(["a", "b"], ["x"], 0)
