"""Where pairs come from. A pool is planned (names and captions only), then its pictures are read, shard by shard."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Dropped(NamedTuple):
    """Something that could not be used: where it was, what it was, and a short reason."""

    shard: str
    member: str
    reason: str


class Planned(NamedTuple):
    """A pair whose picture was not read yet. `member` is its name in the pool, for messages."""

    uid: str
    uri: str
    ext: str
    member: str
    captions: Mapping[str, str]
    meta: Mapping[str, Any]


class Plan(NamedTuple):
    """All pairs of a pool, what was dropped while planning, and the facts for the data card."""

    pairs: list[Planned]
    dropped: list[Dropped]
    data_card: dict[str, Any]
