"""Matching against pyahocorasick, which MetaCLIP matches with: the same captions, entries and ids.

    python -m benchmarks.match [--captions 100000] [--entries 500000] [--turns 5]

Captions are English words as often as wordfreq has them and bigrams as often as symspellpy's square root, with
punctuation, capitals and numbers; entries are such words and bigrams. Both sides get strings and answer with sorted,
distinct ids, ours as one CSR. Rates are of UTF-8 bytes of captions a processor second, on one core. Ends with 1 if any
id differs in the captions that the reference has read.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import resources

import ahocorasick
import numpy as np
import symspellpy
import wordfreq

from benchmarks.ratios import print_result, take_turns
from data.curation.match import Matcher, space_exact

_BIGRAMS = "frequency_bigramdictionary_en_243_342.txt"
_WORDS = 100_000
_REFERENCE_CAPTIONS = 20_000


def bigrams() -> tuple[list[str], np.ndarray]:
    """symspellpy's bigrams, and how often each is drawn."""
    lines = resources.files(symspellpy).joinpath(_BIGRAMS).read_text("utf-8-sig").splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines]
    weight = np.sqrt([float(count) for _, count in pairs])
    return [text for text, _ in pairs], weight / weight.sum()


def entries(count: int) -> list[str]:
    """So many bigrams and frequent words, sorted."""
    known = bigrams()[0][: count // 2]
    return sorted({*known, *wordfreq.top_n_list("en", count - len(known))})


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions of 3 to 17 words or bigrams."""
    random, words = np.random.default_rng(seed), wordfreq.top_n_list("en", _WORDS)
    weight = np.array([10 ** wordfreq.zipf_frequency(word, "en") for word in words])
    lengths = random.integers(3, 18, count)
    total = int(lengths.sum())
    pairs, pair_weight = bigrams()
    singles = random.choice(len(words), total, p=weight / weight.sum())
    doubles = random.choice(len(pairs), total, p=pair_weight)
    form = random.random(total)
    parts = [
        _dressed(pairs[doubles[k]] if form[k] < 0.2 else words[singles[k]], float(form[k]), k) for k in range(total)
    ]
    ends = np.cumsum(lengths)
    return [
        " ".join(parts[end - length : end]) + ("." if end % 3 == 0 else "")
        for end, length in zip(ends, lengths, strict=True)
    ]


def _dressed(text: str, form: float, number: int) -> str:
    if form > 0.97:
        return text + ","
    return text.capitalize() if form > 0.95 else text + str(number % 2000) if form > 0.94 else text


def automaton(texts: Sequence[str]) -> Callable[[Sequence[str]], list[list[int]]]:
    """The reference: an automaton of padded entries over spaced and padded captions."""
    machine = ahocorasick.Automaton()
    for number, text in enumerate(texts):
        machine.add_word(f" {text} ", number)
    machine.make_automaton()
    return lambda texts: [sorted({number for _, number in machine.iter(f" {space_exact(text)} ")}) for text in texts]


def megabytes(texts: Sequence[str]) -> float:
    """UTF-8 megabytes."""
    return sum(len(text.encode()) for text in texts) / 1e6


def rate(texts: Sequence[str], run: Callable[[Sequence[str]], object]) -> float:
    """Megabytes a processor second."""
    began = time.process_time()
    run(texts)
    seconds = time.process_time() - began
    return megabytes(texts) / seconds


def main(num_captions: int, num_entries: int, turns: int) -> int:
    """Measure and compare; the exit code."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    known, texts = entries(num_entries), captions(num_captions)
    began = time.process_time()
    matcher = Matcher(known)
    print(f"{len(known)} entries: table {matcher.nbytes / 2**20:.1f} MiB, built in {time.process_time() - began:.1f} s")
    reference, few = automaton(known), texts[:_REFERENCE_CAPTIONS]
    found = take_turns(
        {"pyahocorasick": lambda: rate(few, reference), "ours": lambda: rate(texts, matcher.match)}, turns
    )
    indptr, ids = matcher.match(few)
    differ = sum(row != ids[indptr[k] : indptr[k + 1]].tolist() for k, row in enumerate(reference(few)))
    bytes_each = megabytes(texts) * 1e6 / len(texts)
    told = f"{len(texts)} captions of {bytes_each:.0f} bytes with {len(ids) / len(few):.1f} entries"
    print(f"{told}: {differ} of {len(few)} differ")
    print(f"ours: {np.median(found['ours']) * 1e6 / bytes_each:,.0f} captions/s")
    print_result(found, "ours", "pyahocorasick", "MB/s", ">= 20")
    return int(differ > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    sys.exit(main(options.captions, options.entries, options.turns))
