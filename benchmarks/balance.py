"""Balancing against the same in numpy: counts, probabilities and draws of pairs with matched entries.

    python -m benchmarks.balance [--pairs 500000] [--entries 500000] [--turns 5]

Two references keep MetaCLIP's rule (every matched entry throws its own dice, a pair is kept if one says so): numpy
caption by caption, and numpy over all captions at once, which is as fast as numpy goes.
Ours also gives each pair's probability, and hashes uid and caption, so that a draw is the pair's own wherever it lies.
Rates are of processor seconds on one core. Ends with 1 if the number of kept pairs is not what the closed form allows.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pyarrow as pa

from benchmarks.ratios import print_result, ratios, spread, take_turns
from data.curation.balance import Floats, count_entries, draws, entry_probabilities, keep_probabilities
from data.curation.match import Ints, Longs

_MEAN_ENTRIES = 16  # of a pair, as benchmarks.match finds them
_TAIL_FRACTION = 0.06  # of matches, as the paper's t leaves in the tail


def matched(num_pairs: int, num_entries: int, seed: int) -> tuple[Longs, Ints]:
    """CSR of Zipf-distributed distinct entries."""
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(num_pairs), random.poisson(_MEAN_ENTRIES, num_pairs))
    weight = 1 / (np.arange(num_entries) + 2.7)
    entries = random.choice(num_entries, len(rows), p=weight / weight.sum())
    keys = np.unique(rows * num_entries + random.permutation(num_entries)[entries])
    lengths = np.bincount(keys // num_entries, minlength=num_pairs)
    return np.concatenate(([0], np.cumsum(lengths))), (keys % num_entries).astype(np.int32)


def numpy_kept(indptr: Longs, ids: Ints, num_entries: int, t: int, random: np.random.Generator) -> int:
    """Pairs that numpy keeps: one draw a matched entry, and a pair is kept by any."""
    counts = np.bincount(ids, minlength=num_entries)
    p = np.where(counts < t, 1.0, t / np.maximum(counts, 1))
    hits = random.random(len(ids)) < p[ids]
    filled = np.flatnonzero(np.diff(indptr))
    return int(np.logical_or.reduceat(hits, indptr[filled]).sum())


def numpy_each(indptr: Longs, ids: Ints, num_entries: int, t: int, random: np.random.Generator) -> int:
    """Pairs that numpy keeps, looking at one caption after the other."""
    counts = np.bincount(ids, minlength=num_entries)
    p = np.where(counts < t, 1.0, t / np.maximum(counts, 1))
    return sum(bool((random.random(end - begin) < p[ids[begin:end]]).any()) for begin, end in pairwise(indptr.tolist()))


def our_kept(
    indptr: Longs, ids: Ints, num_entries: int, t: int, uids: pa.Array, captions: pa.Array
) -> tuple[int, Floats]:
    """Pairs that we keep, and each one's probability."""
    p_keep_P = keep_probabilities(indptr, ids, entry_probabilities(count_entries(ids, num_entries), t))
    return int((draws(uids, captions, 0) < p_keep_P).sum()), p_keep_P


def rate(num_pairs: int, run: Callable[[], object]) -> float:
    """Pairs a processor second."""
    began = time.process_time()
    run()
    return num_pairs / (time.process_time() - began)


def main(num_pairs: int, num_entries: int, turns: int) -> int:
    """Measure and check; the exit code."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    indptr, ids = matched(num_pairs, num_entries, 0)
    counts = np.sort(count_entries(ids, num_entries))
    t = int(counts[np.searchsorted(np.cumsum(counts), _TAIL_FRACTION * len(ids))])
    uids = pa.array([f"{number:09d}" for number in range(num_pairs)], pa.large_string())
    text = "a caption of about seventy bytes, which is what captions have, "
    captions = pa.array([f"{text}{number}" for number in range(num_pairs)], pa.large_string())
    random = np.random.default_rng(0)
    found = take_turns(
        {
            "numpy, each caption": lambda: rate(num_pairs, lambda: numpy_each(indptr, ids, num_entries, t, random)),
            "numpy": lambda: rate(num_pairs, lambda: numpy_kept(indptr, ids, num_entries, t, random)),
            "ours": lambda: rate(num_pairs, lambda: our_kept(indptr, ids, num_entries, t, uids, captions)),
        },
        turns,
    )
    kept, p_keep_P = our_kept(indptr, ids, num_entries, t, uids, captions)
    expected, deviation = p_keep_P.sum(), np.sqrt((p_keep_P * (1 - p_keep_P)).sum())
    print(f"{num_pairs} pairs, {len(ids) / num_pairs:.1f} entries each, t {t}")
    off = (kept - expected) / max(deviation, 1e-9)
    print(f"kept {kept}, closed form {expected:.0f}: {off:+.2f} standard deviations")
    print_result(found, "ours", "numpy", "pairs/s", ">= 3")
    print(f"  ours / numpy, each caption: {spread(ratios(found['ours'], found['numpy, each caption']))}   bar: >= 3")
    return int(abs(kept - expected) > 5 * deviation)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    sys.exit(main(options.pairs, options.entries, options.turns))
