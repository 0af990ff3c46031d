"""Which pairs: splits (uid -> split) and selections (uid -> kept or not, with what probability, and why)."""

import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import Artifact
from data.shards import read_parquet, write_parquet

SPLIT_SCHEMA = pa.schema([("uid", pa.string()), ("split", pa.string())])
SELECTION_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("kept", pa.bool_()),
        ("p_keep", pa.float64()),
        ("draw", pa.float64()),
        ("reason", pa.string()),  # of a pair that is not kept: no_caption | unmatched | drawn_out; else ""
        ("entries", pa.list_(pa.int32())),  # matched entry ids, rows of entries.parquet
    ]
)
ENTRY_SCHEMA = pa.schema(
    [("id", pa.int32()), ("entry", pa.string()), ("source", pa.string()), ("count", pa.int64()), ("p", pa.float64())]
)


def write_split(uri: str, table: pa.Table) -> None:
    """Write `split.parquet` (SPLIT_SCHEMA, sorted by uid) into an artifact."""
    write_parquet(f"{uri}/split.parquet", table.select(SPLIT_SCHEMA.names).sort_by("uid"))


def read_split(artifact: Artifact) -> pa.Table:
    """Read a split: uid, split."""
    return read_parquet(artifact.at("split.parquet"))


def uids_of(split: pa.Table, names: tuple[str, ...]) -> list[str]:
    """Sorted uids of the named splits."""
    mask = pc.is_in(split["split"], value_set=pa.array(names, pa.string()))
    return sorted(split.filter(mask)["uid"].to_pylist())


def write_selection(uri: str, pairs: pa.Table, entries: pa.Table) -> None:
    """Write `selection.parquet` (SELECTION_SCHEMA, sorted by uid) and `entries.parquet` (ENTRY_SCHEMA)."""
    write_parquet(f"{uri}/selection.parquet", pairs.select(SELECTION_SCHEMA.names).sort_by("uid"))
    write_parquet(f"{uri}/entries.parquet", entries.select(ENTRY_SCHEMA.names))


def read_selection(artifact: Artifact) -> pa.Table:
    """Read a selection, dropped pairs included."""
    return read_parquet(artifact.at("selection.parquet"))


def read_entries(artifact: Artifact) -> pa.Table:
    """Read the metadata entries of a selection."""
    return read_parquet(artifact.at("entries.parquet"))


def kept_uids(artifact: Artifact) -> list[str]:
    """Sorted uids of the pairs a selection keeps."""
    table = read_parquet(artifact.at("selection.parquet"), ["uid", "kept"])
    return sorted(table.filter(table["kept"])["uid"].to_pylist())
