"""The artifacts of curation: what each holds for a shard, and how it is read and written.

Every artifact has one parquet file a shard, named as the shard is, with the shard's pairs in the shard's own order.
So a stage works on any number of shards with the memory of one, and joins its parents' files row by row.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from data.artifacts import Artifact
from data.shards import ShardSet, read_parquet

INSPECTION_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("problem", pa.string()),  # of the picture: "" | unreadable | unreadable_image | image_too_large
        ("content", pa.binary(16)),  # BLAKE2b-128 of the picture's bytes; null where they cannot be read
        ("width", pa.int32()),  # of the picture, in pixels; null where it does not decode, as all below
        ("height", pa.int32()),
        ("phash", pa.uint64()),  # perceptual hash
        ("entropy", pa.float32()),  # of the grey values' histogram, in bits
        ("sharpness", pa.float32()),  # variance of the Laplacian of the grey picture, longer side 256
        ("language", pa.string()),  # of the caption, ISO 639-1; null where there is no caption
        ("language_score", pa.float32()),
    ]
)
MATCHES_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),  # every pair of the shard that is in the splits
        ("entries", pa.list_(pa.int32())),  # ids of matched entries, ascending; null: the pair has no caption
    ]
)
METADATA_SCHEMA = pa.schema(
    [("id", pa.int32()), ("entry", pa.string()), ("source", pa.string()), ("language", pa.string())]
)
# duplicates: groups.parquet, rows sorted by uid; pairs that are like no other have no row
GROUP_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("group", pa.string()),  # smallest uid of the group
        ("by", pa.list_(pa.string())),  # what links this pair to others: exact | near_image | near_caption | semantic
    ]
)
# duplicates: protected.parquet, rows sorted by uid
PROTECTED_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("evaluation", pa.string()),  # label of the evaluation, or the name of the held-out split
        ("evaluation_uid", pa.string()),  # the pair there that is like this one
        ("by", pa.string()),  # exact | near_image
        ("distance", pa.int32()),  # bits of the perceptual hash; 0 for the same bytes
    ]
)
# of one artifact: entries.parquet, as `MATCHES`' metadata with what balancing made of it
ENTRY_SCHEMA = pa.schema(
    [
        *METADATA_SCHEMA,
        ("count", pa.int64()),  # pairs that hold it, before balancing (after filters and duplicates)
        ("kept", pa.int64()),  # of those, how many are kept
        ("p", pa.float64()),
    ]
)
SELECTION_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("kept", pa.bool_()),
        ("p_keep", pa.float64()),  # 0 for a pair that was dropped before balancing
        ("draw", pa.float64()),
        ("reason", pa.string()),  # "" for a kept pair, else the first that dropped it
    ]
)
# reasons that are no filter's name
NO_CAPTION, DUPLICATE, PROTECTED, UNMATCHED, DRAWN_OUT = (
    "no_caption",
    "duplicate",
    "protected",
    "unmatched",
    "drawn_out",
)


def shard_table(artifact: Artifact, folder: str, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard's rows of an artifact that has a file a shard."""
    return read_parquet(artifact.at(folder, f"{shard}.parquet"), columns)


def all_tables(
    artifact: Artifact, folder: str, shard_set: ShardSet, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """All shards' rows, shard by shard."""
    for shard in shard_set.shards:
        yield shard_table(artifact, folder, shard.name, columns)
