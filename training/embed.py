"""The embed stage: pictures and texts through a checkpoint's towers, once for everybody, shard by shard.

A shard's rows are restart state until all are there; then they are put together as mapped files, so that memory does
not grow with the number of pairs. The same bytes come out whatever the workers, their threads or their deaths.
Legend: N pairs of the set, D embedding.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import RecipeError, ShardError
from data.features import write_keys
from data.measurement import cpu_model
from data.shards import ShardSet, read_parquet, write_parquet
from data.shardwise import each_shard
from data.stage import Outcome, Work
from training.embed_job import Job, Piece, forget_towers, put_together
from training.embed_patches import FOREGROUND, TOKENS, UIDS, chosen_pairs, embed_patch_shard, patches_uri
from training.embed_pictures import KEYS, embed_shard, rows_uri
from training.embed_texts import distinct_texts, embed_piece, text_pieces, write_pieces
from training.machine import visible_gpus
from training.specs import EmbedSpec
from training.workload import embedding_flops, models_of

Ints = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Sorted uids of a set; where its pieces' rows go, and the shards that have some."""

    uids: pa.Array
    contents: pa.Array
    places: list[tuple[str, Ints]]


def run(spec: EmbedSpec, work: Work) -> Outcome:
    """Stage function of `embed`: write a feature set (`data.features`).

    Raises:
        RecipeError: nothing to embed, or a view's name that is no file name.
        ShardError: names the uid and shard of a picture that cannot be read.
        ModelError: patches are asked of a tower that shows none.
        ArtifactError: a feature is not finite.
    """
    _check(spec)
    names = [shard.name for shard in ShardSet(work.parents["pairs"]).shards]
    uris = {role: parent.uri for role, parent in work.parents.items()}
    job = Job(spec, uris, work.out.state_uri, work.place, work.events)
    try:
        rows = _pictures(job, work, names)
        patches = _patches(job, work, names) if spec.patches else {}
        texts = _texts(job, work, rows.uids)
    finally:
        forget_towers()
    write_keys(work.out.uri, rows.uids, texts, rows.contents)
    record = work.parents["checkpoint"].record.metrics
    counts = {"pairs": len(rows.uids), "texts": len(texts), "embed_dim": job.embed_dim, "views": len(spec.views)}
    metrics = {key: record.get(key) for key in ("logit_scale", "logit_bias")}
    return Outcome(counts | patches, metrics, measured=_measured(spec, work, len(rows.uids)))


def _measured(spec: EmbedSpec, work: Work, pairs: int) -> dict[str, Any]:
    """What the stage had and computed, for estimates."""
    place, workers = work.place, max(1, work.place.data_workers)
    gpus = workers * place.gpus_per_worker
    names = visible_gpus() if gpus else []
    threads = place.cpus_per_worker if gpus or not place.data_workers else 1
    return {
        "workers": workers,
        "cpus": float(workers * threads),
        "gpus": gpus,
        "device": (names[0] if names else None) if gpus else cpu_model(),
        "flops": embedding_flops(spec, pairs, models_of(work.parents)),
    }


def _check(spec: EmbedSpec) -> None:
    if not spec.plain and not spec.views:
        raise RecipeError("views: plain is false and there are no views, so nothing is embedded; name a view")
    for name in spec.views:
        if not re.fullmatch(r"[\w-]+([.][\w-]+)*", name):
            raise RecipeError(f"views: {name!r} becomes a file's name; use letters, digits, _ - and single dots")


def _pictures(job: Job, work: Work, names: Sequence[str]) -> Rows:
    each_shard(work, "pictures", names, partial(embed_shard, job), work.place.gpus_per_worker)
    rows = _sorted_rows(job, names)
    for look in work.events.track(job.looks, len(job.looks), "looks", "put together"):
        pieces = [Piece(rows_uri(job, look, name), place) for name, place in rows.places]
        put_together(pieces, (len(rows.uids), job.embed_dim), work.out.at(f"{look}.npy"))
    return rows


def _sorted_rows(job: Job, names: Sequence[str]) -> Rows:
    tables = [read_parquet(rows_uri(job, KEYS, name)) for name in names]
    table = pa.concat_tables(tables)
    order = pc.sort_indices(table["uid"])
    rank_N = np.empty(len(table), np.int64)
    rank_N[order.to_numpy()] = np.arange(len(table))
    starts = np.cumsum([0, *(len(part) for part in tables)]).tolist()
    places = [(name, rank_N[at:end]) for name, at, end in zip(names, starts, starts[1:], strict=False) if end > at]
    uids, contents = (table[column].combine_chunks().take(order) for column in ("uid", "content"))
    return Rows(uids, contents, places)


def _texts(job: Job, work: Work, uids: pa.Array) -> pa.Array:
    """Embed the texts; none where only views are asked for."""
    texts = distinct_texts(job, uids) if job.spec.plain else pa.array([], pa.large_string())
    work.events.message(f"{len(texts)} distinct texts")
    names = write_pieces(job, texts)
    each_shard(work, "texts", names, partial(embed_piece, job, names), work.place.gpus_per_worker, "pieces")
    put_together(text_pieces(job, names, len(texts)), (len(texts), job.embed_dim), work.out.at("texts.npy"))
    return texts


def _patches(job: Job, work: Work, names: Sequence[str]) -> dict[str, int]:
    """Keep patch tokens; how many pictures have them, and how many have no mask."""
    assert job.spec.patches is not None
    chosen = chosen_pairs(job, names, job.spec.patches.pairs_per_split)
    do = partial(embed_patch_shard, job, chosen)
    found = each_shard(work, "patches", names, do, work.place.gpus_per_worker)
    with_masks = [(name, summary) for name, summary in zip(names, found, strict=True) if summary["kept"]]
    without = sum(summary["without_alpha"] for summary in found)
    if not with_masks:
        raise ShardError(f"patches: none of {without} pictures is transparent anywhere; leave patches out")
    parts = [read_parquet(patches_uri(job, name, UIDS)) for name, _ in with_masks]
    uids = pa.concat_tables(parts)["uid"].combine_chunks()
    order = pc.sort_indices(uids)
    rank_K = np.argsort(order.to_numpy())
    starts = np.cumsum([0, *(len(part) for part in parts)])
    patches, width = with_masks[0][1]["shape"]
    for file, shape, dtype in ((TOKENS, (patches, width), np.float16), (FOREGROUND, (patches,), np.float32)):
        pieces = [
            Piece(patches_uri(job, name, file), rank_K[at : at + summary["kept"]])
            for (name, summary), at in zip(with_masks, starts.tolist(), strict=False)
        ]
        put_together(pieces, (len(uids), *shape), work.out.at("patches", file), dtype)
    write_parquet(work.out.at("patches", UIDS), pa.table({"uid": uids.take(order)}))
    return {"patches": len(uids), "patches_without_mask": without}
