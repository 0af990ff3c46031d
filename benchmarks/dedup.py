"""Linking near pictures against brute force in numpy, and near captions: rates, and the same links.

    python -m benchmarks.dedup [--pairs 200000] [--turns 3] [--distance 3]

A tenth of the hashes are copies of others with up to 4 bits flipped, a tenth of the captions copies of others with a
word changed. The baseline compares every hash with every other by numpy's bitwise_count, in tiles; above 50,000 pairs
it does so for some rows only, and its time is scaled to all. Links are then compared on the first 50,000. Both use one
core.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.ratios import print_result, spread, take_turns
from data.curation.alike import near_caption, near_image
from data.curation.alike.sketches import ngram_sets, sketch
from data.curation.groups import Longs, alone, is_linked, join_all, labels_of
from data.shards import write_parquet

Hashes = npt.NDArray[np.uint64]
_TILE_ROWS = 256
_WHOLE_PAIRS = 50_000
_SHARD_PAIRS = 10_000
_MIN_SIMILARITY, _NGRAM_WORDS, _PERMUTATIONS = 0.8, 2, 128


def make_hashes(count: int, seed: int = 0) -> Hashes:
    """Random hashes, and near copies of some."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, count, np.uint64)
    copies = random.choice(count, count // 10, replace=False)
    flipped = np.zeros(len(copies), np.uint64)
    for number in range(4):
        bit = np.uint64(1) << random.integers(0, 64, len(copies), np.uint64)
        flipped ^= np.where(random.integers(0, 5, len(copies)) > number, bit, np.uint64(0))
    hashes[copies] = hashes[random.integers(0, count, len(copies))] ^ flipped
    return hashes


def make_captions(count: int, seed: int = 0) -> list[str]:
    """Captions of words as frequent as Zipf's law has them, and near copies of some."""
    from wordfreq import top_n_list

    random, words = np.random.default_rng(seed), np.array(top_n_list("en", 20_000), object)
    weight = 1 / (np.arange(len(words)) + 2.7)
    flat = random.choice(words, (count, 20), p=weight / weight.sum())
    captions = [list(row[:length]) for row, length in zip(flat, random.integers(4, 21, count), strict=True)]
    for number in random.choice(count, count // 10, replace=False):
        caption = list(captions[random.integers(0, count)])
        caption[-1] = words[random.integers(0, len(words))]
        captions[number] = caption
    return [" ".join(caption) for caption in captions]


def link_by_brute_force(hashes: Hashes, max_distance: int, rows: int) -> Longs:
    """Partition by comparing the first so many rows with all."""
    parent = alone(len(hashes))
    for start in range(0, rows, _TILE_ROWS):
        left, right = np.nonzero(
            np.bitwise_count(hashes[start : start + _TILE_ROWS, None] ^ hashes[None, start:]) <= max_distance
        )
        join_all(parent, left + start, right + start)
    return labels_of(parent)


def measure_images(count: int, turns: int, max_distance: int) -> bool:
    """Print the ratio of the two; True when their links are the same."""
    hashes = make_hashes(count)
    column = pa.chunked_array([hashes])
    is_whole = count <= _WHOLE_PAIRS
    rows = count if is_whole else 4 * _TILE_ROWS
    fraction = 1.0 if is_whole else sum(count - row for row in range(rows)) / (count * (count + 1) / 2)
    labels: dict[str, Longs] = {}

    def ours() -> float:
        started = time.perf_counter()
        labels["ours"] = near_image.link(column, max_distance)
        return count / (time.perf_counter() - started)

    def theirs() -> float:
        started = time.perf_counter()
        labels["theirs"] = link_by_brute_force(hashes, max_distance, rows)
        return count * fraction / (time.perf_counter() - started)

    found = take_turns({"clipworks": ours, "numpy, all pairs": theirs}, turns)
    masks = near_image.block_masks(max_distance, count, count**2 / 2)
    print(f"near pictures: {count:,} hashes, {max_distance} bits, {len(masks)} keys")
    print_result(found, "clipworks", "numpy, all pairs", "hashes/s", "no bar")
    small = hashes[:_WHOLE_PAIRS]
    brute = link_by_brute_force(small, max_distance, len(small))
    is_same = bool((near_image.link(pa.chunked_array([small]), max_distance) == brute).all())
    print(f"  {int(is_linked(brute).sum()):,} of {len(small):,} linked; identical: {is_same}")
    return is_same


def measure_captions(count: int, turns: int) -> bool:
    """Print the rates of sketching and linking; True when all links that sets of n-grams prove are found."""
    captions = make_captions(count)
    labels: list[Longs] = []

    def sketching(folder: Path) -> float:
        started = time.perf_counter()
        for number in range(0, count, _SHARD_PAIRS):
            shard = pa.array(captions[number : number + _SHARD_PAIRS], pa.large_string())
            table = sketch(shard, _NGRAM_WORDS, _PERMUTATIONS, _MIN_SIMILARITY, 0)
            write_parquet(str(folder / f"{number:09d}.parquet"), table)
        return count / (time.perf_counter() - started)

    def linking(folder: Path) -> float:
        started = time.perf_counter()
        uris = [str(path) for path in sorted(folder.glob("*.parquet"))]
        labels.append(near_caption.link(uris, np.arange(count), _MIN_SIMILARITY))
        return count / (time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as name:
        found = take_turns({"sketch": lambda: sketching(Path(name)), "link": lambda: linking(Path(name))}, turns)
    linked, proved, missed = is_linked(labels[-1]), *_check(captions, labels[-1])
    print(f"near captions: {count:,} captions, Jaccard {_MIN_SIMILARITY} of {_NGRAM_WORDS}-grams")
    for part, rates in found.items():
        print(f"  {part:<28} {spread(rates)} captions/s")
    print(
        f"  {int(linked.sum()):,} linked; {proved:,} links by exhaustive search of {_checked(count):,}, {missed} missed"
    )
    return missed <= proved * 2e-3


def _checked(count: int) -> int:
    return min(count, 20_000)


def _check(captions: list[str], labels: Longs) -> tuple[int, int]:
    """(links that an inverted index over n-grams proves among the first captions, those that `labels` lacks)."""
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    count = _checked(len(captions))
    found = ngram_sets(list(captions[:count]), _NGRAM_WORDS)
    distinct, column = np.unique(found.ngrams, return_inverse=True)
    shape = (len(found.rows), len(distinct))
    holds = csr_matrix((np.ones(len(column), np.int32), column, found.indptr), shape=shape)
    common = (holds @ holds.T).tocoo()
    sizes = np.diff(found.indptr)
    union = sizes[common.row] + sizes[common.col] - common.data
    near = (common.row < common.col) & (common.data / union >= _MIN_SIMILARITY)
    left, right = found.rows[common.row[near]], found.rows[common.col[near]]
    return len(left), int((labels[left] != labels[right]).sum())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--distance", type=int, default=3)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    is_same = measure_images(options.pairs, options.turns, options.distance)
    found_all = measure_captions(options.pairs, options.turns)
    sys.exit(0 if is_same and found_all else 1)
