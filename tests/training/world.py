"""A tiny world for training tests: coloured squares with names, small towers, stages as plain calls."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from data.artifacts import Output, Record
from data.events import Events
from data.place import Place
from data.selection import write_selection, write_split
from data.shards import Pair, write_manifest, write_shard
from data.stage import Work

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 40),
    "black": (10, 10, 10),
    "pink": (250, 150, 200),
}
SHAPES = ("square", "bar", "dot")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY_BIAS = {**TINY, "init_logit_bias": -10.0, "init_logit_scale": 2.3}


def picture(colour: str, shape: str, jitter: int) -> bytes:
    image = np.full((20, 20, 3), 255, np.uint8)
    box = {
        "square": (slice(3, 17), slice(3, 17)),
        "bar": (slice(8, 12), slice(1, 19)),
        "dot": (slice(7, 13), slice(7, 13)),
    }[shape]
    image[box] = np.clip(np.array(COLOURS[colour]) + jitter, 0, 255)
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def pairs(copies: int = 4) -> list[Pair]:
    return [
        Pair(
            f"{colour}-{shape}-{n}", picture(colour, shape, 3 * n), "png",
            {"alt": f"a {colour} {shape}", "alias": f"{shape} in {colour}"}, {"colour": colour},
        )
        for colour in COLOURS for shape in SHAPES for n in range(copies)
    ]  # fmt: skip


def commit(root, name, kind, write, metrics=None, parents=None):
    """Make an artifact by hand: `write(uri)` puts its files."""
    out = Output(str(root), name, f"{name}-test".encode().hex().ljust(64, "0"))
    write(out.uri)
    return out.commit(
        Record(
            kind=kind,
            stage=name,
            revision=1,
            fingerprint=f"{name}-test".encode().hex().ljust(64, "0"),
            config={},
            metrics=metrics or {},
            parents=parents or {},
        )
    )


def small_world(root, copies: int = 4):
    """(pairs, split, selection) artifacts over the coloured shapes; copy 0 is held out."""
    everything = pairs(copies)

    half = len(everything) // 2

    def write_pairs(uri):
        shards = [write_shard(uri, f"{n:05d}", part) for n, part in enumerate((everything[:half], everything[half:]))]
        write_manifest(uri, shards, [])

    uids = [pair.uid for pair in everything]
    split = ["test" if uid.endswith("-0") else "train" for uid in uids]
    kept = [name == "train" for name in split]

    def write_splits(uri):
        for n, part in enumerate((slice(0, half), slice(half, None))):
            write_split(uri, pa.table({"uid": uids[part], "split": split[part]}), f"{n:05d}")

    columns = {
        "uid": uids,
        "kept": kept,
        "p_keep": [1.0] * len(uids),
        "draw": [0.0] * len(uids),
        "reason": [""] * len(uids),
    }
    return (
        commit(root, "pairs", "shard_set", write_pairs),
        commit(root, "split", "split", write_splits),
        commit(root, "selection", "selection", lambda uri: write_selection(uri, pa.table(columns))),
    )


def work(root, name, parents):
    """A stage's surroundings without a pipeline."""
    out = Output(str(root), name, f"{name}-work".encode().hex().ljust(64, "0"))
    return Work(name, parents, out, Place(root=str(root), cpus_per_worker=1), Events(out.events_uri, name))


def log_lines(uri) -> list[dict]:
    return [json.loads(line) for line in Path(uri, "metrics.jsonl").read_text().splitlines()]
