"""Captions as sets of word n-grams and MinHash bands, one file a shard: what near captions are found from.

An n-gram is a 64-bit hash of its words' BLAKE2b hashes, so sets are compared exactly but for a collision of 64 bits.
"""

import hashlib
import string
import unicodedata
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.curation.groups import Longs
from data.curation.match import space_relaxed

Hashes = npt.NDArray[np.uint64]
SKETCH_SCHEMA = pa.schema(
    [
        ("whole", pa.binary(16)),  # checksum of the set of n-grams; null, as all below: the caption takes no part
        ("ngrams", pa.large_list(pa.uint64())),  # ascending, distinct
        ("bands", pa.large_list(pa.uint64())),  # hash of each band of the MinHash signature
    ]
)
_MISSES = 1e-3  # at most so many of the pairs at the bound are not found
_CHUNK_ROWS = 4096  # signatures come as Python lists: 16 MiB a chunk of 128 permutations


class Ngrams(NamedTuple):
    """Sets of n-grams of the captions that take part, as CSR: ngrams[indptr[i]:indptr[i + 1]] are those of rows[i]."""

    rows: Longs
    indptr: Longs
    ngrams: Hashes


def band_sizes(permutations: int, min_similarity: float) -> tuple[int, int]:
    """(bands, permutations a band): the widest bands that miss at most one in a thousand pairs at the bound.

    Two sets of Jaccard similarity s share a band of r permutations with probability s^r, so b bands all miss with
    (1 - s^r)^b. At 0.9 and 128 permutations: 16 bands of 8, of which 1 pair in 8,000 shares none.
    """
    for width in range(permutations, 1, -1):
        bands = permutations // width
        if (1 - min_similarity**width) ** bands <= _MISSES:
            return bands, width
    return permutations, 1


def sketch(captions: pa.Array, ngram_words: int, permutations: int, min_similarity: float, seed: int) -> pa.Table:
    """SKETCH_SCHEMA rows of captions, in their order."""
    chunks = [captions.slice(start, _CHUNK_ROWS) for start in range(0, len(captions), _CHUNK_ROWS)]
    sizes = band_sizes(permutations, min_similarity)
    tables = [_sketch_chunk(chunk.to_pylist(), ngram_words, permutations, sizes, seed) for chunk in chunks]
    return pa.concat_tables(tables) if tables else SKETCH_SCHEMA.empty_table()


def _sketch_chunk(
    captions: list[str | None], ngram_words: int, permutations: int, sizes: tuple[int, int], seed: int
) -> pa.Table:
    found = ngram_sets(captions, ngram_words)
    bands = _band_hashes(_signatures(found, permutations, seed), *sizes)
    place = np.full(len(captions), -1, np.int64)
    place[found.rows] = np.arange(len(found.rows))
    takes_part = pa.array(place, mask=place < 0)
    every = np.arange(len(bands) + 1, dtype=np.int64) * sizes[0]
    columns = [
        pa.array(list(map(_checksum, np.split(found.ngrams, found.indptr[1:-1]))) if len(bands) else [], pa.binary(16)),
        pa.LargeListArray.from_arrays(found.indptr, pa.array(found.ngrams)),
        pa.LargeListArray.from_arrays(every, pa.array(bands.ravel())),
    ]
    return pa.table([column.take(takes_part) for column in columns], schema=SKETCH_SCHEMA)


def ngram_sets(captions: list[str | None], ngram_words: int) -> Ngrams:
    """Sets of word n-grams of the captions that have more than `ngram_words` words; punctuation is no word."""
    hash_of: dict[str, int] = {}
    words = [_word_hashes(caption or "", hash_of) for caption in captions]
    count = np.fromiter(map(len, words), np.int64, len(words))
    flat = np.fromiter(chain.from_iterable(words), np.uint64, int(count.sum()))
    row = np.repeat(np.arange(len(words)), count)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(count) - count, count)
    is_start = (count[row] > ngram_words) & (place + ngram_words <= count[row])
    ngram, row = _runs(flat, np.flatnonzero(is_start), ngram_words), row[is_start]
    order = np.lexsort((ngram, row))
    ngram, row = ngram[order], row[order]
    is_new = np.ones(len(row), np.bool_)
    is_new[1:] = (row[1:] != row[:-1]) | (ngram[1:] != ngram[:-1])
    rows, sizes = np.unique(row[is_new], return_counts=True)
    return Ngrams(rows, np.concatenate(([0], np.cumsum(sizes))), ngram[is_new])


def _word_hashes(caption: str, hash_of: dict[str, int]) -> list[int]:
    """Hash of each word; `hash_of` remembers those of words seen before."""
    words = space_relaxed(caption).split()
    for word in words:
        if word not in hash_of:
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            hash_of[word] = 0 if _is_mark(word) else int.from_bytes(digest)
    return [found for word in words if (found := hash_of[word])]


def _is_mark(word: str) -> bool:
    return len(word) == 1 and (word in string.punctuation or unicodedata.category(word).startswith("P"))


def _runs(words: Hashes, starts: Longs, length: int) -> Hashes:
    """Hash of the `length` words from each start on."""
    found = np.zeros(len(starts), np.uint64)
    for number in range(length):
        found = mix(found * np.uint64(0x9E3779B97F4A7C15) + words[starts + number])
    return found


def mix(values: Hashes) -> Hashes:
    """A bijection of 64 bits in which each bit of the result depends on all of the value (splitmix64's last steps)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _signatures(found: Ngrams, permutations: int, seed: int) -> npt.NDArray[np.uint32]:
    """MinHash signatures (rows, permutations)."""
    from rensa import RMinHash

    if not len(found.rows):
        return np.zeros((0, permutations), np.uint32)
    offsets = found.indptr.astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(found.ngrams, offsets, permutations, seed)
    values = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint32, len(found.rows) * permutations)
    return values.reshape(len(found.rows), permutations)


def _band_hashes(signatures: npt.NDArray[np.uint32], bands: int, width: int) -> Hashes:
    """One hash a band (rows, bands); bands differ in their start, so that equal values in two bands are not equal."""
    parts = signatures[:, : bands * width].reshape(len(signatures), bands, width).astype(np.uint64)
    found = np.broadcast_to(mix(np.arange(bands, dtype=np.uint64)), parts.shape[:2])
    for number in range(width):
        found = mix(found * np.uint64(0x9E3779B97F4A7C15) + parts[:, :, number])
    return found


def _checksum(ngrams: Hashes) -> bytes:
    return hashlib.blake2b(ngrams.tobytes(), digest_size=16).digest()
