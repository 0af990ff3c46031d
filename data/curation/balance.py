"""MetaCLIP's balancing: how likely a pair is kept, and the draw that decides it (arXiv 2309.16671).

P and E: pairs and entries. A draw is a hash of (uid, caption, seed), so the kept set depends neither on the order of
the pairs nor on how they are sharded.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from data.curation.kernels import Array, Int, Longs, Strings, Word, compiled, fold, inlined, load64, text_buffers
from data.curation.match import Ints

Floats = npt.NDArray[np.float64]

_U = np.uint64
_A, _B = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_WORD = (1 << 64) - 1
_KEY_A, _KEY_B, _ALL = _U(_A), _U(_B), _U(_WORD)
_TO_FRACTION = 2.0**-53


def count_entries(ids: Ints, num_entries: int) -> Longs:
    """How many pairs each entry is in; counts_E.

    Raises:
        IndexError: an id is none of the entries'.
    """
    assert len(ids) < 1 << 32
    counts_E = np.zeros(num_entries, np.uint32)  # half the cache lines of int64
    if not _add_counts(ids, counts_E):
        raise IndexError(f"ids from {ids.min()} to {ids.max()} for {num_entries} entries")
    return counts_E.astype(np.int64)


def entry_probabilities(counts_E: Longs, t: int | Longs | Floats) -> Floats:
    """p_e = 1 where c_e < t, else t / c_e; t is one positive number, or one an entry."""
    p_E = np.maximum(counts_E, t, dtype=np.float64)
    return np.divide(t, p_E, out=p_E)


def keep_probabilities(indptr: Longs, ids: Ints, p_E: Floats) -> Floats:
    """P(keep)_P = 1 - prod over matched entries of (1 - p_e); 0 for a pair without an entry.

    Built as P <- p_e + P (1 - p_e), which is exact for one entry and keeps the digits of probabilities near 0.

    Raises:
        IndexError: an id is none of the entries'.
    """
    p_keep_P = np.empty(len(indptr) - 1)
    if not _keep(indptr, ids, p_E, p_keep_P):
        raise IndexError(f"ids from {ids.min()} to {ids.max()} for {len(p_E)} entries")
    return p_keep_P


def draws(uids: Strings, captions: Strings, seed: int) -> Floats:
    """For every pair a number in [0, 1) with 53 random bits; a pair is kept iff it is below P(keep).

    A null is drawn for as an empty text is.

    Raises:
        ValueError: not as many captions as uids.
    """
    (uid_text, uid_offsets), (text, offsets) = text_buffers(uids, 0), text_buffers(captions, 0)
    if len(offsets) != len(uid_offsets):
        raise ValueError(f"{len(uid_offsets) - 1} uids for {len(offsets) - 1} captions")
    draws_P = np.empty(len(offsets) - 1)
    _draw_all(uid_text, uid_offsets, text, offsets, _U(seed & _WORD), draws_P)
    return draws_P


def draw(uid: str, caption: str, seed: int) -> float:
    """`draws` for one pair, in plain Python: the definition.

    The hash starts from the seed and both lengths in bytes (which keep ("ab", "c") apart from ("a", "bc"), and a text
    from one with zeros behind it), and takes 16 bytes at a time, as two little-endian words, with one multiplication of
    64 x 64 bits whose halves are xored.
    """
    texts = [text.encode("utf-8", "surrogatepass") for text in (uid, caption)]
    value = _fold((seed & _WORD) ^ _A, _B)
    value = _fold(value ^ len(texts[0]), len(texts[1]) ^ _A)
    for text in texts:
        for at in range(0, len(text), 16):
            low, high = (int.from_bytes(text[k : k + 8], "little") for k in (at, at + 8))
            value = _fold(value ^ low, high ^ _B) ^ value
    return (_fold(value ^ _B, _A) >> 11) * _TO_FRACTION


def _fold(a: int, b: int) -> int:
    return (a * b >> 64) ^ (a * b & _WORD)


# indices are unsigned: numba lets signed ones wrap as Python's do, which costs a sixth of these loops


@compiled
def _add_counts(ids: Array, counts: Array) -> Any:
    """Count; False at an id that is none."""
    for k in range(_U(len(ids))):
        entry = _U(ids[k])
        if entry >= _U(len(counts)):
            return False
        counts[entry] += np.uint32(1)
    return True


@compiled
def _keep(indptr: Array, ids: Array, p: Array, p_keep: Array) -> Any:
    """Probability of each row; False at an id that is none."""
    for row in range(len(indptr) - 1):
        kept = 0.0
        for k in range(_U(indptr[row]), _U(indptr[row + 1])):
            entry = _U(ids[k])
            if entry >= _U(len(p)):
                return False
            kept = p[entry] + kept * (1.0 - p[entry])
        p_keep[row] = kept
    return True


@inlined
def _word(text: Array, at: Int, end: Int) -> Any:
    """Up to 8 bytes of text[at:end] as a number; reads nothing behind `end`, where the buffer may end too."""
    left = end - at
    if left >= 8:
        return load64(text, at)
    if left <= 0:
        return _U(0)
    if end >= 8:
        return load64(text, end - 8) >> _U(64 - 8 * left)
    value = _U(0)
    for k in range(left):
        value |= _U(text[at + k]) << _U(8 * k)
    return value


@inlined
def _take(value: Word, text: Array, start: Int, end: Int) -> Any:
    """Mix text[start:end] into the hash; a product of 0 does not forget what came before."""
    for at in range(start, end, 16):
        value ^= fold(value ^ _word(text, at, end), _word(text, at + 8, end) ^ _KEY_B)
    return value


@compiled
def _draw_all(uid_text: Array, uid_offsets: Array, text: Array, offsets: Array, seed: Word, out: Array) -> Any:
    begin = fold(seed ^ _KEY_A, _KEY_B)
    for i in range(len(out)):
        value = fold(begin ^ _U(uid_offsets[i + 1] - uid_offsets[i]), _U(offsets[i + 1] - offsets[i]) ^ _KEY_A)
        value = _take(value, uid_text, uid_offsets[i], uid_offsets[i + 1])
        value = _take(value, text, offsets[i], offsets[i + 1])
        out[i] = np.float64(fold(value ^ _KEY_B, _KEY_A) >> _U(11)) * _TO_FRACTION
