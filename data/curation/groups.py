"""Pairs that are alike, as groups: a union-find over row numbers, and the rule that says which pair of a group stays.

A partition is an array of labels: row -> smallest row of its group, a row that is alone its own label. Where rows are
sorted by uid, a label is therefore the row of the group's smallest uid, in whatever order links were found.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.curation.kernels import compiled

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@compiled
def root(parent: Longs, row: int) -> int:
    """Smallest row that `row` is linked to; halves the path on its way."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@compiled
def join(parent: Longs, left: int, right: int) -> None:
    """Link two rows: the smaller root stays, so the result does not depend on the order of links."""
    left, right = root(parent, left), root(parent, right)
    if left < right:
        parent[right] = left
    else:
        parent[left] = right


@compiled
def join_all(parent: Longs, left: Longs, right: Longs) -> None:
    """Link rows pairwise."""
    for number in range(len(left)):
        join(parent, left[number], right[number])


@compiled
def labels_of(parent: Longs) -> Longs:
    """The partition that the links made."""
    labels = np.empty_like(parent)
    for row in range(len(parent)):
        labels[row] = root(parent, row)
    return labels


def alone(num_rows: int) -> Longs:
    """The partition in which no row is linked."""
    return np.arange(num_rows, dtype=np.int64)


def group_equal(num_rows: int, rows: Longs, keys: npt.NDArray[np.generic]) -> Longs:
    """Partition that groups those of the ascending `rows` that have equal keys; all other rows stay alone."""
    labels = alone(num_rows)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    labels[rows] = rows[first[inverse]] if len(rows) else rows
    return labels


def merge(partitions: Sequence[Longs]) -> Longs:
    """Connected components over the links of all partitions."""
    parent = alone(len(partitions[0]))
    for labels in partitions:
        join_all(parent, alone(len(labels)), labels)
    merged: Longs = labels_of(parent)
    return merged


def is_linked(labels: Longs) -> Bools:
    """Rows that share their label with another row."""
    return np.bincount(labels, minlength=len(labels))[labels] > 1


def representatives(uids: pa.Array | pa.ChunkedArray, groups: pa.Array | pa.ChunkedArray, pixels: Longs) -> Bools:
    """Mask of the pairs to keep: of each group the one with the most pixels, of several such the smallest uid.

    The largest copy is the one that the others were scaled, cropped or compressed from more often than not, and it
    loses nothing when the loader scales it down. The uid decides the rest because it depends neither on shards nor on
    order. A pair without a group (null) stays. Give only the pairs that are candidates still: a group whose largest
    picture was filtered out then keeps its next.

    Args:
        uids: P uids.
        groups: P ids of groups, null for a pair that is like no other.
        pixels: P areas (width x height); 0 for a picture that does not decode.
    """
    table = pa.table({"uid": uids, "group": groups, "pixels": pa.array(pixels)})
    keys = [("group", "ascending"), ("pixels", "descending"), ("uid", "ascending")]
    order = pc.sort_indices(table, sort_keys=keys).to_numpy()
    codes = pc.fill_null(table["group"].combine_chunks().dictionary_encode().indices, -1).to_numpy()[order]
    keep: Bools = np.ones(len(order), np.bool_)
    keep[order[1:]] = (codes[1:] != codes[:-1]) | (codes[1:] == -1)
    return keep
