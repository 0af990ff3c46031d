"""How fast a core inspects and filters: pictures, captions and rows a second, and the memory of a whole stage.

    python -m benchmarks.inspection FOLDER [--pairs 4000] [--side 512] [--rows 200000]

Pictures and captions are those of benchmarks.pairs; FOLDER holds them, and is filled where it is empty.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.pairs import captions, open_shard_set, write_pairs
from data.artifacts import Output
from data.curation import specs
from data.curation.filters import build_filter
from data.curation.inspection import run
from data.curation.languages import detect_languages
from data.events import SILENT
from data.place import Place
from data.shards import ShardSet
from data.stage import Work

FILTERS: tuple[specs.Filter, ...] = (
    specs.CaptionLength(), specs.CaptionCharacters(), specs.CaptionRepetition(), specs.Language(), specs.ImageSize(),
    specs.AspectRatio(), specs.Sharpness(), specs.MetaNumber(field="punsafe", at_most=0.5),
    specs.MetaFlag(field="NSFW"), specs.UrlDomain(domains=("example.com",)), specs.ClipScore(),
)  # fmt: skip


def rate(count: int, work: Callable[[], object]) -> float:
    """Things a second of a core's time, so that other work on the machine does not count."""
    started = time.process_time()
    work()
    return count / (time.process_time() - started)


def stage(pairs: ShardSet, folder: str) -> None:
    """Inspect all shards in this process."""
    work = Work("inspect", {"pairs": pairs.artifact}, Output(folder, "inspect", "0" * 64), Place(root=folder), SILENT)
    run(specs.InspectSpec(pairs="pairs"), work)


def rows(count: int) -> pa.Table:
    """Rows as curate joins them."""
    random = np.random.default_rng(0)
    texts = list(captions(min(count, 2_000), 0))
    meta = [
        json.dumps({"NSFW": "UNLIKELY", "punsafe": n % 9 / 10, "url": f"https://h{n % 97}.org/{n}.jpg"})
        for n in range(count)
    ]
    return pa.table(
        {
            "caption": pa.array([texts[n % len(texts)] for n in range(count)]), "meta": pa.array(meta),
            "language": pa.array(["en"] * count), "language_score": pa.array(random.random(count, np.float32)),
            "width": pa.array(random.integers(1, 900, count, np.int32)),
            "height": pa.array(random.integers(1, 900, count, np.int32)),
            "sharpness": pa.array(random.random(count, np.float32)),
            "clip_score": pa.array(random.random(count, np.float32)),
        }
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    for name, default in (("--pairs", 4000), ("--side", 512), ("--rows", 200_000)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    if not Path(options.folder, "shards.json").exists():
        write_pairs(options.folder, options.pairs, side=options.side)
    pairs = open_shard_set(options.folder)
    count = sum(shard.pairs for shard in pairs.shards)
    with tempfile.TemporaryDirectory() as folder:
        print(f"stage: {rate(count, lambda: stage(pairs, folder)):,.0f} pairs/s, {options.side} x {options.side} JPEG")
    texts = list(captions(2_000, 1))
    detect_languages(texts[:1])  # loads the model
    print(f"languages: {rate(len(texts), lambda: detect_languages(texts)):,.0f} captions/s")
    table = rows(options.rows)
    for spec in FILTERS:
        made = build_filter(spec)
        print(f"{spec.filter}: {rate(table.num_rows, lambda made=made: made.judge(table)):,.0f} rows/s")  # type: ignore[misc]
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
