"""Finds one pair in the shard sets below a root: its picture, captions and splits, or why it is not there."""

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.artifacts import Artifact
from data.curation.catalogue import Catalogue
from data.curation.tables import shard_table
from data.errors import ArtifactError, ShardError
from data.shards import ShardSet, read_captions

_LOOKED_AT = 5_000  # uids that an unknown one is compared with: difflib takes about 0.1 ms each


class Caption(NamedTuple):
    """A caption, its source, and the artifact that holds it: the shard set or a caption layer."""

    source: str
    caption: str
    artifact: str
    provenance: str | None


class Located(NamedTuple):
    """A pair in a shard set: the bytes of its picture inside a tar, and all that is said of it there."""

    shard_set: str
    shard: str
    url: str
    row: int
    ext: str
    offset: int
    bytes: int
    picture: dict[str, Any]  # what an inspection saw: width, height, problem ...; empty where there was none
    meta: dict[str, Any]
    splits: dict[str, str]  # name of the split artifact -> split
    captions: tuple[Caption, ...]


class Found(NamedTuple):
    """A pair's row in a shard set that is open."""

    shard_set: ShardSet
    number: int
    row: int


def find_pair(catalogue: Catalogue, shard_sets: Sequence[Artifact], uid: str) -> list[Found]:
    """The pair in each shard set that has it.

    Raises:
        ShardError: none has; says why ingest dropped it, or names the nearest uids.
    """
    opened = [ShardSet(artifact) for artifact in shard_sets]
    found = [place for shard_set in opened for place in _places(shard_set, uid)]
    if not found:
        raise _unknown(catalogue, opened, uid)
    return found


def _places(shard_set: ShardSet, uid: str) -> Iterator[Found]:
    """The pair's place; a uid is unique in a shard set, so the search ends at the first."""
    for number in range(len(shard_set.shards)):
        row = pc.index(_uids(shard_set, number), uid).as_py()
        if row >= 0:
            yield Found(shard_set, number, row)
            return


def _uids(shard_set: ShardSet, number: int) -> pa.ChunkedArray:
    return shard_table(shard_set.artifact, "index", shard_set.shards[number].name, ["uid"])["uid"]


def locate(catalogue: Catalogue, found: Found, uid: str) -> Located:
    """Everything that is said of the pair, apart from what selections decided."""
    shard_set, shard = found.shard_set, found.shard_set.shards[found.number]
    index = shard_table(shard_set.artifact, "index", shard.name).slice(found.row, 1).to_pylist()[0]
    return Located(
        shard_set=storage.name_of(shard_set.artifact.uri), shard=shard.name, url=shard_set.url(found.number),
        row=found.row, ext=index["ext"], offset=index["offset"], bytes=index["bytes"],
        picture=_seen(catalogue, found, uid), meta=json.loads(index["meta"] or "{}"),
        splits=_splits(catalogue, found, uid), captions=tuple(_captions(catalogue, found, uid)),
    )  # fmt: skip


def row_of(table: pa.Table, uid: str) -> dict[str, Any] | None:
    """The pair's row as a mapping, None where it has none."""
    row = pc.index(table["uid"], uid).as_py()
    return None if row < 0 else table.slice(row, 1).to_pylist()[0]


def _seen(catalogue: Catalogue, found: Found, uid: str) -> dict[str, Any]:
    """What the first inspection of this shard set saw of the picture; the hashes mean nothing to a reader."""
    for inspection in catalogue.of_kind("inspection", pairs=found.shard_set.artifact.fingerprint):
        row = row_of(shard_table(inspection, "inspection", found.shard_set.shards[found.number].name), uid) or {}
        return {name: value for name, value in row.items() if name not in ("uid", "content", "phash")}
    return {}


def _splits(catalogue: Catalogue, found: Found, uid: str) -> dict[str, str]:
    """What each split of this shard set says; one of an older clipworks has its files elsewhere and is left out."""
    names, shard = {}, found.shard_set.shards[found.number].name
    for split in catalogue.of_kind("split", pairs=found.shard_set.artifact.fingerprint):
        is_known = storage.exists(split.at("split", f"{shard}.parquet"))
        row = row_of(shard_table(split, "split", shard), uid) if is_known else None
        if row:
            names[storage.name_of(split.uri)] = str(row["split"])
    return names


def _captions(catalogue: Catalogue, found: Found, uid: str) -> Iterator[Caption]:
    """The shard set's captions in its order, then those of every layer over it."""
    shard_set, file = found.shard_set, f"{found.shard_set.shards[found.number].name}.parquet"
    layers = catalogue.of_kind("caption_layer", pairs=shard_set.artifact.fingerprint)
    for artifact in (shard_set.artifact, *layers):
        uri = artifact.at("captions", file)
        if storage.exists(uri):
            table = read_captions([uri])
            for row in table.filter(pc.equal(table["uid"], uid)).to_pylist():
                yield Caption(row["source"], row["caption"], storage.name_of(artifact.uri), row["provenance"])


def _unknown(catalogue: Catalogue, shard_sets: Sequence[ShardSet], uid: str) -> ArtifactError | ShardError:
    if not shard_sets:
        return ArtifactError(f"{catalogue.root_uri}: holds no shard set; give the root of a run (--root)")
    for shard_set in shard_sets:
        for row in shard_set.dropped().to_pylist():
            if uid in (row["member"], *_keys(row["member"])):
                where = f"shard {row['shard']} of " if row["shard"] else ""
                return ShardError(
                    f"{uid}: ingest dropped {row['member']!r} from {where}{storage.name_of(shard_set.artifact.uri)}: "
                    f"{row['reason']}; put it right in the pool and ingest again"
                )
    near = difflib.get_close_matches(uid, _sample(shard_sets, uid), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`uid` in index/*.parquet has those that exist"
    return ShardError(f"{uid}: no pair of this uid in {len(shard_sets)} shard sets of {catalogue.root_uri}; {hint}")


def _keys(member: str) -> tuple[str, str]:
    """What uid a member of a tar could have had: its name up to the first dot, with its folder and without."""
    folder, _, file = member.rpartition("/")
    stem = file.partition(".")[0]
    return stem, f"{folder}/{stem}"


def _sample(shard_sets: Sequence[ShardSet], uid: str) -> list[str]:
    """Uids to compare an unknown one with: those that begin like it, and others evenly out of every shard."""
    most = max(2, _LOOKED_AT // max(1, sum(len(shard_set.shards) for shard_set in shard_sets)))
    sample = dict[str, None]()
    for shard_set in shard_sets:
        for number in range(len(shard_set.shards)):
            uids = _uids(shard_set, number)
            alike = uids.filter(pc.starts_with(uids, uid[: -(-len(uid) // 2)]))[: most // 2]
            evenly = uids.take(pa.array(range(0, len(uids), max(1, 2 * len(uids) // most)), pa.int64()))
            sample |= dict.fromkeys(alike.to_pylist() + evenly.to_pylist())
    return list(sample)[: 2 * _LOOKED_AT]
