"""Make a shard set from a pool: every pair is in, or its reason is listed in `dropped.parquet`.

Each shard is finished on its own, and remembered, so that a killed ingest goes on at the first missing one.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from data import storage
from data.errors import ShardError
from data.pools import Dropped, Plan, Planned
from data.pools.image import DAMAGE, image_problem, max_image_bytes
from data.pools.packed import Packed, resume
from data.pools.tars import Tar, index_tars, pool_tars
from data.shards import Pair, write_manifest, write_shard
from data.specs import BenchmarkPool, CompositionPool, FolderPool, IngestSpec, ShardPool
from data.stage import Outcome, Work


def run(spec: IngestSpec, work: Work) -> Outcome:
    """Write a shard set.

    Raises:
        ShardError: no pair of the pool is usable.
    """
    if isinstance(spec.pool, ShardPool | BenchmarkPool):
        tars, card = _tars(spec.pool)
        return _finish(index_tars(spec, tars, work), [], work, card)
    plan = _plan(spec)
    return _finish(list(_pack(spec, work, plan)), plan.dropped, work, plan.data_card)


def _tars(pool: ShardPool | BenchmarkPool) -> tuple[list[Tar], dict[str, Any]]:
    if isinstance(pool, BenchmarkPool):
        from data.pools.labels import labelled_tars

        return labelled_tars(pool)
    return pool_tars(pool), {"title": "WebDataset shards, read where they lie", "licence": "not stated"}


def _plan(spec: IngestSpec) -> Plan:
    planner = import_module(f"data.pools.{spec.pool.source}")
    limits = (spec.max_caption_bytes,) if isinstance(spec.pool, FolderPool | CompositionPool) else ()
    plan: Plan = planner.plan(spec.pool, *limits)
    return plan


def _finish(packed: Sequence[Packed], dropped: Sequence[Dropped], work: Work, card: dict[str, Any]) -> Outcome:
    shards = [part.shard for part in packed if part.shard]
    dropped = [*dropped, *(row for part in packed for row in part.dropped)]
    reasons = Counter(row.reason for row in dropped)
    pairs = sum(shard.pairs for shard in shards)
    if not pairs:
        found = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "the pool is empty"
        raise ShardError(f"no pair of the pool is usable ({found}); check the pool's path and what it holds")
    write_manifest(work.out.uri, shards, [row._asdict() for row in dropped])
    if dropped:
        work.events.message(f"{len(dropped)} dropped: " + ", ".join(f"{r} {n}" for r, n in reasons.most_common()))
    extra: Counter[str] = Counter()
    for part in packed:
        extra.update(part.counts)
    counts = {"pairs": pairs, "shards": len(shards), "dropped": len(dropped)}
    by_reason = {f"dropped_{reason}": count for reason, count in sorted(reasons.items())}
    return Outcome(counts | by_reason | dict(sorted(extra.items())), {"data_card": {**card, "pairs": pairs}})


def _pack(spec: IngestSpec, work: Work, plan: Plan) -> Iterator[Packed]:
    """Write planned pairs into shards, ordered by a hash of the uid: each shard is a mix, always the same."""
    pairs = sorted(plan.pairs, key=lambda pair: hashlib.sha256(pair.uid.encode()).digest())
    size = spec.pairs_per_shard
    work.events.progress(0, len(pairs), "pairs")
    for number, start in enumerate(range(0, len(pairs), size)):
        part = pairs[start : start + size]
        name = f"{number:05d}"
        yield resume(work, name, partial(_write, spec, work, name, part))
        work.events.progress(start + len(part), len(pairs), "pairs")


def _write(spec: IngestSpec, work: Work, name: str, part: Sequence[Planned]) -> Packed:
    dropped: list[Dropped] = []
    shard = write_shard(work.out.uri, name, _read(spec, name, part, dropped))
    if shard.pairs:
        return Packed(shard, dropped, {})
    for file in (f"shards/{name}.tar", f"index/{name}.parquet", f"captions/{name}.parquet"):
        storage.remove(work.out.at(file))
    return Packed(None, dropped, {})


def _read(spec: IngestSpec, name: str, part: Sequence[Planned], dropped: list[Dropped]) -> Iterator[Pair]:
    limit = max_image_bytes(spec.max_image_pixels)
    for planned in part:
        pair = planned if planned.make is None else planned.make(planned.uid)
        content = _content(pair.uri, limit + 1) if pair.content is None else pair.content
        if content is None:
            problem = "unreadable_file"
        else:
            problem = "image_too_large" if len(content) > limit else image_problem(content, spec.max_image_pixels)
        if content is not None and not problem and pair.derive is not None:
            content, problem = _derived(pair, content)
        if problem or content is None:
            dropped.append(Dropped(name, pair.member, problem))
        else:
            yield Pair(pair.uid, content, pair.ext, pair.captions, pair.meta)


def _derived(pair: Planned, content: bytes) -> tuple[bytes | None, str]:
    assert pair.derive is not None
    try:
        return pair.derive(content), ""
    except DAMAGE:
        return None, "unreadable_image"


def _content(uri: str, limit_bytes: int) -> bytes | None:
    """A picture's bytes; None where this machine cannot read the file. Remote storage that fails ends the stage."""
    if not storage.is_local(uri):
        return storage.read_bytes(uri, 0, limit_bytes)
    try:
        with Path(uri).open("rb") as stream:  # twice as fast as through fsspec, which matters for small pictures
            return stream.read(limit_bytes)
    except OSError:
        return None
