"""Splits and selections: sorted by uid whatever the order they were made in, so that equal choices are equal bytes."""

from pathlib import Path

import pyarrow as pa
import pytest

from data import selection, storage
from data.artifacts import Artifact, Record
from data.selection import ENTRY_SCHEMA, SELECTION_SCHEMA, SPLIT_SCHEMA


def artifact(uri: Path | str) -> Artifact:
    return Artifact(str(uri), Record(kind="x", stage="x", revision=1, fingerprint="0" * 64, config={}))


def split_of(rows: dict[str, str]) -> pa.Table:
    return pa.table({"uid": list(rows), "split": list(rows.values())}, SPLIT_SCHEMA)


def pairs_of(rows: list[tuple[str, bool, float, float, str, list[int]]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SELECTION_SCHEMA.names, row, strict=True)) for row in rows], SELECTION_SCHEMA)


PAIRS = [("c", True, 1.0, 0.3, "", [1]), ("a", True, 0.5, 0.2, "", [0, 2]), ("b", False, 0.1, 0.9, "drawn_out", [0])]
ENTRIES = pa.Table.from_pylist([{"id": 0, "entry": "dog", "source": "unigrams", "count": 2, "p": 0.5}], ENTRY_SCHEMA)


def test_a_split_comes_back_sorted_and_by_name(tmp_path: Path) -> None:
    selection.write_split(str(tmp_path), split_of({"c": "train", "a": "vendor", "b": "concept", "d": "train"}))
    split = selection.read_split(artifact(tmp_path))
    assert split["uid"].to_pylist() == ["a", "b", "c", "d"]
    assert selection.uids_of(split, ("train",)) == ["c", "d"]
    assert selection.uids_of(split, ("vendor", "concept")) == ["a", "b"]
    assert selection.uids_of(split, ("none",)) == selection.uids_of(split, ()) == []


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_selection_keeps_what_it_dropped_and_why(tmp_path: Path, place: str) -> None:
    uri = str(tmp_path) if place == "local" else f"memory://selection/{tmp_path.name}"
    selection.write_selection(uri, pairs_of(PAIRS), ENTRIES)
    found = selection.read_selection(artifact(uri))
    assert found.schema.equals(SELECTION_SCHEMA)
    assert found.to_pylist()[1] == {
        "uid": "b", "kept": False, "p_keep": 0.1, "draw": 0.9, "reason": "drawn_out", "entries": [0],
    }  # fmt: skip
    assert selection.kept_uids(artifact(uri)) == ["a", "c"]
    assert selection.read_entries(artifact(uri)).to_pylist() == ENTRIES.to_pylist()


def test_equal_choices_in_another_order_are_equal_bytes(tmp_path: Path) -> None:
    digests = []
    for name, rows in (("one", PAIRS), ("two", PAIRS[::-1])):
        selection.write_selection(str(tmp_path / name), pairs_of(rows), ENTRIES)
        selection.write_split(str(tmp_path / name), split_of({row[0]: "train" for row in rows}))
        digests.append([storage.sha256(str(tmp_path / name / f"{file}.parquet")) for file in ("selection", "split")])
    assert digests[0] == digests[1]


def test_columns_come_in_the_schema_s_order(tmp_path: Path) -> None:
    turned = pairs_of(PAIRS).select(SELECTION_SCHEMA.names[::-1])
    selection.write_selection(str(tmp_path), turned, ENTRIES)
    assert selection.read_selection(artifact(tmp_path)).schema.names == SELECTION_SCHEMA.names
