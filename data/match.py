"""Which metadata entries a caption holds: MetaCLIP's substring rule (arXiv 2309.16671), run as an n-gram lookup.

A caption T is spaced to S = " " + T + " ", where some punctuation stands between spaces; entry e matches iff
" " + e + " " is in S. Splitting S at single spaces, empty tokens kept, turns that into: the tokens of e are a run of
the interior tokens of S. So the cost depends on a caption's tokens and not on the number of entries.
"""

import string
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Mode = Literal["exact", "relaxed"]

_EXACT = str.maketrans({**{c: f" {c} " for c in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})


@cache
def _relaxed_table() -> dict[int, str]:
    """Every ASCII punctuation mark and every Unicode one (categories P*) stands between spaces."""
    marks = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P"))
    return str.maketrans({mark: f" {mark} " for mark in chain(string.punctuation, marks)})


def space_exact(text: str) -> str:
    """MetaCLIP's spacing: seven marks stand between spaces; a tab, LF or CR is a space; nothing else changes."""
    return text.translate(_EXACT)


def space_relaxed(text: str) -> str:
    """Case-folded, all punctuation between spaces, runs of white space collapsed."""
    return " ".join(text.casefold().translate(_relaxed_table()).split())


def spacing(mode: Mode) -> Callable[[str], str]:
    """The function that spaces captions in this mode."""
    return space_exact if mode == "exact" else space_relaxed


def tokens(caption: str, mode: Mode) -> list[str]:
    """Interior tokens of the spaced caption; what entries are runs of."""
    return f" {spacing(mode)(caption)} ".split(" ")[1:-1]


class Matcher:
    """Finds entries in captions. Relaxed mode spaces the entries as it spaces captions, so "St. Louis" can match."""

    def __init__(self, entries: Sequence[str], mode: Mode = "exact") -> None:
        self.entries, self.mode = list(entries), mode
        self._ids: dict[str, tuple[int, ...]] = {}
        lengths: dict[str, set[int]] = {}
        for number, entry in enumerate(self.entries):
            text = entry if mode == "exact" else space_relaxed(entry)
            words = text.split(" ")
            self._ids[text] = (*self._ids.get(text, ()), number)
            lengths.setdefault(words[0], set()).add(len(words))
        self._lengths = {first: tuple(sorted(found)) for first, found in lengths.items()}

    def match_one(self, caption: str) -> list[int]:
        """Sorted ids of the entries in one caption, each once."""
        words = tokens(caption, self.mode)
        found: set[int] = set()
        for start, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                if start + length <= len(words):
                    found.update(self._ids.get(" ".join(words[start : start + length]), ()))
        return sorted(found)

    def match(self, captions: Iterable[str]) -> tuple[Longs, Ints]:
        """Match captions; return CSR (indptr, ids): ids[indptr[i]:indptr[i + 1]] are those of caption i, sorted."""
        row_of: dict[str, int] = {}
        rows = np.fromiter((row_of.setdefault(caption, len(row_of)) for caption in captions), np.int64)
        found = [self.match_one(caption) for caption in row_of]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        return _gather(lengths, np.fromiter(chain.from_iterable(found), np.int32), rows)


def _gather(lengths: Longs, ids: Ints, rows: Longs) -> tuple[Longs, Ints]:
    """CSR of the given rows of a CSR with these row lengths; rows may repeat."""
    starts = np.concatenate(([0], np.cumsum(lengths)))[:-1]
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths[rows], out=indptr[1:])
    # position inside `ids` = start of the row + how far into the row
    inside = np.arange(indptr[-1]) - np.repeat(indptr[:-1], lengths[rows])
    return indptr, ids[np.repeat(starts[rows], lengths[rows]) + inside]
