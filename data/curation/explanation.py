"""What is known of one pair, as values: `data.curation.why` finds it, a command prints it or makes JSON of it."""

from typing import Any, NamedTuple

from data.curation.located import Located

KEPT, DROPPED, OUTSIDE = "kept", "dropped", "outside"  # outside: of a split that the selection does not take


class FilterResult(NamedTuple):
    """A filter on this pair: what it found, within which bounds, and whether it lets the pair through."""

    filter: str
    passes: bool
    value: Any
    bounds: dict[str, Any]


class Member(NamedTuple):
    """A pair of the same group of duplicates: what links it to others, and what the selection says of it."""

    uid: str
    by: tuple[str, ...]
    reason: str | None  # "" for a kept one, None where the selection has no row


class Group(NamedTuple):
    """The duplicates of a pair; `stays` is the one that the others yield to, None where all were dropped before."""

    group: str
    size: int
    by: tuple[str, ...]
    stays: str | None
    members: tuple[Member, ...]  # the one that stays, then by uid; at most 20


class Likeness(NamedTuple):
    """A pair of an evaluation that this one is like; distance in bits of the perceptual hash."""

    evaluation: str
    evaluation_uid: str
    by: str
    distance: int


class Entry(NamedTuple):
    """A matched metadata entry: pairs that hold it before balancing, those kept, and its probability."""

    entry: str
    source: str
    language: str
    pairs: int
    kept: int
    p: float


class Use(NamedTuple):
    """A checkpoint that goes back to the selection, and how (`Catalogue.use_of`); `saw_pair`: was trained on it."""

    checkpoint: str
    how: str
    saw_pair: bool
    samples_seen: int | None
    steps: int | None


class Decision(NamedTuple):
    """What one selection decided about the pair, and from what."""

    selection: str
    verdict: str  # kept | dropped | outside
    reason: str
    p_keep: float | None
    draw: float | None
    split: str | None
    splits: tuple[str, ...]
    caption_source: str
    caption: str | None
    filters: tuple[FilterResult, ...]
    duplicates: Group | None
    protected: tuple[Likeness, ...]
    balanced: bool
    t: int | None
    entries: tuple[Entry, ...]  # by p, the largest first
    checkpoints: tuple[Use, ...]


class Explanation(NamedTuple):
    """All that is known of a pair; `data.curation.plain.as_json` makes JSON of it."""

    uid: str
    places: tuple[Located, ...]
    selections: tuple[Decision, ...]
    unread: tuple[str, ...]  # selections that an older clipworks made
