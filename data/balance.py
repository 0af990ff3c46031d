"""MetaCLIP's balancing: how likely a pair is kept, and the draw that decides it (arXiv 2309.16671).

P and E: pairs and entries. A draw is a hash of (uid, caption, seed), so the kept set depends neither on the order of
the pairs nor on how they are sharded.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data.match import Ints, Longs

Floats = npt.NDArray[np.float64]


def count_entries(ids: Ints, num_entries: int) -> Longs:
    """How many pairs each entry is in; counts_E."""
    return np.bincount(ids, minlength=num_entries).astype(np.int64)


def entry_probabilities(counts_E: Longs, t: int) -> Floats:
    """p_e = 1 where c_e < t, else t / c_e."""
    return np.where(counts_E < t, 1.0, t / np.maximum(counts_E, 1))


def keep_probabilities(indptr: Longs, ids: Ints, p_E: Floats) -> Floats:
    """P(keep)_P = 1 - prod over matched entries of (1 - p_e); 0 for a pair without an entry.

    Built as P <- P + p_e (1 - P), which is exact for one entry and keeps the digits of probabilities near 0.
    """
    p_keep_P = np.zeros(len(indptr) - 1)
    lengths = np.diff(indptr)
    rows = np.flatnonzero(lengths)
    step = 0
    while len(rows):
        p_keep_P[rows] += p_E[ids[indptr[rows] + step]] * (1.0 - p_keep_P[rows])
        step += 1
        rows = rows[lengths[rows] > step]
    return p_keep_P


def draw(uid: str, caption: str, seed: int) -> float:
    """A number in [0, 1) with 53 random bits; the pair is kept iff it is below P(keep)."""
    text = f"{seed}:{len(uid)}:{uid}{caption}"  # the length keeps ("ab", "c") apart from ("a", "bc")
    value = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float((int.from_bytes(value, "big") >> 11) * 2.0**-53)


def draws(uids: Sequence[str], captions: Sequence[str], seed: int) -> Floats:
    """`draw` for every pair."""
    return np.fromiter((draw(uid, caption, seed) for uid, caption in zip(uids, captions, strict=True)), np.float64)
