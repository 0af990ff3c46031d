"""The inspect stage: each tar is read once from start to end, every picture and caption in it looked at once.

What duplicates, filters and the data card need to know of a pair is one row here, so nobody decodes a picture again.
A damaged shard is counted and named, and costs the pairs that cannot be read, never the stage.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data import storage
from data.curation.captions import first_captions
from data.curation.languages import detect_languages
from data.curation.looks import PROBLEMS, UNREADABLE, Look, look_at
from data.curation.specs import InspectSpec
from data.curation.tables import INSPECTION_SCHEMA
from data.errors import ShardError, StorageError
from data.pools.tar import Tape
from data.shards import ShardSet, read_parquet, write_parquet
from data.shardwise import Summary, each_shard
from data.stage import Outcome, Work

STEP = "inspect"
_DAMAGE = {
    "missing_tar": "the tar is gone",
    "size_mismatch": "the tar has not the size that shards.json says",
    "checksum_mismatch": "the tar's bytes are not those that shards.json's checksum is of",
    "wrong_offset": "the index names bytes that the tar does not have",
}


class Seen(NamedTuple):
    """A picture of the shard: the BLAKE2b-128 of its bytes (None where they cannot be read), and what it looks like."""

    content: bytes | None
    look: Look


_NOT_READ = Seen(None, Look(UNREADABLE))


def run(spec: InspectSpec, work: Work) -> Outcome:
    """Write `inspection/<shard>.parquet` (INSPECTION_SCHEMA) for every shard.

    Raises:
        ShardError: no picture of any shard can be read.
        StorageError: a store does not answer; that is no damage.
    """
    pairs = ShardSet(work.parents["pairs"])
    names = [shard.name for shard in pairs.shards]
    summaries = each_shard(work, STEP, names, partial(inspect_shard, pairs, spec, work.out.uri))
    damaged = {number: summary for number, summary in enumerate(summaries) if summary["damaged"]}
    for number, summary in damaged.items():
        work.events.message(_told(pairs, number, summary))
    if damaged and all(_is_lost(summary) for summary in summaries):
        # forgotten, so that the next run looks again: what is gone everywhere is a place that was not mounted
        storage.remove(storage.join(work.out.state_uri, STEP))
        first = _told(pairs, 0, summaries[0])
        raise ShardError(f"stage {work.name}: no picture can be read; {first}; put the tars back or ingest again")
    return Outcome(
        _counts(summaries),
        {
            "languages": dict(sorted(sum((Counter(s["languages"]) for s in summaries), Counter()).items())),
            "damaged": {names[number]: summary["damaged"] for number, summary in damaged.items()},
        },
    )


def _is_lost(summary: Summary) -> bool:
    return bool(summary["problems"].get(UNREADABLE, 0) == summary["pairs"])


def _told(pairs: ShardSet, number: int, summary: Summary) -> str:
    lost = summary["problems"].get(UNREADABLE, 0)
    what = _DAMAGE.get(summary["damaged"], "it has no pairs")
    return (
        f"shard {pairs.shards[number].name} ({pairs.url(number)}): {what}; {lost} of {summary['pairs']} pairs are lost"
    )


def _counts(summaries: list[Summary]) -> dict[str, int]:
    problems: Counter[str] = sum((Counter(summary["problems"]) for summary in summaries), Counter())
    return {
        "pairs": sum(summary["pairs"] for summary in summaries),
        "captions": sum(summary["captions"] for summary in summaries),
        "shards": len(summaries),
        "damaged_shards": sum(bool(summary["damaged"]) for summary in summaries),
        **{f"problem_{reason}": problems[reason] for reason in PROBLEMS},
    }


def inspect_shard(pairs: ShardSet, spec: InspectSpec, out_uri: str, number: int) -> Summary:
    """Look at one shard and write its table; say how many pairs and captions, which problems, what is damaged."""
    name = pairs.shards[number].name
    index = read_parquet(pairs.artifact.at("index", f"{name}.parquet"), ["uid", "offset", "bytes"])
    seen, damaged = _look_through(pairs, number, index, spec.max_image_pixels)
    texts = first_captions(pairs, number, spec.caption_source, index["uid"].combine_chunks()).to_pylist()
    languages, scores = detect_languages(texts)
    columns = [index["uid"], *_picture_columns(seen), languages, scores]
    arrays = [pa.array(column, field.type) if isinstance(column, list) else column
              for column, field in zip(columns, INSPECTION_SCHEMA, strict=True)]  # fmt: skip
    write_parquet(storage.join(out_uri, "inspection", f"{name}.parquet"), pa.table(arrays, schema=INSPECTION_SCHEMA))
    return {
        "pairs": index.num_rows,
        "captions": sum(text is not None for text in texts),
        "problems": dict(sorted(Counter(picture.look.problem for picture in seen if picture.look.problem).items())),
        "languages": dict(sorted(Counter(language for language in languages if language).items())),
        "damaged": damaged,
    }


def _picture_columns(seen: list[Seen]) -> Iterator[list[Any]]:
    """Columns problem, content, width, height, phash, entropy, sharpness."""
    yield [picture.look.problem for picture in seen]
    yield [picture.content for picture in seen]
    for name in Look._fields[1:]:
        yield [getattr(picture.look, name) for picture in seen]


def _look_through(pairs: ShardSet, number: int, index: pa.Table, max_pixels: int) -> tuple[list[Seen], str]:
    """Look at the pictures of one shard, in the index's order, and say what is wrong with its tar ("": nothing)."""
    shard, url = pairs.shards[number], pairs.url(number)
    seen = [_NOT_READ] * index.num_rows
    size = _size_bytes(url)
    if size is None:
        return seen, "missing_tar"
    offsets, sizes = (index[name].to_numpy() for name in ("offset", "bytes"))
    with storage.open_read(url) as stream:
        tape = Tape(stream, size)
        for row in np.argsort(offsets, kind="stable").tolist():
            content = _picture(tape, int(offsets[row]), int(sizes[row]))
            if content is not None:
                digest = hashlib.blake2b(content, digest_size=16).digest()
                seen[row] = Seen(digest, look_at(content, max_pixels))
        sha256 = tape.sha256()
    if tape.size != shard.bytes:
        return seen, "size_mismatch"
    if sha256 != shard.sha256:
        return seen, "checksum_mismatch"
    return seen, "wrong_offset" if any(picture is _NOT_READ for picture in seen) else ""


def _size_bytes(url: str) -> int | None:
    """Size of a tar, None where there is none; a store that does not answer is another matter, and raised."""
    try:
        return storage.size_bytes(url)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _picture(tape: Tape, offset: int, size: int) -> bytes | None:
    """Bytes of a picture ahead on the tape; None where the tape does not have them. The tape hashes what it passes."""
    if size < 0 or offset < tape.position or offset + size > tape.size:
        return None
    tape.skip(offset - tape.position)
    content = tape.read(size)
    return content if len(content) == size else None
