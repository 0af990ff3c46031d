"""Embed pairs, captions, class prompts and queries with a checkpoint, once for everybody."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from data.events import SILENT, Events
from data.features import Floats, write_features
from data.selection import read_split, uids_of
from data.shards import CaptionLayer, ShardSet
from data.stage import Outcome, Work
from training.loading import PairStore
from training.pictures import Pixels
from training.specs import EmbedSpec, Prompts
from training.towers import Towers, load_towers


def embed_images(
    towers: Towers, store: PairStore, rows: Sequence[int], chunk: int = 256, events: Events = SILENT, message: str = ""
) -> Floats:
    """image_features (N, D) of the pairs in `rows`; the next chunk is decoded while one is embedded."""
    side = towers.image_size
    pieces = [rows[at : at + chunk] for at in range(0, len(rows), chunk)]
    found = [np.empty((0, towers.embed_dim), np.float32)]
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        decoded = [pool.submit(_decode, store, piece, side) for piece in pieces[:1]]
        for number, piece in enumerate(pieces):
            pixels = decoded.pop().result()
            if number + 1 < len(pieces):
                decoded.append(pool.submit(_decode, store, pieces[number + 1], side))
            found.append(towers.encode_images(pixels))
            events.progress(number * chunk + len(piece), len(rows), "pairs", message)
    return np.concatenate(found)


def _decode(store: PairStore, rows: Iterable[int], side: int) -> Pixels:
    return np.stack([store.decode(int(row), side) for row in rows])


def prompt_texts(shard_set: ShardSet, prompts: Sequence[Prompts]) -> list[str]:
    """Every class of the metadata fields in every template, sorted."""
    metas = [json.loads(text) for text in shard_set.index()["meta"].to_pylist()] if prompts else []
    texts = set()
    for prompt in prompts:
        classes = {str(meta[prompt.field]) for meta in metas if meta.get(prompt.field) not in (None, "")}
        texts |= {template.replace("{c}", name) for name in classes for template in prompt.templates}
    return sorted(texts)


def run(spec: EmbedSpec, work: Work) -> Outcome:
    """Stage function of `embed`."""
    torch.set_num_threads(work.place.cpus_per_worker)
    shard_set = ShardSet(work.parents["pairs"])
    layers = [CaptionLayer(artifact) for artifact in work.parents_below("caption_layers").values()]
    store = PairStore(shard_set, uids_of(read_split(work.parents["split"]), spec.splits), layers)
    towers = load_towers(work.parents["checkpoint"].uri)
    if work.place.gpus_per_worker and torch.cuda.is_available():
        towers.to("cuda")
    images = embed_images(towers, store, range(len(store)), spec.chunk_pairs, work.events, "pictures")
    captions = {text for column in store.captions.values() for text in column.unique().drop_null().to_pylist()}
    texts = sorted(captions | set(prompt_texts(shard_set, spec.prompts)) | set(spec.queries))
    work.events.message(f"{len(texts)} distinct texts")
    write_features(work.out.uri, store.uids.to_pylist(), images, texts, towers.encode_texts(texts))
    scale = work.parents["checkpoint"].record.metrics
    metrics = {key: scale.get(key) for key in ("logit_scale", "logit_bias")}
    return Outcome({"pairs": len(store), "texts": len(texts), "embed_dim": towers.embed_dim}, metrics)
