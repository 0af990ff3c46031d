"""Pictures whose perceptual hashes differ in few bits, found without comparing every hash with every other.

Multi-index hashing (Norouzi et al., arXiv 1307.2982), by the pigeonhole principle: cut 64 bits into d + k blocks; two
hashes that differ in at most d bits agree in at least k whole blocks. So hashes are sorted once for each choice of k
blocks, and only those with equal blocks are compared. Equal hashes are taken together first: a thousand copies cost as
much as one.
"""

from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.curation.groups import Longs, alone, group_equal, join, labels_of
from data.curation.kernels import compiled

Hashes = npt.NDArray[np.uint64]
BITS = 64
FAR = np.int64(np.iinfo(np.int64).max)
_ROW_BITS = 40  # of a packed (distance, row)
_SORT_COST = 100.0  # of one hash, in comparisons of two hashes


def link(phash: pa.ChunkedArray, max_distance: int) -> Longs:
    """Partition of P pictures: those within `max_distance` bits, and what a chain of such links holds together.

    A null (a picture that does not decode, or one too empty for its hash to mean anything) is linked to nothing.
    """
    rows, hashes = valid_hashes(phash)
    distinct, code = np.unique(hashes, return_inverse=True)
    parent = alone(len(distinct))
    for mask in block_masks(max_distance, len(distinct), len(distinct) ** 2 / 2):
        keys = distinct & mask
        order = np.argsort(keys)
        _link_runs(parent, keys[order], distinct[order], order, max_distance)
    return group_equal(len(phash), rows, labels_of(parent)[code])


def nearest(queries: Hashes, hashes: Hashes, max_distance: int) -> tuple[Longs, Longs]:
    """For each query (distance, position) of the nearest hash within `max_distance` bits; position -1: there is none.

    Of equally near ones the first counts.
    """
    distinct, code = np.unique(queries, return_inverse=True)
    targets, first = np.unique(hashes, return_index=True)
    best = np.full(len(distinct), FAR)
    for mask in block_masks(max_distance, len(distinct) + len(targets), float(len(distinct)) * len(targets)):
        keys = targets & mask
        order = np.argsort(keys)
        starts, ends = (np.searchsorted(keys[order], distinct & mask, side) for side in ("left", "right"))
        _nearest_in_runs(best, distinct, starts, ends, targets[order], first[order], max_distance)
    found = best[code]
    is_found = found != FAR
    return np.where(is_found, found >> _ROW_BITS, 0), np.where(is_found, found & ((1 << _ROW_BITS) - 1), -1)


def valid_hashes(phash: pa.ChunkedArray) -> tuple[Longs, Hashes]:
    """(rows, hashes) of the pictures that have one."""
    rows = np.flatnonzero(phash.is_valid().to_numpy())
    return rows, phash.drop_null().to_numpy().astype(np.uint64)


def block_masks(max_distance: int, num_hashes: int, num_comparisons: float) -> list[np.uint64]:
    """Masks of every choice of k of `max_distance` + k blocks, with the k that should cost least.

    More blocks a key make it wider, so that runs of equal keys are shorter, but there are more keys to sort by: at
    3 bits 4 keys of 16 bits, 10 of 24 or 20 of 30.
    """

    def cost(k: int) -> float:
        width = BITS // (max_distance + k) * k
        return comb(max_distance + k, k) * (_SORT_COST * num_hashes + num_comparisons / float(1 << width))

    k = min(range(1, 5), key=cost) if max_distance else 1
    edges = [BITS * number // (max_distance + k) for number in range(max_distance + k + 1)]
    blocks = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, k)]


@compiled
def _distance(left: np.uint64, right: np.uint64) -> np.int64:
    """Bits in which two hashes differ: sums of 2, 4 and 8 bits side by side (LLVM makes it one instruction)."""
    x = left ^ right
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _link_runs(parent: Longs, keys: Hashes, hashes: Hashes, order: Longs, max_distance: int) -> None:
    """Compare all pairs inside each run of equal keys."""
    start = 0
    for end in range(1, len(keys) + 1):
        if end < len(keys) and keys[end] == keys[start]:
            continue
        for left in range(start, end):
            for right in range(left + 1, end):
                if _distance(hashes[left], hashes[right]) <= max_distance:
                    join(parent, order[left], order[right])
        start = end


@compiled
def _nearest_in_runs(
    best: Longs, queries: Hashes, starts: Longs, ends: Longs, hashes: Hashes, rows: Longs, max_distance: int
) -> None:
    """Lower `best`, a packed (distance, row) per query, by what stands in its run."""
    for query in range(len(queries)):
        for number in range(starts[query], ends[query]):
            distance = _distance(queries[query], hashes[number])
            if distance <= max_distance:
                best[query] = min(best[query], (distance << _ROW_BITS) | rows[number])
