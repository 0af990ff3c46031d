"""How many pairs each metadata entry is in: counted shard by shard, then added up in a tree.

A shard's counts are sparse, its sum with others too, so that no step holds more than some files and one total.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data import storage
from data.curation.kernels import Longs
from data.curation.match import Ints
from data.shards import read_parquet, write_parquet
from data.shardwise import Summary, each_shard
from data.stage import Work

_FAN_IN = 64  # files that one node of the tree adds up
_COUNT_SCHEMA = pa.schema([("id", pa.int32()), ("pairs", pa.int64())])


def write_counts(folder_uri: str, name: str, ids: Ints) -> None:
    """Write how often each id comes, ids ascending."""
    found, pairs = np.unique(ids, return_counts=True)
    _write(storage.join(folder_uri, f"{name}.parquet"), found, pairs)


def total_counts(work: Work, step: str, names: Sequence[str], num_entries: int) -> Longs:
    """Sum (num_entries,) of the counts written for `names` below the state folder `step`."""
    folder, level = storage.join(work.out.state_uri, step), 0
    uris = [storage.join(folder, f"{name}.parquet") for name in names]
    while len(uris) > 1:
        groups = [uris[at : at + _FAN_IN] for at in range(0, len(uris), _FAN_IN)]
        sums = [storage.join(folder, f"sum-{level}", f"{number:06d}.parquet") for number in range(len(groups))]
        labels = [f"{number:06d}" for number in range(len(groups))]
        each_shard(work, f"{step}-sum-{level}", labels, partial(_add, groups, sums, num_entries))
        uris, level = sums, level + 1
    return _dense(uris, num_entries)


def _add(groups: Sequence[Sequence[str]], sums: Sequence[str], num_entries: int, number: int) -> Summary:
    total = _dense(groups[number], num_entries)
    found = np.flatnonzero(total)
    _write(sums[number], found, total[found])
    return {"files": len(groups[number])}


def _dense(uris: Sequence[str], num_entries: int) -> Longs:
    total = np.zeros(num_entries, np.int64)
    for uri in uris:
        table = read_parquet(uri)
        total[table["id"].to_numpy()] += table["pairs"].to_numpy()  # an id comes once in a file
    return total


def _write(uri: str, ids: npt.NDArray[np.integer], pairs: npt.NDArray[np.integer]) -> None:
    write_parquet(uri, pa.table([ids.astype(np.int32), pairs.astype(np.int64)], schema=_COUNT_SCHEMA))
