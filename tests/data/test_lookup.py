"""Strings found by content: never by their hash alone, from any layout of a column, in the order that was asked."""

import numpy as np
import pyarrow as pa
import pytest

from data import lookup
from data.lookup import Lookup, string_hashes

_STRINGS = ["", "a", "b", "ab", "ba", "é", "日本", "x" * 300, "a\0", "\0a"]


def rows_of(known: list[str], wanted: list[str | None]) -> list[int]:
    found: list[int] = Lookup(pa.array(known, pa.string())).rows_of(pa.array(wanted, pa.string())).tolist()
    return found


def test_every_string_is_found_at_its_row_and_no_other() -> None:
    assert rows_of(_STRINGS, list(reversed(_STRINGS))) == list(range(len(_STRINGS)))[::-1]
    assert rows_of(_STRINGS, ["c", "aa", "x" * 299, "a\0\0", "日"]) == [-1] * 5


def test_a_null_is_not_the_empty_string() -> None:
    assert rows_of(["", "a"], [None, "", "a", None]) == [-1, 0, 1, -1]


def test_nothing_among_nothing_and_among_something() -> None:
    assert rows_of([], ["a"]) == [-1]
    assert rows_of(["a"], []) == []
    assert rows_of([], []) == []


def test_a_slice_or_chunks_of_a_column_are_as_good_as_a_whole_one() -> None:
    whole = pa.array(_STRINGS, pa.large_string())
    chunks = pa.chunked_array([whole.slice(0, 3), whole.slice(3, 0), whole.slice(3)])
    assert Lookup(chunks).rows_of(whole).tolist() == list(range(len(_STRINGS)))
    assert Lookup(whole.slice(4)).rows_of(chunks.slice(2)).tolist() == [-1, -1, *range(len(_STRINGS) - 4)]


@pytest.mark.parametrize("kinds", [1, 3])
def test_strings_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch, kinds: int) -> None:
    def poor(strings: pa.Array) -> np.ndarray:
        return np.array([len(text or "") % kinds for text in strings.to_pylist()], np.uint64)

    monkeypatch.setattr(lookup, "string_hashes", poor)
    assert rows_of(_STRINGS, [*reversed(_STRINGS), "c", "ccc"]) == [*range(len(_STRINGS))[::-1], -1, -1]


def test_hashes_do_not_depend_on_what_is_hashed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    strings = pa.array(_STRINGS, pa.large_string())
    together = string_hashes(strings).tolist()
    assert len(set(together)) == len(_STRINGS)
    monkeypatch.setattr(lookup, "_AT_ONCE", 3)
    assert string_hashes(strings).tolist() == together
    assert [int(string_hashes(strings.slice(row, 1))[0]) for row in range(len(strings))] == together


def test_hashes_are_those_of_the_formula() -> None:
    base, wrap = 0x9E3779B97F4A7C15, 1 << 64
    total = (ord("h") * base + ord("i") * base**2 + 2) * base % wrap  # a byte times base^(place + 1), plus the length
    assert string_hashes(pa.array(["hi"], pa.large_string())).tolist() == [total ^ (total >> 32)]


def test_many_random_strings_agree_with_a_dict() -> None:
    random = np.random.default_rng(0)
    known = list(dict.fromkeys(f"{number:x}" for number in random.integers(0, 50_000, 5_000).tolist()))
    row_of = {text: row for row, text in enumerate(known)}
    wanted = [f"{number:x}" for number in random.integers(0, 50_000, 5_000).tolist()]
    found = rows_of(known, list(wanted))
    assert found == [row_of.get(text, -1) for text in wanted]
    assert -1 in found
    assert any(row >= 0 for row in found)
