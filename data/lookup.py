"""Rows of many strings by content, for look-ups from shard after shard: built once, then a binary search each.

Arrow's `index_in` hashes its whole value set at every call, which makes a pool of n shards cost n times its size.
Hashes only narrow the search: the strings themselves are compared.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 1 << 18  # strings hashed together: their bytes become eight times as many


class Lookup:
    """Finds strings among distinct ones."""

    def __init__(self, strings: pa.Array | pa.ChunkedArray) -> None:
        self.strings = _large(strings)
        hashes = string_hashes(self.strings)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def rows_of(self, wanted: pa.Array | pa.ChunkedArray) -> Ints:
        """Row of each wanted string, -1 where it is not there."""
        texts = _large(wanted)
        hashes = string_hashes(texts)
        rows, at = np.full(len(texts), -1, np.int64), np.searchsorted(self._sorted, hashes)
        open_ = np.flatnonzero(at < len(self._sorted))
        while len(open_):
            open_ = open_[self._sorted[at[open_]] == hashes[open_]]
            found = self._order[at[open_]]
            same = pc.equal(self.strings.take(pa.array(found)), texts.take(pa.array(open_)))
            is_same = same.fill_null(False).to_numpy(zero_copy_only=False)
            rows[open_[is_same]] = found[is_same]
            open_ = open_[~is_same]  # another string with this hash: look at the next one
            at[open_] += 1
            open_ = open_[at[open_] < len(self._sorted)]
        return rows


def _large(strings: pa.Array | pa.ChunkedArray) -> pa.Array:
    column = strings.cast(pa.large_string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def string_hashes(strings: pa.Array) -> Hashes:
    """Sum of byte x base^place modulo 2^64, and the length."""
    pieces = [_hash_some(strings.slice(at, _AT_ONCE)) for at in range(0, len(strings), _AT_ONCE)]
    return np.concatenate([np.zeros(0, np.uint64), *pieces])


def _hash_some(strings: pa.Array) -> Hashes:
    offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    content = np.frombuffer(strings.buffers()[2] or b"", np.uint8)[first:last].astype(np.uint64)
    starts, lengths = offsets[:-1] - first, np.diff(offsets)
    powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, _BASE))
    content *= powers[np.arange(last - first) - np.repeat(starts, lengths)]
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(content)))
    mixed = (sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64)) * _BASE
    return np.asarray(mixed ^ (mixed >> np.uint64(32)))
