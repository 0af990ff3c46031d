"""Pairs from WebDataset tars, img2dataset's output included. The tars stay where they are, read once and indexed.

Members belong together while their path up to the first dot of the file name stays the same. What those beside the
picture mean is a `Layout`. In the usual one the caption is `txt`, else `caption` of `json`; `captions` of `json`
({source: caption}) adds sources; the rest of `json` is metadata.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from data.pools import Dropped
from data.pools.image import image_problem, max_image_bytes
from data.pools.tar import Member, Tape, walk
from data.pools.text import caption_problem, clean_json, is_utf8, parse_json, printable
from data.shards import IMAGE_EXTENSIONS

MAX_JSON_BYTES = 1 << 20


class Limits(NamedTuple):
    """What is refused as too large, and how closely pictures are looked at."""

    max_image_pixels: int
    max_caption_bytes: int
    decode: bool = False


class Row(NamedTuple):
    """A pair of a tar: where its picture lies, its captions and metadata."""

    uid: str
    ext: str
    offset: int
    bytes: int
    meta: str
    captions: Mapping[str, str]


class Contents(NamedTuple):
    """What a tar holds."""

    rows: list[Row]
    dropped: list[Dropped]
    ignored_members: int


class UnusableError(Exception):
    """A group of members is no pair; carries the reason. Never leaves `read_shard`."""


class Said(NamedTuple):
    """What a pair's other members say of its picture."""

    captions: Mapping[str, str]
    meta: Mapping[str, Any]


class Layout(Protocol):
    """What the members beside a picture mean."""

    @property
    def prefix(self) -> str:
        """What stands before a pair's key in its uid."""

    def sides(self, limits: Limits) -> dict[str, int]:
        """Extension -> size in bytes of the largest such member that is read; others are ignored."""

    def read(self, members: Mapping[str, Member], shard: str, limits: Limits, dropped: list[Dropped]) -> Said:
        """Captions and metadata of a pair; a member that it can do without is added to `dropped`.

        Raises:
            UnusableError: it is no pair.
        """


class Captioned:
    """The usual layout: every picture has a caption."""

    prefix = ""

    def sides(self, limits: Limits) -> dict[str, int]:
        """See `Layout`."""
        return {"txt": limits.max_caption_bytes, "json": MAX_JSON_BYTES}

    def read(self, members: Mapping[str, Member], shard: str, limits: Limits, dropped: list[Dropped]) -> Said:
        """See `Layout`."""
        document = read_document(members.get("json"), shard, dropped)
        if document.get("status", "success") not in ("success", None):
            raise UnusableError("status_not_success")
        own = _text_caption(members["txt"]) if "txt" in members else json_captions(document)
        captions = checked_captions(own, document, limits)
        if not captions:
            raise UnusableError("missing_caption")
        return Said(captions, own_metadata(document))


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension of a member: the path up to the first dot of the file name, and what follows it."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


_CAPTIONED = Captioned()


def read_shard(tape: Tape, shard: str, limits: Limits, seen: set[str], layout: Layout = _CAPTIONED) -> Contents:
    """Read every pair of a tar whose uid is not in `seen`, add it there, and list what is unusable with a reason."""
    rows: list[Row] = []
    dropped: list[Dropped] = []
    ignored, sides = 0, layout.sides(limits)
    for key, members in _groups(tape, shard, limits, sides, dropped):
        known = {name: member for name, member in members.items() if name in IMAGE_EXTENSIONS or name in sides}
        ignored += len(members) - len(known)
        if not known:
            continue
        try:
            row = _row(key, known, shard, limits, layout, dropped)
            if row.uid in seen:
                raise UnusableError("duplicate_uid")
        except UnusableError as reason:
            dropped.append(Dropped(shard, key, str(reason)))
        else:
            seen.add(row.uid)
            rows.append(row)
    return Contents(rows, dropped, ignored)


def _groups(
    tape: Tape, shard: str, limits: Limits, sides: Mapping[str, int], dropped: list[Dropped]
) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield key and members (by extension) of each group; members that cannot be used are added to `dropped`."""
    largest = dict.fromkeys(IMAGE_EXTENSIONS, max_image_bytes(limits.max_image_pixels)) | dict(sides)
    key, members = "", dict[str, Member]()
    for member in walk(tape, lambda name, size: size <= largest.get(split_name(name)[1], -1)):
        if member.problem:
            dropped.append(Dropped(shard, printable(member.name), member.problem))
            continue
        member_key, extension = split_name(member.name)
        if member_key != key and members:
            yield key, members
            members = {}
        key = member_key
        if extension in members:
            dropped.append(Dropped(shard, member.name, "duplicate_member"))
        else:
            members[extension] = member
    if members:
        yield key, members


def _row(
    key: str, members: Mapping[str, Member], shard: str, limits: Limits, layout: Layout, dropped: list[Dropped]
) -> Row:
    images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
    if not images:
        raise UnusableError("missing_image")
    dropped += [Dropped(shard, members[extension].name, "extra_image") for extension in images[1:]]
    said = layout.read(members, shard, limits, dropped)
    image = members[images[0]]
    problem = (
        "image_too_large"
        if image.payload is None
        else image_problem(image.payload, limits.max_image_pixels, limits.decode)
    )
    if problem:
        raise UnusableError(problem)
    text = json.dumps(clean_json(said.meta), ensure_ascii=False, sort_keys=True)
    return Row(layout.prefix + key, images[0], image.offset, image.size, text, said.captions)


def read_document(member: Member | None, shard: str, dropped: list[Dropped]) -> dict[str, Any]:
    """The group's json; an unusable one is listed, and the pair may still stand by its `txt`."""
    if member is None:
        return {}
    try:
        document = parse_json(member.payload) if member.payload is not None else None
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    dropped.append(Dropped(shard, member.name, "metadata_too_large" if member.payload is None else "bad_json"))
    return {}


def own_metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    """A pair's json without its captions."""
    return {name: value for name, value in document.items() if name not in ("caption", "captions")}


def json_captions(document: Mapping[str, Any]) -> dict[str, str]:
    """The caption in a pair's json."""
    alt = document.get("caption")
    return {"alt": alt} if isinstance(alt, str) else {}


def _text_caption(member: Member) -> dict[str, str]:
    """The caption in a pair's `txt`; a line end that closes it is no part of it."""
    if member.payload is None:
        raise UnusableError("caption_too_large")
    return {"alt": member.payload.decode("utf-8", "surrogateescape").rstrip("\r\n")}


def checked_captions(own: Mapping[str, str], document: Mapping[str, Any], limits: Limits) -> dict[str, str]:
    """A pair's own captions (`alt` first) and those that its json adds; none where there are none.

    Raises:
        UnusableError: one cannot be used.
    """
    extra = document.get("captions")
    added = extra.items() if isinstance(extra, dict) else ()
    texts = {source: text for source, text in added if isinstance(text, str) and is_utf8(source)}
    found = {**own, **{source: text for source, text in texts.items() if source not in own}}
    problems = [caption_problem(text, limits.max_caption_bytes) for text in found.values()]
    if any(problems):
        raise UnusableError(next(filter(None, problems)))
    return {"alt": found["alt"], **found} if "alt" in found else found
