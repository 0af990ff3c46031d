"""A few pictures for W&B that a report's final model judged, and what it said: only those that may be shown.

Which vendors' pictures may be shown stands in the report's config; pictures of others are never opened.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps, UnidentifiedImageError

from data import storage
from data.artifacts import Artifact
from data.shards import ShardSet, read_parquet

SIDE = 64
_MOST_TASKS, _RIGHT, _WRONG = 6, 2, 6  # at most 48 pictures: some 200 kB
COLUMNS = ("picture", "set", "split", "task", "direction", "uid", "label", "prediction", "right", "rank")


class Picture(NamedTuple):
    """A thumbnail in a table."""

    uid: str
    png: bytes


def examples(report: Artifact) -> list[list[Any]]:
    """Rows of `COLUMNS`: of every task on pictures some that the model got wrong, and a few that it got right."""
    final = (report.record.metrics.get("headline") or {}).get("final")
    if f"evaluations.{final}" not in report.record.parents:
        return []
    evaluation = report.parent(f"evaluations.{final}")
    entries = storage.read_json(evaluation.at("report.json"))["rows"]
    # captions ask for pictures there: what is asked about is no picture
    files = {one["file"]: one for one in entries if not one["baseline"] and one["direction"] != "text_to_image"}
    rows: list[list[Any]] = []
    for file, entry in list(files.items()):
        if len({row[1:5] for row in map(tuple, rows)}) < _MOST_TASKS:
            rows += _of_task(report, evaluation, file, entry)
    return rows


def _of_task(report: Artifact, evaluation: Artifact, file: str, entry: dict[str, Any]) -> list[list[Any]]:
    role = f"sets.{entry['set']}.pairs"
    table = read_parquet(evaluation.at("rows", file))
    if role not in report.record.parents or "correct" not in table.column_names:
        return []
    vendors = report.record.config.get("sets", {}).get(entry["set"], {}).get("vendors", ())
    asked = [row for row in table.to_pylist() if not row["dropped"]]
    pictures = _Shown(ShardSet(report.parent(role)), frozenset(vendors))
    wrong = _some((row for row in asked if row["correct"] == 0), pictures, _WRONG)
    right = _some((row for row in asked if row["correct"] == 1), pictures, _RIGHT)
    where = [entry[name] for name in ("set", "split", "task", "direction")]
    return [
        [picture, *where, picture.uid, row["label"], row["prediction"], row["correct"] == 1, row.get("rank")]
        for row, picture in [*wrong, *right]
    ]


def _some(rows: Iterable[dict[str, Any]], pictures: "_Shown", most: int) -> list[tuple[dict[str, Any], Picture]]:
    """The first rows, in an order by a hash of their name, whose pictures may be shown and can be decoded."""
    found: list[tuple[dict[str, Any], Picture]] = []
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["sample"].encode()).digest()):
        if len(found) == most:
            break
        picture = pictures.get(row["sample"])
        if picture:
            found.append((row, picture))
    return found


class _Shown:
    """Pictures of one shard set by uid, of the vendors that may be shown (none named: all)."""

    def __init__(self, pairs: ShardSet, vendors: frozenset[str]) -> None:
        self._pairs, self._vendors = pairs, vendors
        self._index = pairs.index()

    def get(self, uid: str) -> Picture | None:
        rows = self._index.filter(pc.equal(self._index["uid"], pa.scalar(uid, self._index["uid"].type))).to_pylist()
        if not rows or (self._vendors and json.loads(rows[0]["meta"] or "{}").get("vendor") not in self._vendors):
            return None
        png = _thumbnail(self._pairs.read_image(rows[0]["shard"], rows[0]["offset"], rows[0]["bytes"]))
        return Picture(uid, png) if png else None


def _thumbnail(content: bytes) -> bytes | None:
    """A small PNG on white; None for a picture that cannot be decoded, which ingest has counted."""
    try:
        with Image.open(io.BytesIO(content)) as stored:
            picture = ImageOps.contain(stored.convert("RGBA"), (SIDE, SIDE))
    except (OSError, ValueError, UnidentifiedImageError):
        return None
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    sink = io.BytesIO()
    flat.save(sink, "PNG", optimize=True)
    return sink.getvalue()
