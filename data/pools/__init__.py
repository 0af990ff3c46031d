"""Where pairs come from. A pool is planned (names and captions only), then its pictures are read, shard by shard."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Dropped(NamedTuple):
    """Something that could not be used: where it was, what it was, and a short reason."""

    shard: str
    member: str
    reason: str


class Planned(NamedTuple):
    """A pair whose picture was not read yet. `member` is its name in the pool, for messages.

    `content` is a picture that no file holds; `uri` is then empty. `derive` makes the stored picture, a PNG, of the
    file's bytes, and raises one of `data.pools.image.DAMAGE` where it cannot. `make` makes the whole pair of its uid
    when its shard is written, for a pool too large to be held in memory; all else is then of no account.
    """

    uid: str
    uri: str
    ext: str
    member: str
    captions: Mapping[str, str]
    meta: Mapping[str, Any]
    content: bytes | None = None
    derive: Callable[[bytes], bytes] | None = None
    make: "Callable[[str], Planned] | None" = None


class Plan(NamedTuple):
    """All pairs of a pool, what was dropped while planning, and the facts for the data card."""

    pairs: list[Planned]
    dropped: list[Dropped]
    data_card: dict[str, Any]
