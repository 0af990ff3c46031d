"""A finished shard as ingest remembers it, so that a killed ingest goes on at the first missing one."""

from collections.abc import Callable
from typing import NamedTuple

from data import storage
from data.errors import locating
from data.pools import Dropped
from data.shards import Shard
from data.stage import Work


class Packed(NamedTuple):
    """A finished shard (None if nothing in it was usable), what was dropped from it, and further counts."""

    shard: Shard | None
    dropped: list[Dropped]
    counts: dict[str, int]


def resume(work: Work, name: str, make: Callable[[], Packed]) -> Packed:
    """Return the shard that an earlier attempt finished, else make it and remember it."""
    state_uri = storage.join(work.out.state_uri, f"{name}.json")
    if storage.exists(state_uri):
        state = storage.read_json(state_uri)
        shard = Shard(**state["shard"]) if state["shard"] else None
        if shard is None or storage.exists(work.out.at("index", f"{shard.name}.parquet")):
            return Packed(shard, [Dropped(*row) for row in state["dropped"]], state["counts"])
    with locating(shard=name):
        made = make()
    fields = made.shard._asdict() if made.shard else None
    storage.write_json(state_uri, {"shard": fields, "dropped": made.dropped, "counts": made.counts})
    return made
