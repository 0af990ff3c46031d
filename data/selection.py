"""Which pairs: splits (uid -> split) and selections (uid -> kept or not, with what probability, and why).

Both have one file a shard, `split/<shard>.parquet` and `selection/<shard>.parquet`, rows in the shard's order.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.artifacts import Artifact
from data.curation.tables import ENTRY_SCHEMA, SELECTION_SCHEMA
from data.shards import read_parquet, write_parquet

SPLIT_SCHEMA = pa.schema([("uid", pa.string()), ("split", pa.string())])


def write_split(uri: str, table: pa.Table, shard: str = "00000") -> None:
    """Write one shard's part of a split (SPLIT_SCHEMA)."""
    write_parquet(storage.join(uri, "split", f"{shard}.parquet"), table.select(SPLIT_SCHEMA.names))


def read_split(artifact: Artifact) -> pa.Table:
    """Read a split: uid, split, sorted by uid."""
    return _all_shards(artifact, "split", SPLIT_SCHEMA.names).sort_by("uid")


def in_splits(artifact: Artifact, shard: str, names: Sequence[str]) -> pa.ChunkedArray:
    """For every pair of a shard, in the shard's order, whether it is in one of the splits."""
    split = read_parquet(artifact.at("split", f"{shard}.parquet"), ["split"])["split"]
    return pc.is_in(split, value_set=pa.array(names, pa.string()))


def uids_of(split: pa.Table, names: tuple[str, ...]) -> list[str]:
    """Sorted uids of the named splits."""
    mask = pc.is_in(split["split"], value_set=pa.array(names, pa.string()))
    return sorted(split.filter(mask)["uid"].to_pylist())


def write_selection(uri: str, pairs: pa.Table, shard: str = "00000") -> None:
    """Write one shard's part of a selection (SELECTION_SCHEMA)."""
    write_parquet(storage.join(uri, "selection", f"{shard}.parquet"), pairs.select(SELECTION_SCHEMA.names))


def write_entries(uri: str, entries: pa.Table) -> None:
    """Write the metadata entries of a selection (ENTRY_SCHEMA)."""
    write_parquet(storage.join(uri, "entries.parquet"), entries.select(ENTRY_SCHEMA.names))


def read_selection(artifact: Artifact) -> pa.Table:
    """Read a selection, dropped pairs included, sorted by uid."""
    return _all_shards(artifact, "selection", SELECTION_SCHEMA.names).sort_by("uid")


def read_entries(artifact: Artifact) -> pa.Table:
    """Read the metadata entries of a selection."""
    return read_parquet(artifact.at("entries.parquet"))


def kept_uids(artifact: Artifact) -> pa.Array:
    """Sorted uids of the pairs a selection keeps, as large strings."""
    table = _all_shards(artifact, "selection", ["uid", "kept"])
    kept = table.filter(table["kept"])["uid"].cast(pa.large_string()).combine_chunks()
    return kept.take(pc.sort_indices(kept))


def _all_shards(artifact: Artifact, folder: str, columns: Sequence[str]) -> pa.Table:
    names = [name for name, _ in storage.list_files(artifact.at(folder), recursive=True) if name.endswith(".parquet")]
    return pa.concat_tables([read_parquet(artifact.at(folder, name), columns) for name in names])
