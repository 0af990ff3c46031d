"""Pairs from WebDataset tars, img2dataset's output included. The tars stay where they are, read once and indexed.

Members belong together while their path up to the first dot of the file name stays the same. The caption is `txt`, else
`caption` of `json`; `captions` of `json` ({source: caption}) adds sources; the rest of `json` is metadata.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from data.pools import Dropped
from data.pools.image import image_problem, max_image_bytes
from data.pools.tar import Member, Tape, walk
from data.pools.text import caption_problem, clean_json, is_utf8, parse_json, printable
from data.shards import IMAGE_EXTENSIONS

_MAX_JSON_BYTES = 1 << 20


class Limits(NamedTuple):
    """What is refused as too large, and how closely pictures are looked at."""

    max_image_pixels: int
    max_caption_bytes: int
    decode: bool = False

    def admits(self, name: str, size: int) -> bool:
        """True for a member that is read into memory."""
        extension = split_name(name)[1]
        if extension in IMAGE_EXTENSIONS:
            return size <= max_image_bytes(self.max_image_pixels)
        return size <= {"txt": self.max_caption_bytes, "json": _MAX_JSON_BYTES}.get(extension, -1)


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


class _UnusableError(Exception):
    """A group of members is no pair; carries the reason. Never leaves this file."""


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension of a member: the path up to the first dot of the file name, and what follows it."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def read_shard(tape: Tape, shard: str, limits: Limits, seen: set[str]) -> Contents:
    """Read every pair of a tar whose uid is not in `seen`, add it there, and list what is unusable with a reason."""
    rows: list[Row] = []
    dropped: list[Dropped] = []
    ignored = 0
    for key, members in _groups(tape, shard, limits, dropped):
        known = {
            extension: member
            for extension, member in members.items()
            if extension in (*IMAGE_EXTENSIONS, "txt", "json")
        }
        ignored += len(members) - len(known)
        if not known:
            continue
        try:
            row = _row(key, known, shard, limits, dropped)
            if row.uid in seen:
                raise _UnusableError("duplicate_uid")
        except _UnusableError as reason:
            dropped.append(Dropped(shard, key, str(reason)))
        else:
            seen.add(row.uid)
            rows.append(row)
    return Contents(rows, dropped, ignored)


def _groups(tape: Tape, shard: str, limits: Limits, dropped: list[Dropped]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield key and members (by extension) of each group; members that cannot be used are added to `dropped`."""
    key, members = "", dict[str, Member]()
    for member in walk(tape, limits.admits):
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


def _row(key: str, members: Mapping[str, Member], shard: str, limits: Limits, dropped: list[Dropped]) -> Row:
    images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
    if not images:
        raise _UnusableError("missing_image")
    dropped += [Dropped(shard, members[extension].name, "extra_image") for extension in images[1:]]
    document = _document(members.get("json"), shard, dropped)
    if document.get("status", "success") not in ("success", None):
        raise _UnusableError("status_not_success")
    captions = _captions(members.get("txt"), document, limits)
    image = members[images[0]]
    problem = (
        "image_too_large"
        if image.payload is None
        else image_problem(image.payload, limits.max_image_pixels, limits.decode)
    )
    if problem:
        raise _UnusableError(problem)
    meta = {name: value for name, value in document.items() if name not in ("caption", "captions")}
    text = json.dumps(clean_json(meta), ensure_ascii=False, sort_keys=True)
    return Row(key, images[0], image.offset, image.size, text, captions)


def _document(member: Member | None, shard: str, dropped: list[Dropped]) -> dict[str, Any]:
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


def _captions(member: Member | None, document: Mapping[str, Any], limits: Limits) -> dict[str, str]:
    """All captions of a pair, `alt` first; a line end that closes a `txt` member is no part of it."""
    if member is None:
        alt = document.get("caption")
        found = {"alt": alt} if isinstance(alt, str) else {}
    elif member.payload is None:
        raise _UnusableError("caption_too_large")
    else:
        found = {"alt": member.payload.decode("utf-8", "surrogateescape").rstrip("\r\n")}
    extra = document.get("captions")
    if isinstance(extra, dict):
        found = {
            **{source: text for source, text in extra.items() if isinstance(text, str) and is_utf8(source)},
            **found,
        }
    if not found:
        raise _UnusableError("missing_caption")
    problems = [caption_problem(text, limits.max_caption_bytes) for text in found.values()]
    if any(problems):
        raise _UnusableError(next(filter(None, problems)))
    return {"alt": found["alt"], **found} if "alt" in found else found
