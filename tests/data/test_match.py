"""The matcher against the rule as it is written, and the worked examples of the appendix."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.match import Matcher, space_relaxed, tokens

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
