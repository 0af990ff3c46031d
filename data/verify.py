"""Check a shard set, or a plain folder of tars, byte for byte: everything wrong is counted and listed with a reason."""

from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa

from data import storage
from data.artifacts import RECORD_NAME, Artifact, open_artifact
from data.errors import ShardError, StorageError
from data.events import SILENT, Events
from data.pools.image import image_problem
from data.pools.tar import BLOCK, DAMAGE, Tape, parse_header, walk
from data.pools.webdataset import Limits, read_shard, split_name
from data.shards import Shard, ShardSet, read_parquet
from data.sources import list_tars
from data.specs import IngestSpec

_LIMITS = {name: IngestSpec.model_fields[name].default for name in ("max_image_pixels", "max_caption_bytes")}


class Problem(NamedTuple):
    """Something wrong: in which shard, with which member or uid (empty for the shard itself), and why."""

    shard: str
    member: str
    reason: str


class VerifyReport(NamedTuple):
    """What was found. `counts`: shards, pairs, captions, images looked at, problems, `problem_<reason>` of each."""

    counts: dict[str, int]
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify(uri: str, decode: bool = True, events: Events = SILENT) -> VerifyReport:
    """Check a shard set artifact or a folder of tars. `decode` decodes every picture; else only its header is checked.

    Raises:
        UserError: there is neither a shard set nor a tar.
    """
    uri = storage.normalise(uri)
    if storage.exists(storage.join(uri, RECORD_NAME)):
        return _verify_artifact(open_artifact(uri, "shard_set"), decode, events)
    return _verify_folder(uri, decode, events)


def _report(counts: Counter[str], problems: list[Problem]) -> VerifyReport:
    by_reason = Counter(f"problem_{problem.reason}" for problem in problems)
    names = ("shards", "pairs", "captions", "images")
    return VerifyReport(
        {n: counts[n] for n in names} | {"problems": len(problems)} | dict(sorted(by_reason.items())), problems
    )


def _verify_folder(uri: str, decode: bool, events: Events) -> VerifyReport:
    tars, seen, counts = list_tars(uri, "verify"), set[str](), Counter[str]()
    problems: list[Problem] = []
    for file, size in events.track(tars, len(tars), "shards"):
        with storage.open_read(storage.join(uri, file)) as stream:
            contents = read_shard(Tape(stream, size), file, Limits(**_LIMITS, decode=decode), seen)
        problems += (Problem(*row) for row in contents.dropped)
        pairs = len(contents.rows)
        counts.update(shards=1, pairs=pairs, images=pairs, captions=sum(len(row.captions) for row in contents.rows))
    return _report(counts, problems)


def _verify_artifact(artifact: Artifact, decode: bool, events: Events) -> VerifyReport:
    try:
        shard_set = ShardSet(artifact)
    except (ValueError, TypeError, StorageError) as error:
        raise ShardError(
            f"{artifact.uri}: shards.json cannot be read; remove the directory and ingest again"
        ) from error
    counts, seen = Counter[str](), set[str]()
    problems = list(_side_file_problems(artifact))
    for number, shard in events.track(list(enumerate(shard_set.shards)), len(shard_set.shards), "shards"):
        counts["shards"] += 1
        found = [*_table_problems(artifact, shard, seen, counts), *_tar_problems(shard_set, number, decode, counts)]
        problems += (Problem(shard.name, member, reason) for member, reason in found)
    return _report(counts, problems)


def _side_file_problems(artifact: Artifact) -> Iterator[Problem]:
    """Compare every file that the record lists, tars aside, with its checksum."""
    for name, sha256 in artifact.record.checksums.items():
        if name.endswith(".tar"):
            continue
        if not storage.exists(artifact.at(name)):
            yield Problem("", name, "missing_file")
        elif storage.sha256(artifact.at(name)) != sha256:
            yield Problem("", name, "checksum_mismatch")


def _read(artifact: Artifact, folder: str, shard: Shard) -> list[dict[str, Any]] | None:
    """Rows of a parquet file of the shard; None if it cannot be read."""
    try:
        rows: list[dict[str, Any]] = read_parquet(artifact.at(folder, f"{shard.name}.parquet")).to_pylist()
    except (pa.ArrowException, OSError, StorageError):
        return None
    return rows


def _table_problems(
    artifact: Artifact, shard: Shard, seen: set[str], counts: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Check index against manifest, captions against index, and uids against all earlier shards."""
    index, captions = _read(artifact, "index", shard), _read(artifact, "captions", shard)
    if captions is None:
        yield "", "unreadable_captions"
    if index is None:
        yield "", "unreadable_index"
        return
    if len(index) != shard.pairs:
        yield f"index has {len(index)}, shards.json says {shard.pairs}", "pair_count_mismatch"
    uids = [row["uid"] for row in index]
    for uid in uids:
        if uid in seen:
            yield uid, "duplicate_uid"
        seen.add(uid)
    counts["pairs"] += len(index)
    if captions is not None:
        counts["captions"] += len(captions)
        usable = {row["uid"] for row in captions if (row["caption"] or "").strip()}
        needed = dict.fromkeys(uids if _needs_captions(artifact) else (row["uid"] for row in captions))
        yield from ((uid, "missing_caption") for uid in needed if uid not in usable)
        yield from ((uid, "caption_without_pair") for uid in sorted({row["uid"] for row in captions} - set(uids)))


def _needs_captions(artifact: Artifact) -> bool:
    """False where the pool holds labelled pictures, which may have no caption."""
    pool = artifact.record.config.get("pool", {})
    return pool.get("source") not in ("benchmark", "class_folders") and pool.get("caption_column", "") is not None


def _tar_problems(shard_set: ShardSet, number: int, decode: bool, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Check a tar's size and hash, and each picture where the index says it is."""
    shard, url = shard_set.shards[number], shard_set.url(number)
    max_pixels = shard_set.artifact.record.config.get("max_image_pixels", _LIMITS["max_image_pixels"])
    if not storage.exists(url):
        yield url, "missing_tar"
        return
    with storage.open_read(url) as stream:
        tape = Tape(stream, storage.size_bytes(url))
        if tape.size != shard.bytes:
            yield f"has {tape.size} bytes, shards.json says {shard.bytes}", "size_mismatch"
        damage = [(member.name, member.problem) for member in walk(tape, lambda *_: False) if member.problem in DAMAGE]
        if tape.sha256() != shard.sha256:
            yield "", "checksum_mismatch"
            yield from damage
        for row in _read(shard_set.artifact, "index", shard) or ():
            problem = _picture_problem(stream, shard.name, row, max_pixels, decode)
            counts["images"] += 1
            if problem:
                yield row["uid"], problem


def _picture_problem(stream: IO[bytes], shard: str, row: dict[str, Any], max_pixels: int, decode: bool) -> str:
    """Check that the header before the picture names it and that the picture is whole."""
    if row["offset"] < BLOCK or row["bytes"] < 0:
        return "wrong_offset"
    stream.seek(row["offset"] - BLOCK)
    header, content = parse_header(stream.read(BLOCK)), stream.read(row["bytes"])
    if header is None or header.size != row["bytes"]:
        return "wrong_offset"
    is_short = (
        header.name.isascii() and "?" not in header.name and len(header.name) < 100
    )  # else another header has the name
    key, extension = split_name(header.name.removeprefix("./"))
    # where the keys of a pool repeat from tar to tar, the tar's name stands before them in the uid
    if is_short and (row["uid"] not in (key, f"{shard}-{key}") or extension != row["ext"]):
        return "wrong_offset"
    return image_problem(content, max_pixels, decode)
