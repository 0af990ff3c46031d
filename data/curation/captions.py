"""The caption that curation judges a pair by: the first that is not blank, of one source."""

from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import open_artifact
from data.shards import ShardSet, read_parquet


@cache
def shard_set(uri: str) -> ShardSet:
    """A shard set, opened once a process: its shards are worked on one after the other."""
    return ShardSet(open_artifact(uri))


def shard_uids(pairs: ShardSet, number: int) -> pa.Array:
    """Uids of one shard's pairs, in the shard's order."""
    uri = pairs.artifact.at("index", f"{pairs.shards[number].name}.parquet")
    return read_parquet(uri, ["uid"])["uid"].combine_chunks()


def first_captions(pairs: ShardSet, number: int, source: str, uids: pa.Array) -> pa.Array:
    """Captions (large strings, null where there is none) of these uids of one shard, in their order."""
    uri = pairs.artifact.at("captions", f"{pairs.shards[number].name}.parquet")
    table = read_parquet(uri, ["uid", "source", "caption"])
    table = table.filter(pc.equal(table["source"], source))
    table = table.filter(pc.not_equal(pc.utf8_trim_whitespace(table["caption"]), ""))
    owner = pc.fill_null(pc.index_in(table["uid"], value_set=uids), -1).to_numpy()
    row_of = np.full(len(uids) + 1, -1, np.int64)  # the last place takes what no uid owns
    row_of[owner[::-1]] = np.arange(len(owner))[::-1]  # of several the first is written last
    rows = row_of[:-1]
    captions = table["caption"].cast(pa.large_string()).combine_chunks()
    return captions.take(pa.array(rows, mask=rows < 0))
