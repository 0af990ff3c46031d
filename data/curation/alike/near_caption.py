"""Captions whose sets of word n-grams overlap: MinHash finds who may, the sets themselves decide.

Only captions with more than `ngram_words` words take part: many good pairs share a short caption such as "dog".
Candidates are those that share a band of their MinHash signatures; a link needs the Jaccard similarity of the sets to
reach the bound, so none is false, and one in a thousand at the bound may be missed (`band_sizes`). Equal sets are
always found.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.curation.alike.sketches import Hashes, mix
from data.curation.groups import Longs, alone, group_equal, join, labels_of, merge, root
from data.curation.kernels import compiled
from data.shards import read_parquet

Bools = npt.NDArray[np.bool_]
_ROUNDING = 1e-9


def link(sketch_uris: Sequence[str], position_S: Longs, min_similarity: float) -> Longs:
    """Partition of P pairs by the sketches of their captions.

    Args:
        sketch_uris: parquet files (SKETCH_SCHEMA), which together have a row a pair.
        position_S: row of each pair in the concatenated files -> its row in the partition.
        min_similarity: smallest Jaccard similarity of a link.
    """
    whole, bands = _read(sketch_uris, position_S)
    rows = np.flatnonzero(whole.is_valid().to_numpy(zero_copy_only=False))
    equal = group_equal(len(position_S), rows, whole.drop_null().dictionary_encode().indices.to_numpy())
    first = rows[equal[rows] == rows]  # of each set one
    place = np.searchsorted(rows, first)
    bands = bands[place]
    has_company = _shares_a_band(bands)
    some, bands = first[has_company], bands[has_company]
    indptr, ranks = _ranked(*_ngrams_of(sketch_uris, position_S, some))
    parent = alone(len(some))
    _link_bands(parent, bands, indptr, ranks, min_similarity)
    near = alone(len(position_S))
    near[some] = some[labels_of(parent)]
    return merge([equal, near])


def _read(uris: Sequence[str], position_S: Longs) -> tuple[pa.Array, Hashes]:
    """(checksum of every pair's set in the order of the partition, bands of those that take part)."""
    tables = [read_parquet(uri, ["whole", "bands"]) for uri in uris]
    table = pa.concat_tables(tables).take(pa.array(np.argsort(position_S)))
    whole, bands = (table[name].combine_chunks() for name in ("whole", "bands"))
    taking_part = len(whole) - whole.null_count
    return whole, bands.flatten().to_numpy().reshape(taking_part, -1 if taking_part else 0)


def _shares_a_band(bands: Hashes) -> Bools:
    """Rows that have a band in common with another row."""
    shares = np.zeros(len(bands), np.bool_)
    for band in bands.T:
        order = np.argsort(band)
        is_same = band[order[1:]] == band[order[:-1]]
        shares[order[1:][is_same]] = shares[order[:-1][is_same]] = True
    return shares


def _ngrams_of(uris: Sequence[str], position_S: Longs, wanted: Longs) -> tuple[Longs, Hashes]:
    """CSR (indptr, n-grams) of the wanted rows of the partition, a file at a time."""
    parts, owners, start = [pa.array([], pa.large_list(pa.uint64()))], [np.zeros(0, np.int64)], 0
    for uri in uris:
        column = read_parquet(uri, ["ngrams"])["ngrams"].combine_chunks()
        position = position_S[start : start + len(column)]
        chosen = np.flatnonzero(np.isin(position, wanted))
        parts.append(column.take(pa.array(chosen)))
        owners.append(position[chosen])
        start += len(column)
    order = np.argsort(np.concatenate(owners))
    lists = pa.chunked_array(parts).combine_chunks().take(pa.array(order))
    return lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy()


def _ranked(indptr: Longs, ngrams: Hashes) -> tuple[Longs, Longs]:
    """The same sets with every n-gram as its rank, rarest first, ascending in each row."""
    _, code, count = np.unique(ngrams, return_inverse=True, return_counts=True)
    rank = np.empty(len(count), np.int64)
    rank[np.lexsort((np.arange(len(count)), count))] = np.arange(len(count))
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    ranks = rank[code]
    return indptr, ranks[np.lexsort((ranks, row))]


def _link_bands(parent: Longs, bands: Hashes, indptr: Longs, ranks: Longs, min_similarity: float) -> None:
    """Compare the pairs that share a band and one of their rarest n-grams.

    Let y be the shorter of two sets with similarity s. They share at least s |x| and 2 s / (1 + s) |y| members, so the
    rarest member of both is among the |x| - ceil(s |x|) + 1 rarest of x and the |y| - ceil(2 s / (1 + s) |y|) + 1
    rarest of y (prefix filtering, PPJoin, Xiao et al. 2008). So captions of one length made from one template, with
    words of their own, are either alike or never compared: no bucket of thousands is searched pair by pair.
    """
    sizes = np.diff(indptr)
    reach = sizes - np.ceil(min_similarity * sizes - _ROUNDING).astype(np.int64) + 1
    short_reach = sizes - np.ceil(2 * min_similarity / (1 + min_similarity) * sizes - _ROUNDING).astype(np.int64) + 1
    row = np.repeat(np.arange(len(sizes)), reach)
    place = np.arange(len(row)) - np.repeat(np.cumsum(reach) - reach, reach)
    member_hash = mix(ranks[place + indptr[row]].astype(np.uint64))
    is_short = place < short_reach[row]
    for band in bands.T:
        keys = band[row] ^ member_hash
        order = np.lexsort((~is_short, keys))
        _link_runs(parent, keys[order], is_short[order], row[order], indptr, ranks, min_similarity)


@compiled
def _link_runs(
    parent: Longs, keys: Hashes, is_short: Bools, rows: Longs, indptr: Longs, ranks: Longs, min_similarity: float
) -> None:
    """Compare pairs inside each run of equal keys, each short one with all after it, until all are linked."""
    start = 0
    for end in range(1, len(keys) + 1):
        if end < len(keys) and keys[end] == keys[start]:
            continue
        apart = _num_groups(parent, rows[start:end]) - 1
        for one in range(start, end):
            if apart == 0 or not is_short[one]:
                break
            for other in range(one + 1, end):
                left, right = rows[one], rows[other]
                if root(parent, left) != root(parent, right) and (
                    _jaccard(ranks[indptr[left] : indptr[left + 1]], ranks[indptr[right] : indptr[right + 1]])
                    >= min_similarity
                ):
                    join(parent, left, right)
                    apart -= 1
        start = end


@compiled
def _num_groups(parent: Longs, rows: Longs) -> int:
    """Groups that these rows are in."""
    if len(rows) == 1:
        return 1
    roots = np.empty(len(rows), np.int64)
    for number in range(len(rows)):
        roots[number] = root(parent, rows[number])
    roots.sort()
    return 1 + int((roots[1:] != roots[:-1]).sum())


@compiled
def _jaccard(left: Longs, right: Longs) -> float:
    """Of two ascending sets: common members / all members."""
    i = j = common = 0
    while i < len(left) and j < len(right):
        if left[i] == right[j]:
            common, i, j = common + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return common / (len(left) + len(right) - common)
