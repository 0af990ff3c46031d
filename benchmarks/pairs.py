"""Pairs to measure loaders with: JPEG photographs and captions in plain WebDataset tars, the same for the same seed.

    python -m benchmarks.pairs FOLDER [--pairs 4000] [--seed 0] [--side 256]

The photographs are random cuts of scikit-learn's two sample pictures, at a random scale and brightness, so that no two
files are equal; the captions are 6 to 14 of the 20,000 commonest English words, as often as Zipf's law has them.
"""

import argparse
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image
from wordfreq import top_n_list

from data import storage
from data.artifacts import Artifact, Record
from data.shards import Pair, ShardSet, write_manifest, write_shard

_PAIRS_PER_SHARD = 1000
_QUALITY = 90


def photographs(count: int, seed: int, side: int) -> Iterator[bytes]:
    """Yield JPEG files of side x side pixels."""
    random = np.random.default_rng((seed, 1))
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for number in range(count):
        source = sources[number % len(sources)]
        cut = int(min(source.size) * random.uniform(0.55, 1))
        left, top = (int(random.integers(0, size - cut + 1)) for size in source.size)
        picture = source.crop((left, top, left + cut, top + cut)).resize((side, side), Image.Resampling.BICUBIC)
        sink = io.BytesIO()
        ImageEnhance.Brightness(picture).enhance(random.uniform(0.7, 1.2)).save(sink, "JPEG", quality=_QUALITY)
        yield sink.getvalue()


def captions(count: int, seed: int) -> Iterator[str]:
    """Yield captions of common words."""
    random, words = np.random.default_rng((seed, 2)), top_n_list("en", 20_000)
    weight = 1 / (np.arange(len(words)) + 2.7)
    for _ in range(count):
        yield " ".join(random.choice(words, random.integers(6, 15), p=weight / weight.sum()))


def write_pairs(folder: str, count: int, seed: int = 0, side: int = 256) -> None:
    """Write the shard set: `shards/*.tar` (plain WebDataset), and beside them the index that our loader reads."""
    pairs = (
        Pair(f"{number:07d}", content, "jpg", {"alt": caption}, {})
        for number, (content, caption) in enumerate(
            zip(photographs(count, seed, side), captions(count, seed), strict=True)
        )
    )
    names = [f"{number:05d}" for number in range(-(-count // _PAIRS_PER_SHARD))]
    write_manifest(folder, [write_shard(folder, name, islice(pairs, _PAIRS_PER_SHARD)) for name in names], [])


def open_shard_set(folder: str) -> ShardSet:
    """The shard set that `write_pairs` left in a folder."""
    record = Record(kind="shard_set", stage="benchmark", revision=1, fingerprint="0" * 64, config={})
    return ShardSet(Artifact(folder, record))


def tars(folder: str) -> list[str]:
    """Paths of its tars."""
    return [str(Path(folder, "shards", name)) for name, _ in storage.list_files(storage.join(folder, "shards"))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    options = parser.parse_args()
    write_pairs(options.folder, options.pairs, options.seed, options.side)
    print(f"{options.pairs} pairs in {len(tars(options.folder))} tars: {options.folder}/shards")
