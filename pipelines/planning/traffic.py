"""Bytes that a run reads and writes: sizes of what is there, and of what is to be made where something tells them."""

from collections.abc import Mapping
from typing import NamedTuple

from data import storage
from data.artifacts import Artifact
from data.sources import list_images, list_tars
from data.spec import Spec
from data.specs import BenchmarkPool, ClassFolderPool, FolderPool, IngestSpec, ShardPool
from pipelines.planning.plan import StagePlan
from training.specs import EmbedSpec, TrainSpec

_SEES_PICTURES = ("inspect", "train", "embed")  # the others read indexes, captions and rows


class Size(NamedTuple):
    """Bytes of an artifact: its pictures apart, which few stages read. `pairs` is how many pictures these are."""

    rest: int
    pictures: int = 0
    pairs: int | None = None


def size_of(artifact: Artifact) -> Size:
    """What an artifact holds, and the tars that a shard set names elsewhere."""
    files = storage.list_files(artifact.uri, recursive=True)
    if artifact.record.kind != "shard_set":
        return Size(sum(size for _, size in files))
    tars = sum(int(shard["bytes"]) for shard in storage.read_json(artifact.at("shards.json")))
    rest = sum(size for name, size in files if not name.startswith("shards/"))
    return Size(rest, tars, artifact.record.counts.get("pairs"))


def size_to_be(plan: StagePlan, written: int | None, pairs: int | None) -> Size | None:
    """The size of what a stage will make, from what it is estimated to write."""
    if plan.twin is not None:
        return size_of(plan.twin)
    if written is None or not isinstance(plan.spec, IngestSpec):
        return None if written is None else Size(written)
    if isinstance(plan.spec.pool, ShardPool | BenchmarkPool):  # its tars stay where they are
        tars = pool_bytes(plan.spec.pool)
        return None if tars is None else Size(written, tars, pairs)
    return Size(0, written, pairs)


def pool_bytes(pool: Spec) -> int | None:
    """Bytes of a pool's files; None for one that packages bring or that is not listed here."""
    if isinstance(pool, ShardPool):
        return sum(size for _, size in list_tars(pool.url))
    if isinstance(pool, FolderPool):
        return sum(size for _, size in list_images(pool.images)) + storage.size_bytes(pool.captions)
    return sum(size for _, size in list_images(pool.images)) if isinstance(pool, ClassFolderPool) else None


def bytes_read(plan: StagePlan, sizes: Mapping[str, Size | None], pairs: int | None) -> int | None:
    """What a stage reads of its parents, by role: all of each once, pictures where it sees them; None: not known.

    Training reads a picture each time it is seen, embedding those of its splits once.
    """
    if isinstance(plan.spec, IngestSpec):
        return pool_bytes(plan.spec.pool)
    total = 0
    kinds = {role: kind for role, (_, kind) in plan.spec.roles().items()}
    for role, size in sizes.items():
        if plan.kind == "report" and kinds[role] == "checkpoint":
            continue  # of which it reads the loss curves only
        if size is None:
            return None
        total += size.rest
        if size.pictures and plan.kind in _SEES_PICTURES:
            seen = _pictures_read(plan, size, pairs)
            if seen is None:
                return None
            total += seen
    return total


def _pictures_read(plan: StagePlan, size: Size, pairs: int | None) -> int | None:
    if not isinstance(plan.spec, TrainSpec | EmbedSpec):
        return size.pictures
    return None if not size.pairs or pairs is None else round(size.pictures / size.pairs * pairs)
