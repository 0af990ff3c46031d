"""What a view reads of pairs' metadata: a class each, and regions in fractions of the picture; compact, by row.

Shapes: N pairs of a store, B of a piece, M regions of a pair.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.errors import ShardError, nearest
from data.lookup import Lookup
from training.order import Ints
from training.pairs import PairStore
from training.specs import BoxField, Grid, Label, View

Arrays = dict[str, npt.NDArray[Any]]
Boxes = npt.NDArray[np.float32]
_BLOCK_PAIRS = 1 << 16


class Columns:
    """A view's labels and regions."""

    def __init__(self, store: PairStore, view: View) -> None:
        """Read the metadata once, if the view needs it.

        Raises:
            ShardError: no pair has the field, or a value is not of its kind.
        """
        boxes = view.regions if isinstance(view.regions, BoxField) else None
        self.regions, self.label_N, self.boxes_NM4 = view.regions, None, None
        if view.label is None and boxes is None:
            return
        fields = [spec.field for spec in (view.label, boxes) if spec is not None]
        values = _values(store, fields)
        if view.label is not None:
            self.label_N = _labels(view.label, values[view.label.field])
        if boxes is not None:
            self.boxes_NM4 = _boxes(boxes, values[boxes.field])

    def of(self, rows: Ints, windows_B4: npt.NDArray[np.float64]) -> Arrays:
        """`label` (B,) and `boxes` (B, M, 4), `box_valid` (B, M): left, top, right, bottom in fractions of the crop.

        `windows_B4`: left, top, width, height of each crop in fractions of its picture.
        """
        found: Arrays = {}
        if self.label_N is not None:
            found["label"] = self.label_N[rows]
        if self.boxes_NM4 is not None:
            assert isinstance(self.regions, BoxField)
            found |= in_crop(self.boxes_NM4[rows], windows_B4, self.regions.min_visible)
        elif isinstance(self.regions, Grid):
            found |= grid(self.regions.side, len(rows))
        return found


def in_crop(boxes_BM4: Boxes, windows_B4: npt.NDArray[np.float64], min_visible: float) -> Arrays:
    """Boxes of pictures as boxes of their crops; one of which too little is visible is not valid, and all 0."""
    origin_B14, size_B14 = (np.tile(windows_B4[:, None, part], 2) for part in (slice(0, 2), slice(2, 4)))
    moved = (boxes_BM4 - origin_B14) / size_B14
    clipped = moved.clip(0, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        is_valid = _area(clipped) >= min_visible * _area(moved)
    is_valid &= _area(clipped) > 0
    return {"boxes": np.where(is_valid[..., None], clipped, 0).astype(np.float32), "box_valid": is_valid}


def grid(side: int, pairs: int) -> Arrays:
    """The same side x side tiles for every pair, row by row."""
    edges = np.arange(side + 1, dtype=np.float32) / side
    tiles = [(edges[x], edges[y], edges[x + 1], edges[y + 1]) for y in range(side) for x in range(side)]
    boxes = np.broadcast_to(np.array(tiles, np.float32), (pairs, side * side, 4)).copy()
    return {"boxes": boxes, "box_valid": np.ones((pairs, side * side), bool)}


def _area(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    sides = boxes[..., 2:] - boxes[..., :2]
    area: npt.NDArray[Any] = sides.prod(axis=-1)
    return area


def _values(store: PairStore, fields: list[str]) -> dict[str, list[Any]]:
    """The fields' values by row, None where a pair has none."""
    found: dict[str, list[Any]] = {field: [None] * len(store) for field in fields}
    known: set[str] = set()
    for row, meta in _metadata(store):
        known.update(meta)
        for field in fields:
            found[field][row] = meta.get(field)
    for field in fields:
        if field not in known:
            raise ShardError(f"metadata field {field!r}: no pair has it{nearest(field, sorted(known))}")
    return found


def _metadata(store: PairStore) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row and metadata of the store's pairs, read a block of the shard set at a time."""
    lookup, pairs = Lookup(store.uids), store.shard_set.metadata()
    while block := list(islice(pairs, _BLOCK_PAIRS)):
        rows = lookup.rows_of(pa.array([uid for uid, _ in block], pa.large_string()))
        yield from ((row, meta) for row, (_, meta) in zip(rows.tolist(), block, strict=True) if row >= 0)


def _labels(spec: Label, values: list[Any]) -> Ints:
    """Number of each pair's class, -1 for none."""
    texts = [None if value is None or isinstance(value, list | dict) else str(value) for value in values]
    classes = spec.classes or tuple(sorted({text for text in texts if text is not None}))
    number = {name: place for place, name in enumerate(classes)}
    labels = np.array([-1 if text is None else number.get(text, -1) for text in texts], np.int64)
    if (labels < 0).all():
        raise ShardError(f"label {spec.field!r}: no pair has one of the classes {', '.join(classes[:5])}")
    return labels


def _boxes(spec: BoxField, values: list[Any]) -> Boxes:
    """(N, M, 4) left, top, right, bottom in fractions of the picture; what a pair has too few of is NaN."""
    boxes = np.full((len(values), spec.max_regions, 4), np.nan, np.float32)
    for row, value in enumerate(values):
        if value:
            boxes[row, : len(value[: spec.max_regions])] = _corners(spec, value)
    return boxes


def _corners(spec: BoxField, value: Any) -> Boxes:
    try:
        given = np.array(value[: spec.max_regions], np.float32)
        if given.ndim != 2 or given.shape[1] != 4:
            raise ValueError("not four numbers a box")
    except (ValueError, TypeError) as error:
        shown = json.dumps(value)[:80]
        raise ShardError(
            f"metadata {spec.field!r}: {shown} is no list of boxes; write [[center x, center y, width, height], ...] "
            "in fractions of the picture"
        ) from error
    return np.concatenate([given[:, :2] - given[:, 2:] / 2, given[:, :2] + given[:, 2:] / 2], axis=1)
