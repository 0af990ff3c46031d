"""N-grams that many captions of the pool hold, counted exactly in two passes over a pool of any size.

The first pass adds every n-gram to one of 2^25 buckets by its hash, so a bucket counts at least as much as any n-gram
in it. The second counts, by their text, only n-grams whose bucket has enough. So memory is 256 MiB and the frequent
n-grams, with little more as long as `min_count` is well above the n-grams a bucket: about 0.6 for each million
captions of ten words with `max_words` 2. The result depends neither on the hash nor on the order of the captions.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.curation.match import Mode, spacing
from data.curation.specs import PoolNgrams

Longs = npt.NDArray[np.int64]
Texts: TypeAlias = Sequence[str | None] | pa.Array | pa.ChunkedArray
# some of the pool's captions, null where a pair has none, and the language of each where languages count
Chunk = tuple[Texts, Texts | None]
ReadCaptions = Callable[[], Iterable[Chunk]]

_BUCKET_BITS = 25
_SLICE_CAPTIONS = 50_000  # some 60 MB of tokens and n-grams at a time
_ODD = np.uint64(0x9E3779B97F4A7C15)


class _Slice(NamedTuple):
    """Tokens of some captions: N tokens, V distinct ones."""

    words: npt.NDArray[np.object_]  # V
    hashes: npt.NDArray[np.uint64]  # V
    tokens: Longs  # N; each a position in words
    rows: Longs  # N; the caption of each
    is_word: npt.NDArray[np.bool_]  # N; has a letter or digit


def frequent_ngrams(
    specs: Sequence[PoolNgrams], read: ReadCaptions, mode: Mode, by_language: bool = False
) -> list[set[str]]:
    """N-grams of each spec, from as many as `min_count` captions (of its language); a caption counts an n-gram once.

    `read` is called twice and must give the same captions each time, in any order and any cut. N-grams are runs of the
    captions' own tokens; a token without a letter or digit ends one.
    """
    if not specs:
        return []
    buckets = np.zeros(1 << _BUCKET_BITS, np.int64)
    for position, part in _slices(specs, read, mode, by_language):
        _fill(buckets, part, position, specs[position].max_words)
    counts: list[Counter[str]] = [Counter() for _ in specs]
    for position, part in _slices(specs, read, mode, by_language):
        for ngram, count in _count(buckets, part, position, specs[position]):
            counts[position][ngram] += count
    pairs = zip(specs, counts, strict=True)
    return [{ngram for ngram, count in found.items() if count >= spec.min_count} for spec, found in pairs]


def _slices(
    specs: Sequence[PoolNgrams], read: ReadCaptions, mode: Mode, by_language: bool
) -> Iterator[tuple[int, _Slice]]:
    """(position of the spec, its captions' tokens) of every slice of the pool."""
    for texts, languages in read():
        for start in range(0, len(texts), _SLICE_CAPTIONS):
            some = _some(texts, start)
            groups = _by_language(some, languages, start) if by_language else {}
            for position, spec in enumerate(specs):
                chosen = groups.get(spec.language, []) if by_language else some
                if chosen:
                    yield position, _tokens(chosen, mode)


def _some(texts: Texts, start: int) -> list[str | None]:
    part = texts[start : start + _SLICE_CAPTIONS]
    return list(part) if isinstance(part, Sequence) else part.to_pylist()


def _by_language(texts: list[str | None], languages: Texts | None, start: int) -> dict[str | None, list[str | None]]:
    assert languages is not None, "by language needs the language of each caption"
    groups: dict[str | None, list[str | None]] = {}
    for text, language in zip(texts, _some(languages, start), strict=True):
        groups.setdefault(language, []).append(text)
    return groups


def _tokens(texts: Sequence[str | None], mode: Mode) -> _Slice:
    space = spacing(mode)
    spaced = pa.array([space(text) for text in texts if text is not None], pa.large_string())
    lists = pc.split_pattern(spaced, " ")
    encoded = lists.flatten().dictionary_encode()
    words, tokens = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    is_word = np.fromiter((any(map(str.isalnum, word)) for word in words), np.bool_, len(words))
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    rows = pc.list_parent_indices(lists).to_numpy()
    return _Slice(np.array(words, np.object_), hashes, tokens, rows, is_word[tokens])


# P: places in a slice where an n-gram of the length at hand starts


def _fill(buckets: Longs, part: _Slice, position: int, longest: int) -> None:
    """Add every n-gram to its bucket, as often as it occurs: at least as often as there are captions that hold it."""
    start_P = np.flatnonzero(part.is_word)
    hash_P = part.hashes[part.tokens[start_P]]
    for length in range(1, longest + 1):
        if length > 1:
            fits_P = _goes_on(part, start_P, length)
            start_P = start_P[fits_P]
            hash_P = hash_P[fits_P] * _ODD + part.hashes[part.tokens[start_P + length - 1]]
        np.add.at(buckets, _bucket(hash_P, position), 1)


def _count(buckets: Longs, part: _Slice, position: int, spec: PoolNgrams) -> Iterator[tuple[str, int]]:
    """(n-gram, captions of the slice that hold it) of n-grams whose bucket has enough.

    An n-gram is told apart exactly, by the number of its beginning and of its last token. A beginning whose bucket has
    too little cannot go on to an n-gram that has enough.
    """
    start_P = np.flatnonzero(part.is_word)
    key_P, hash_P = part.tokens[start_P], part.hashes[part.tokens[start_P]]
    for length in range(1, spec.max_words + 1):
        if length > 1:
            fits_P = _goes_on(part, start_P, length)
            start_P = start_P[fits_P]
            last_P = part.tokens[start_P + length - 1]
            key_P, hash_P = key_P[fits_P] * len(part.words) + last_P, hash_P[fits_P] * _ODD + part.hashes[last_P]
        enough_P = buckets[_bucket(hash_P, position)] >= spec.min_count
        start_P, key_P, hash_P = start_P[enough_P], key_P[enough_P], hash_P[enough_P]
        if not len(start_P):
            return
        first_U, count_U, key_P = _distinct(key_P, part.rows[start_P])
        words = [part.words[part.tokens[start_P[first_U] + at]] for at in range(length)]
        yield from zip(map(" ".join, zip(*words, strict=True)), count_U.tolist(), strict=True)


def _goes_on(part: _Slice, start_P: Longs, length: int) -> npt.NDArray[np.bool_]:
    """Where the last of `length` tokens is a word of the same caption."""
    last_P = np.minimum(start_P + length - 1, len(part.rows) - 1)
    inside_P = (start_P + length <= len(part.rows)) & (part.rows[last_P] == part.rows[start_P])
    return np.asarray(inside_P & part.is_word[last_P], np.bool_)


def _bucket(hash_P: npt.NDArray[np.uint64], position: int) -> Longs:
    """Bucket of each n-gram, for the metadata source at this position."""
    mixed_P = (hash_P + np.uint64(position + 1)) * _ODD
    return ((mixed_P ^ (mixed_P >> np.uint64(32))) * _ODD >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)


def _distinct(key_P: Longs, row_P: Longs) -> tuple[Longs, Longs, Longs]:
    """First place of each distinct key, number of its rows, and every place's key as 0, 1 ...; rows ascend."""
    order = np.argsort(key_P, kind="stable")
    key, row = key_P[order], row_P[order]
    is_new = np.concatenate(([True], key[1:] != key[:-1]))
    is_new_row = is_new | np.concatenate(([True], row[1:] != row[:-1]))
    starts = np.flatnonzero(is_new)
    number_P = np.empty(len(key_P), np.int64)
    number_P[order] = np.cumsum(is_new) - 1
    return order[starts], np.add.reduceat(is_new_row.astype(np.int64), starts), number_P
