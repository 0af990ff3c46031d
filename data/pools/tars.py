"""A pool of tars as a shard set: each tar is read once where it lies, on any number of workers, and indexed beside."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.events import Events
from data.lookup import string_hashes
from data.pools import Dropped
from data.pools.packed import Packed
from data.pools.tar import DAMAGE, Tape
from data.pools.webdataset import Captioned, Layout, Limits, Row, read_shard
from data.shards import CAPTION_SCHEMA, INDEX_SCHEMA, Shard, read_parquet, write_parquet
from data.shardwise import Summary, each_shard
from data.sources import list_tars
from data.specs import IngestSpec, ShardPool
from data.stage import Work

_SIDE_FOLDERS = ("index", "captions")


class Tar(NamedTuple):
    """A tar of a pool: the shard's name, where it lies, and what its members mean."""

    name: str
    uri: str
    layout: Layout


def pool_tars(pool: ShardPool) -> list[Tar]:
    """The tars of a pool of shards."""
    url = storage.normalise(pool.url)
    return [Tar(file.removesuffix(".tar"), storage.join(url, file), Captioned()) for file, _ in list_tars(pool.url)]


def index_tars(spec: IngestSpec, tars: Sequence[Tar], work: Work) -> list[Packed]:
    """Index every tar of a pool and write its captions beside; of equal uids the first in order of tars is kept.

    Tars are read once each, in any order; only then it is known which uids come again.
    """
    names = [tar.name for tar in tars]
    found = storage.join(work.out.state_uri, "found")
    limits = Limits(spec.max_image_pixels, spec.max_caption_bytes)
    read = each_shard(work, "read", names, partial(_read, tars, found, limits, work.events))
    again = _rows_that_come_again(found, names)
    parts = each_shard(work, "index", names, partial(_write_unique, names, found, work.out.uri, again))
    packed = [_packed(tar, *summaries) for tar, *summaries in zip(tars, read, parts, strict=True)]
    work.events.progress(sum(part.shard.pairs for part in packed if part.shard), None, "pairs")
    return packed


def _read(tars: Sequence[Tar], found: str, limits: Limits, events: Events, number: int) -> Summary:
    """Read one tar; keep what its pairs say of themselves in the state folder."""
    name, uri, layout = tars[number]
    with storage.open_read(uri) as stream:
        tape = Tape(stream, storage.size_bytes(uri))
        contents = read_shard(tape, name, limits, set(), layout)
        size, sha256 = tape.size, tape.sha256()
    damage = Counter(row.reason for row in contents.dropped if row.reason in DAMAGE)
    if damage:
        told = ", ".join(f"{reason} {count}" for reason, count in damage.items())
        events.message(f"{name}.tar is damaged ({told}): {len(contents.rows)} good pairs are kept")
    _write_side_files(found, name, contents.rows)
    counts = {"damaged_shards": int(bool(damage)), "ignored_members": contents.ignored_members}
    return {"bytes": size, "sha256": sha256, "dropped": contents.dropped, "counts": counts}


def _rows_that_come_again(found: str, names: Sequence[str]) -> dict[int, list[int]]:
    """Number of a tar -> rows of its pairs whose uid an earlier tar has. Eight bytes a pair, and a few strings."""
    columns = [read_parquet(storage.join(found, "index", f"{name}.parquet"), ["uid"])["uid"] for name in names]
    hashes = [string_hashes(column.cast(pa.large_string()).combine_chunks()) for column in columns]
    values, times = np.unique(np.concatenate(hashes), return_counts=True)
    doubtful, seen, again = values[times > 1], set[str](), dict[int, list[int]]()
    for number, column in enumerate(columns):
        for row in np.flatnonzero(np.isin(hashes[number], doubtful)).tolist():
            uid = column[row].as_py()
            if uid in seen:
                again.setdefault(number, []).append(row)
            seen.add(uid)
    return again


def _write_unique(names: Sequence[str], found: str, out_uri: str, again: dict[int, list[int]], number: int) -> Summary:
    """Write one tar's index and captions without the pairs that come again."""
    name, rows = names[number], again.get(number, [])
    tables = [read_parquet(storage.join(found, folder, f"{name}.parquet")) for folder in _SIDE_FOLDERS]
    uids = tables[0]["uid"].take(pa.array(rows, pa.int64()))
    for folder, table in zip(_SIDE_FOLDERS, tables, strict=True):
        left = table.filter(pc.invert(pc.is_in(table["uid"], value_set=uids.combine_chunks()))) if rows else table
        if tables[0].num_rows > len(rows):  # pairs may have no captions
            write_parquet(storage.join(out_uri, folder, f"{name}.parquet"), left)
    return {"pairs": tables[0].num_rows - len(rows), "again": uids.to_pylist()}


def _packed(tar: Tar, read: Summary, part: Summary) -> Packed:
    dropped = [Dropped(*row) for row in read["dropped"]] + [
        Dropped(tar.name, uid, "duplicate_uid") for uid in part["again"]
    ]
    shard = Shard(tar.name, tar.uri, part["pairs"], read["bytes"], read["sha256"]) if part["pairs"] else None
    return Packed(shard, dropped, {key: count for key, count in read["counts"].items() if count})


def _write_side_files(folder_uri: str, name: str, rows: list[Row]) -> None:
    index = pa.Table.from_pylist([row._asdict() for row in rows], INDEX_SCHEMA)
    captions = [
        {"uid": row.uid, "source": source, "caption": caption, "provenance": None}
        for row in rows
        for source, caption in row.captions.items()
    ]
    tables = (index, pa.Table.from_pylist(captions, CAPTION_SCHEMA))
    for folder, table in zip(_SIDE_FOLDERS, tables, strict=True):
        write_parquet(storage.join(folder_uri, folder, f"{name}.parquet"), table)
