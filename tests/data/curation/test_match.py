"""The matcher against the rule as it is written, and the worked examples of the appendix."""

import itertools
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curation.match import Matcher, space_exact, space_relaxed, tokens

ENTRIES = ["dog", "black dog", "cat", "photo of", "the"]
CAPTIONS = ["a black dog", "dog, photo of the dog", "The dog", "cat.", "catalog"]


def naive(entries, caption, relaxed=False):
    """The rule, entry by entry."""
    if relaxed:
        spaced = space_relaxed(caption)
        entries = [space_relaxed(entry) for entry in entries]
    else:
        spaced = "".join(f" {c} " if c in ",.;:?!`" else " " if c in "\t\n\r" else c for c in caption)
    return [number for number, entry in enumerate(entries) if f" {entry} " in f" {spaced} "]


def test_worked_example():
    indptr, ids = Matcher(ENTRIES).match(CAPTIONS)
    rows = [ids[a:b].tolist() for a, b in itertools.pairwise(indptr)]
    assert rows == [[0, 1], [0, 3, 4], [0], [2], []]
    assert (indptr.dtype, ids.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize(
    ("caption", "entry", "matches"),
    [
        ("a  black dog", "black dog", True),
        ("a black  dog", "black dog", False),
        ('"dog" and dogs', "dog", False),
        ("(dog)", "dog", False),
        ("(dog)", "(dog)", True),
        ("red,white", "red , white", True),
        ("red, white", "red , white", False),  # spacing leaves two spaces after the comma
        ("Dog", "dog", False),
        ("black\tdog", "black dog", True),
        ("black\r\ndog", "black dog", False),  # each of CR and LF is a space of its own
        ("black\u00a0dog", "black dog", False),
        ("St. Louis", "St. Louis", False),
        ("", "", True),
        ("a", "", False),
    ],
)
def test_exact_rule(caption, entry, matches):
    assert bool(Matcher([entry]).match_one(caption)) is matches
    assert bool(naive([entry], caption)) is matches


@pytest.mark.parametrize(
    ("caption", "entry", "matches"),
    [
        ("visit ST. LOUIS!", "St. Louis", True),
        ('"dog" and cats', "dog", True),
        ("(Dog)", "dog", True),
        ("catalog", "cat", False),
        ("Stra\u00dfe", "STRASSE", True),
        ("\u00abdog\u00bb", "dog", True),
        ("red, white", "red,white", True),
    ],
)
def test_relaxed_rule(caption, entry, matches):
    assert bool(Matcher([entry], "relaxed").match_one(caption)) is matches


ALPHABET = "ab ,.A\t\n\r\x00\u00a0\U0001f415(!`\u00df"


@settings(max_examples=400, deadline=None)
@given(
    entries=st.lists(st.text(ALPHABET, max_size=4), max_size=12),
    captions=st.lists(st.text(ALPHABET, max_size=12), max_size=6),
    relaxed=st.booleans(),
)
def test_equals_substring_rule(entries, captions, relaxed):
    indptr, ids = Matcher(entries, "relaxed" if relaxed else "exact").match(captions)
    assert len(indptr) == len(captions) + 1
    for number, caption in enumerate(captions):
        assert ids[indptr[number] : indptr[number + 1]].tolist() == naive(entries, caption, relaxed)


def test_equal_entries_both_match_and_repeated_captions_keep_their_rows():
    indptr, ids = Matcher(["dog", "dog"]).match(["dog dog", "none", "dog dog"])
    assert indptr.tolist() == [0, 2, 2, 4]
    assert ids.tolist() == [0, 1, 0, 1]


def test_no_captions_and_no_entries():
    assert Matcher(ENTRIES).match([])[0].tolist() == [0]
    assert Matcher([]).match(["a dog"])[0].tolist() == [0, 0]


def test_tokens_keep_empty_ones():
    assert tokens("a, b", "exact") == ["a", ",", "", "b"]
    assert tokens("a, b", "relaxed") == ["a", ",", "b"]


def rows_of(result):
    indptr, ids = result
    return [ids[a:b].tolist() for a, b in itertools.pairwise(indptr)]


def naive_unspaced(entries, unspaced, caption, relaxed):
    """The rule, with entries that need no word boundary."""
    space = space_relaxed if relaxed else space_exact
    spaced = f" {space(caption)} "
    entries = [space_relaxed(entry) for entry in entries] if relaxed else entries
    return [k for k, entry in enumerate(entries) if (entry if unspaced[k] else f" {entry} ") in spaced]


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(st.tuples(st.text("ab ,\u732b\U0001f415\u0e41", max_size=4), st.booleans()), max_size=10),
    captions=st.lists(st.text("ab ,\t\u732b\U0001f415\u0e41\xff", max_size=10), max_size=5),
    relaxed=st.booleans(),
)
def test_entries_without_word_boundaries(entries, captions, relaxed):
    texts, unspaced = [text for text, _ in entries], [free for _, free in entries]
    found = rows_of(Matcher(texts, "relaxed" if relaxed else "exact", unspaced).match(captions))
    assert found == [naive_unspaced(texts, unspaced, caption, relaxed) for caption in captions]


def test_unspaced_finds_inside_a_run_where_spaced_does_not():
    caption = "\u6211\u7684\u732b\u5f88\u53ef\u7231"
    assert Matcher(["\u732b"]).match_one(caption) == []
    assert Matcher(["\u732b"], unspaced=[True]).match_one(caption) == [0]


def test_one_flag_an_entry():
    with pytest.raises(ValueError, match="1 values for 2 entries"):
        Matcher(["a", "b"], unspaced=[True])


def test_arrow_arrays_chunks_slices_and_nulls():
    matcher = Matcher(["dog", ""])
    captions = ["a dog", None, "", "dog"]
    for array in (pa.array(captions), pa.array(captions, pa.large_string()), captions,
                  pa.chunked_array([captions[:1], captions[1:]]), pa.array(["dog", *captions]).slice(1)):  # fmt: skip
        assert rows_of(matcher.match(array)) == [[0], [], [1], [0]]
    assert rows_of(matcher.match(pa.chunked_array([], pa.string()))) == []


def test_lone_surrogates_match_themselves():
    for mode in ("exact", "relaxed"):
        matcher = Matcher(["\ud83d", "dog"], mode)
        assert rows_of(matcher.match(["a \ud83d dog", "\udc15", "dog", "\U0001f415"])) == [[0, 1], [], [1], []]


@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17, 24, 25, 40])
def test_tokens_are_compared_to_their_last_byte(length):
    entry = "a" * length
    matcher = Matcher([entry, "b" + entry])
    near = [entry[:-1], entry[:-1] + "b", entry + "a", entry[:-1] + "\0", "b" + entry[1:]]
    assert rows_of(matcher.match([entry, *near])) == [[0], [], [], [], [], []]


def test_captions_longer_than_a_window():
    words = ["one", "two", "three", "four", "five"]
    entries = ["one", "two three", "four five one two", " ".join(words * 3), "five two", "x " * 700 + "x"]
    long = " ".join(words * 5000)
    found = rows_of(Matcher(entries).match(["five two", long, "two three", "x " * 900, "x " * 600]))
    assert found == [[4], [0, 1, 2, 3], [1], [5], []]


@pytest.mark.parametrize("before", range(1000, 1040))
def test_entry_across_the_end_of_a_window(before):
    assert Matcher(["b c d e", "e f"]).match_one("a " * before + "b c d e f") == [0, 1]


def test_captions_of_marks_alone_and_of_one_huge_token():
    marks, token = "," * 200_000, "a" * 1_000_000
    entries = [",", ", ,", ",  ,", token, token[1:]]
    assert rows_of(Matcher(entries).match([marks, token])) == [naive(entries, marks), [3]]


def test_more_distinct_entries_than_are_ranked():
    words = [f"w{number}" for number in range(500)]
    caption = " ".join([*reversed(words), *words])
    for number in (1, 31, 32, 33, 63, 64, 65, 500):
        assert Matcher(words[:number]).match_one(caption) == list(range(number))


def test_a_pickled_matcher_answers_the_same():
    matcher = Matcher([*ENTRIES, "dog"], "relaxed", [False] * 5 + [True])
    assert rows_of(pickle.loads(pickle.dumps(matcher)).match(CAPTIONS)) == rows_of(matcher.match(CAPTIONS))


def test_rows_do_not_depend_on_their_neighbours():
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(200)]
    entries = words[:150] + [" ".join(random.choice(words, size)) for size in (2, 2, 3, 4) * 50]
    captions = [" ".join(random.choice(words, random.integers(0, 60))) for _ in range(300)]
    matcher = Matcher(entries)
    together, order = rows_of(matcher.match(captions)), random.permutation(300)
    assert together == [matcher.match_one(caption) for caption in captions]
    assert rows_of(matcher.match([captions[k] for k in order])) == [together[k] for k in order]
