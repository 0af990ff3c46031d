"""Shard sets: WebDataset tars, an index of true counts and byte offsets, and captions beside the images.

Layout of the artifact: `shards.json` (name, url, pairs, bytes, sha256 of each tar; a relative url lies in the
artifact), `index/<name>.parquet` (uid, ext, offset, bytes, meta: one row a pair), `captions/<name>.parquet` (uid,
source, caption, provenance) and `dropped.parquet` (shard, member, reason). Pictures are read by offset;
tars are never unpacked.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute  # for pa.compute
import pyarrow.parquet as pq

from data import storage
from data.artifacts import Artifact
from data.errors import ShardError, StorageError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
INDEX_SCHEMA = pa.schema(
    [("uid", pa.string()), ("ext", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64()), ("meta", pa.string())]
)
CAPTION_SCHEMA = pa.schema(
    [("uid", pa.string()), ("source", pa.string()), ("caption", pa.string()), ("provenance", pa.string())]
)
DROPPED_SCHEMA = pa.schema([("shard", pa.string()), ("member", pa.string()), ("reason", pa.string())])
_BLOCK = tarfile.BLOCKSIZE


class Pair(NamedTuple):
    """One image with its captions, as it goes into a shard.

    `captions` maps source -> caption; `alt` is the primary one.
    """

    uid: str
    image: bytes
    ext: str
    captions: Mapping[str, str]
    meta: Mapping[str, Any]


class Shard(NamedTuple):
    """One tar of a shard set."""

    name: str
    url: str
    pairs: int
    bytes: int
    sha256: str


def write_parquet(uri: str, table: pa.Table) -> None:
    """Write a table as one parquet file, atomically."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one parquet file."""
    # threads left behind by pyarrow 26.0.1 abort some short processes at exit (3 of 8 measured); files here are small
    source = pa.BufferReader(storage.read_bytes(uri))
    return pq.read_table(source, columns=list(columns) if columns else None, pre_buffer=False, use_threads=False)


def write_shard(folder_uri: str, name: str, pairs: Iterable[Pair]) -> Shard:
    """Write `shards/<name>.tar` with its index and captions below `folder_uri`. Equal pairs give equal bytes."""
    index: dict[str, list[Any]] = {field.name: [] for field in INDEX_SCHEMA}
    captions: list[dict[str, Any]] = []
    uri = storage.join(folder_uri, "shards", f"{name}.tar")
    with storage.local_output(uri) as path:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for pair in pairs:
                extra = {source: text for source, text in pair.captions.items() if source != "alt"}
                meta = json.dumps(dict(pair.meta), ensure_ascii=False, sort_keys=True)
                document = json.dumps({**pair.meta, **({"captions": extra} if extra else {})}, ensure_ascii=False)
                offset = _add(tar, f"{pair.uid}.{pair.ext}", pair.image)
                if "alt" in pair.captions:
                    _add(tar, f"{pair.uid}.txt", pair.captions["alt"].encode())
                _add(tar, f"{pair.uid}.json", document.encode())
                for key, value in zip(index, (pair.uid, pair.ext, offset, len(pair.image), meta), strict=True):
                    index[key].append(value)
                captions += [
                    {"uid": pair.uid, "source": s, "caption": c, "provenance": None} for s, c in pair.captions.items()
                ]
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
    write_parquet(storage.join(folder_uri, "index", f"{name}.parquet"), pa.table(index, schema=INDEX_SCHEMA))
    write_parquet(
        storage.join(folder_uri, "captions", f"{name}.parquet"), pa.Table.from_pylist(captions, CAPTION_SCHEMA)
    )
    return Shard(name, f"shards/{name}.tar", len(index["uid"]), size, sha256)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member; return the offset of its bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    return tar.offset - -(-len(content) // _BLOCK) * _BLOCK


def write_manifest(folder_uri: str, shards: Sequence[Shard], dropped: Sequence[Mapping[str, str]]) -> None:
    """Write `shards.json` and `dropped.parquet`."""
    storage.write_json(storage.join(folder_uri, "shards.json"), [shard._asdict() for shard in shards])
    write_parquet(storage.join(folder_uri, "dropped.parquet"), pa.Table.from_pylist(list(dropped), DROPPED_SCHEMA))


class ShardSet:
    """Reader of a shard set artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.shards = [Shard(**entry) for entry in storage.read_json(artifact.at("shards.json"))]

    def url(self, number: int) -> str:
        """Where the tar with this number is."""
        url = self.shards[number].url
        return url if "://" in url or Path(url).is_absolute() else self.artifact.at(url)

    def index(self) -> pa.Table:
        """All pairs in shard order: INDEX_SCHEMA plus `shard`, the number of the tar."""
        tables = []
        for number, shard in enumerate(self.shards):
            table = read_parquet(self.artifact.at("index", f"{shard.name}.parquet"))
            tables.append(table.append_column("shard", pa.array([number] * table.num_rows, pa.int32())))
        return pa.concat_tables(tables) if tables else INDEX_SCHEMA.append(pa.field("shard", pa.int32())).empty_table()

    def metadata(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield uid and metadata of every pair, shard by shard."""
        for shard in self.shards:
            table = read_parquet(self.artifact.at("index", f"{shard.name}.parquet"), ["uid", "meta"])
            for uid, text in zip(table["uid"].to_pylist(), table["meta"].to_pylist(), strict=True):
                yield uid, json.loads(text or "{}")

    def captions(self, source: str | None = None) -> pa.Table:
        """All captions (CAPTION_SCHEMA), or those of one source."""
        names = [self.artifact.at("captions", f"{shard.name}.parquet") for shard in self.shards]
        return read_captions(names, source)

    def dropped(self) -> pa.Table:
        """What ingest could not use: shard, member, reason."""
        return read_parquet(self.artifact.at("dropped.parquet"))

    def read_image(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of one picture as found.

        Raises:
            ShardError: the tar is gone or shorter than the index says.
        """
        try:
            content = storage.read_bytes(self.url(shard), offset, offset + size)
        except StorageError as error:
            raise ShardError(f"{self.url(shard)}: shard {self.shards[shard].name} cannot be read: {error}") from error
        if len(content) != size:
            raise ShardError(f"{self.url(shard)}: ends before byte {offset + size}; the shard is torn, ingest it again")
        return content


def read_captions(uris: Iterable[str], source: str | None = None) -> pa.Table:
    """Read caption parquet files into one table, optionally of one source."""
    tables = [read_parquet(uri) for uri in uris]
    table = pa.concat_tables(tables) if tables else CAPTION_SCHEMA.empty_table()
    return table if source is None else table.filter(pa.compute.equal(table["source"], source))


class CaptionLayer:
    """Reader of a caption layer artifact: `captions/*.parquet` (CAPTION_SCHEMA); `rewrites.parquet` holds every try."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def captions(self, source: str | None = None) -> pa.Table:
        """All captions of the layer, or those of one source."""
        names = [name for name, _ in storage.list_files(self.artifact.at("captions")) if name.endswith(".parquet")]
        return read_captions((self.artifact.at("captions", name) for name in names), source)
