"""The matcher against the rule as it is written, and the worked examples of the appendix."""

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from data.spacing import space_all
from data.strings import strings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from data.match import Matcher, space_exact, space_relaxed, tokens

ENTRIES = ["dog", "black dog", "cat", "photo of", "the"]
CAPTIONS = ["a black dog", "dog, photo of the dog", "The dog", "cat.", "catalog"]


def naive(entries, caption, relaxed=False, bounded=itertools.repeat(True)):
    """The rule, entry by entry."""
    if relaxed:
        spaced = space_relaxed(caption)
        entries = [space_relaxed(entry) for entry in entries]
    else:
        spaced = "".join(f" {c} " if c in ",.;:?!`" else " " if c in "\t\n\r" else c for c in caption)
    needles = [f" {e} " if is_bounded else e for e, is_bounded in zip(entries, bounded, strict=False)]
    return [number for number, needle in enumerate(needles) if needle in f" {spaced} "]


def rows(found):
    indptr, ids = found
    return [ids[a:b].tolist() for a, b in itertools.pairwise(indptr)]


def test_worked_example():
    indptr, ids = found = Matcher(ENTRIES).match(CAPTIONS)
    assert rows(found) == [[0, 1], [0, 3, 4], [0], [2], []]
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


@pytest.mark.parametrize(
    ("caption", "entry", "matches"),
    [
        ("\u4e00\u53ea\u9ed1\u72d7", "\u9ed1\u72d7", True),
        ("\u4e00\u53ea\u9ed1\u72d7", "\u72d7\u9ed1", False),
        ("catalog", "cat", True),
        ("a,b", "a,b", False),  # spacing comes first
        ("a,b", "a , b", True),
        ("dog", " dog ", True),  # the outer spaces are there
        ("dog", "", True),
        ("", "   ", False),
    ],
)
def test_entries_without_bounds_are_plain_substrings(caption, entry, matches):
    assert bool(Matcher([entry], bounded=False).match_one(caption)) is matches
    assert bool(naive([entry], caption, bounded=[False])) is matches


# letters that make long runs, marks, every white space that matters, NUL, NBSP, an emoji, a lone surrogate, more bytes
# than a slot holds in one token
ALPHABET = st.sampled_from(
    [*"ab ,.A\t\n\r\x00\u00a0\U0001f415(!`\u00df\u9ed1\ud800", "  ", "abcdefghabcdefgh", "b" * 17]
)
TEXTS = st.lists(ALPHABET, max_size=9).map("".join)


@settings(max_examples=1500, deadline=None)
@given(
    entries=st.lists(st.tuples(TEXTS, st.booleans()), max_size=14),
    captions=st.lists(TEXTS, max_size=6),
    relaxed=st.booleans(),
    hash_bits=st.sampled_from([0, 1, 3, 63]),
)
def test_equals_substring_rule(entries, captions, relaxed, hash_bits):
    texts, bounded = [text for text, _ in entries], [is_bounded for _, is_bounded in entries]
    found = Matcher(texts, "relaxed" if relaxed else "exact", bounded, hash_bits).match(captions)
    assert rows(found) == [naive(texts, caption, relaxed, bounded) for caption in captions]


def word_pool(count):
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 22))) for _ in range(count)]


def test_many_entries_and_long_captions_equal_a_set_of_ngrams():
    """Tables that grow, runs of many tokens, ids by the thousand: where the naive loop would take minutes."""
    rng, pool = np.random.default_rng(1), word_pool(3_000)
    ngrams = {" ".join(rng.choice(pool[:300], rng.integers(1, 8))) for _ in range(20_000)} | set(pool)
    entries = sorted(ngrams)
    chosen = [entries[i] for i in rng.integers(0, len(entries), 20_000)]
    captions = [" ".join(chosen), "", *(" ".join(chosen[i : i + 40]) for i in range(0, 4_000, 7)), "x" * 10_000]
    number = {entry: i for i, entry in enumerate(entries)}
    expected = []
    for caption in captions:
        words = caption.split(" ")
        runs = (" ".join(words[a : a + n]) for a in range(len(words)) for n in range(1, 9))
        expected.append(sorted({number[run] for run in runs if run in number}))
    assert rows(Matcher(entries).match(captions)) == expected


def test_ids_that_repeat_need_no_room_for_each():
    """More matches than the first buffer of ids holds, of few entries and of many equal ones."""
    assert Matcher(["a", "a a"]).match_one("a " * 200_000) == [0, 1]
    assert Matcher(["a"] * 5_000).match_one("a a") == list(range(5_000))
    assert rows(Matcher(["a"] * 700).match(["a"] * 40)) == [list(range(700))] * 40


def test_equal_entries_both_match_and_repeated_captions_keep_their_rows():
    assert rows(Matcher(["dog", "dog"]).match(["dog dog", "none", "dog dog"])) == [[0, 1], [], [0, 1]]


def test_no_captions_and_no_entries():
    assert Matcher(ENTRIES).match([])[0].tolist() == [0]
    assert Matcher([]).match(["a dog"])[0].tolist() == [0, 0]
    assert Matcher([], "relaxed").match(pa.array([], pa.string()))[0].tolist() == [0]


def test_an_entry_of_very_many_tokens():
    entry = "a b " * 5_000 + "c"
    assert Matcher([entry, "c"]).match_one(f"b {entry}") == [0, 1]
    assert Matcher([entry, "c"]).match_one(entry[2:]) == [1]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_arrow_columns_slices_and_chunks_match_as_their_strings(kind):
    column = pa.array(["", *CAPTIONS, "\u9ed1 dog"], pa.string()).cast(kind)
    expected = rows(Matcher(ENTRIES).match(column.to_pylist()))
    assert rows(Matcher(ENTRIES).match(column)) == expected
    assert rows(Matcher(ENTRIES).match(column[2:5])) == expected[2:5]
    assert rows(Matcher(ENTRIES).match(pa.chunked_array([column[:3], column[3:]]))) == expected


def test_what_is_no_column_of_strings_is_refused():
    with pytest.raises(ValueError, match="1 of 2 texts are null"):
        Matcher(ENTRIES).match(pa.array(["dog", None]))
    with pytest.raises(TypeError, match="int64"):
        Matcher(ENTRIES).match(pa.array([1, 2]))
    with pytest.raises(ValueError):
        Matcher(ENTRIES, bounded=[True])


@pytest.mark.parametrize("offsets", [[0, 9], [-1, 3], [3, 0, 3]])
def test_damaged_offsets_are_refused(offsets):
    buffers = [None, pa.py_buffer(np.array(offsets, np.int64)), pa.py_buffer(b"dog")]
    column = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
    with pytest.raises(ValueError, match="offsets"):
        Matcher(ENTRIES).match(column)


def test_bytes_that_are_no_utf8_are_matched_as_bytes():
    raw = [b"\xff\xe4\xb8 dog", b"dog\xf0\x9f", b"\x80\x80 \xc3"]
    buffers = pa.array(raw, pa.large_binary()).buffers()
    column = pa.Array.from_buffers(pa.large_string(), len(raw), buffers)
    assert rows(Matcher(["dog"]).match(column)) == [[0], [], []]
    assert rows(Matcher(["dog"], "relaxed", bounded=False).match(column)) == [[0], [0], []]


def test_threads_share_a_matcher_and_a_copy_answers_alike():
    matcher = Matcher(ENTRIES, bounded=[True, True, False, True, True])
    captions = [f"{caption} {n}" for n in range(3_000) for caption in CAPTIONS]
    expected = rows(matcher.match(captions))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(matcher.match, [captions] * 8):
            assert rows(found) == expected
    assert rows(pickle.loads(pickle.dumps(matcher)).match(captions)) == expected


def test_the_table_of_half_a_million_entries_is_small():
    entries = [f"{first:x} {second:x}" for first in range(500) for second in range(400)] + [
        f"{n:x}" for n in range(300_000)
    ]
    assert Matcher(entries).nbytes < 64 << 20


# --------------------------------------------------------------------------------------------------------- the spacing


def spaced(texts):
    strings = space_all(strings_of(texts))
    raw = strings.data.tobytes()
    return [raw[a:b].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(strings.offsets)]


def test_relaxed_spacing_of_every_character():
    texts = [f"a{chr(code)}b{chr(code)}{chr(code)}" for code in range(0x110000)]
    assert spaced(texts) == [space_relaxed(text) for text in texts]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(max_size=30) | TEXTS, max_size=5))
def test_relaxed_spacing_of_texts(texts):
    assert spaced(texts) == [space_relaxed(text) for text in texts]


def test_tokens_keep_empty_ones():
    assert tokens("a, b", "exact") == ["a", ",", "", "b"] == f" {space_exact('a, b')} ".split(" ")[1:-1]
    assert tokens("a, b", "relaxed") == ["a", ",", "b"]
