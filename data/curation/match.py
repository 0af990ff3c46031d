"""Which metadata entries a caption holds: MetaCLIP's substring rule (arXiv 2309.16671), run as an n-gram lookup.

A caption T is spaced to S = " " + T + " ", where some punctuation stands between spaces; entry e matches iff
" " + e + " " is in S. Splitting S at single spaces, empty tokens kept, turns that into: the tokens of e are a run of
the interior tokens of S. So the cost depends on a caption's tokens and not on the number of entries.

Scripts that write no spaces between words have entries without word boundaries (MetaCLIP 2): e matches iff e is in S.
"""

import string
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.curation.kernels import Bytes, Longs, Strings, arrow_strings, text_buffers
from data.curation.ngram_table import build_table
from data.curation.ngrams import match_texts, relax_ascii

Ints = npt.NDArray[np.int32]
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
    """Finds entries in captions. Relaxed mode spaces the entries as it spaces captions, so "St. Louis" can match.

    An entry whose `unspaced` is true needs no word boundary. A matcher is cheap to pickle: it is a few arrays.
    """

    def __init__(self, entries: Sequence[str], mode: Mode = "exact", unspaced: Sequence[bool] | None = None) -> None:
        self.mode, self.num_entries = mode, len(entries)
        texts = list(entries) if mode == "exact" else list(map(space_relaxed, entries))
        free = np.zeros(len(texts), np.bool_) if unspaced is None else np.asarray(unspaced, np.bool_)
        if len(free) != len(texts):
            raise ValueError(f"unspaced has {len(free)} values for {len(texts)} entries")
        first = np.zeros(len(texts), np.int64)
        number_of: dict[tuple[str, bool], int] = {}
        for number, key in enumerate(zip(texts, free.tolist(), strict=True)):
            first[number] = number_of.setdefault(key, number)
        distinct = np.flatnonzero(first == np.arange(len(texts)))
        self._table = build_table(arrow_strings(texts).take(pa.array(distinct)), free[distinct], distinct)
        self._twins = first if len(distinct) < len(texts) else None

    @property
    def nbytes(self) -> int:
        """Size of the table that captions are looked up in."""
        return self._table.nbytes

    def match_one(self, caption: str) -> list[int]:
        """Sorted ids of the entries in one caption, each once."""
        ids: list[int] = self.match([caption])[1].tolist()
        return ids

    def match(self, captions: Strings) -> tuple[Longs, Ints]:
        """Match captions; return CSR (indptr, ids): ids[indptr[i]:indptr[i + 1]] are those of caption i, sorted.

        A null caption holds no entry, not even the empty one.
        """
        array = arrow_strings(captions)
        known = array.drop_null() if array.null_count else array
        text, offsets = text_buffers(known) if self.mode == "exact" else _relaxed_buffers(known)
        indptr, ids = match_texts(text, offsets, self._table, self.mode == "relaxed")
        if self._twins is not None:
            indptr, ids = _with_twins(indptr, ids, self._twins)
        return _with_nulls(indptr, array), ids


def _relaxed_buffers(captions: pa.Array) -> tuple[Bytes, Longs]:
    """Captions as `space_relaxed` writes them: ASCII by a kernel, others one by one."""
    if pa.types.is_large_binary(captions.type):
        others = np.ones(len(captions), np.bool_)
    else:
        others = ~np.asarray(pc.string_is_ascii(captions), dtype=np.bool_)
    if others.any():
        foreign = captions.filter(pa.array(others)).cast(pa.large_binary()).to_pylist()
        texts = [space_relaxed(text.decode("utf-8", "surrogatepass")) for text in foreign]
        spaced = arrow_strings(texts).cast(pa.large_binary())
        captions = pc.replace_with_mask(captions.cast(pa.large_binary()), pa.array(others), spaced)
    text, offsets = relax_ascii(*text_buffers(captions), others)
    return text, offsets


def _with_twins(indptr: Longs, ids: Ints, first: Longs) -> tuple[Longs, Ints]:
    """Add the entries that are equal to a found one; `first` is each entry's first equal."""
    order = np.argsort(first, kind="stable")
    counts = np.bincount(first, minlength=len(first))
    starts = np.cumsum(counts) - counts
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    lengths = counts[ids]
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows, found = np.repeat(rows, lengths), order[np.repeat(starts[ids], lengths) + inside].astype(np.int32)
    ends = np.cumsum(np.bincount(rows, minlength=len(indptr) - 1))
    return np.concatenate(([0], ends)).astype(np.int64), found[np.lexsort((found, rows))]


def _with_nulls(indptr: Longs, captions: pa.Array) -> Longs:
    """The rows of all captions from those of the captions that are there."""
    if not captions.null_count:
        return indptr
    lengths = np.zeros(len(captions), np.int64)
    lengths[np.asarray(captions.is_valid())] = np.diff(indptr)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
