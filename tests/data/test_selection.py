"""Splits and selections: one file a shard, read back as one table, sorted by uid."""

from pathlib import Path

import pyarrow as pa
import pytest

from data import selection
from data.artifacts import Artifact, Record
from data.selection import ENTRY_SCHEMA, SELECTION_SCHEMA, SPLIT_SCHEMA


def artifact(uri: Path | str) -> Artifact:
    return Artifact(str(uri), Record(kind="x", stage="x", revision=1, fingerprint="0" * 64, config={}))


def split_of(rows: dict[str, str]) -> pa.Table:
    return pa.table({"uid": list(rows), "split": list(rows.values())}, SPLIT_SCHEMA)


def pairs_of(rows: list[tuple[str, bool, float, float, str]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SELECTION_SCHEMA.names, row, strict=True)) for row in rows], SELECTION_SCHEMA)


PAIRS = [("c", True, 1.0, 0.3, ""), ("a", True, 0.5, 0.2, ""), ("b", False, 0.1, 0.9, "drawn_out")]
ENTRY = {"id": 0, "entry": "dog", "source": "unigrams", "language": "en", "count": 2, "kept": 1, "p": 0.5}


def test_a_split_comes_back_sorted_and_by_name(tmp_path: Path) -> None:
    selection.write_split(str(tmp_path), split_of({"c": "train", "a": "vendor"}), "00000")
    selection.write_split(str(tmp_path), split_of({"b": "concept", "d": "train"}), "more/00001")
    split = selection.read_split(artifact(tmp_path))
    assert split["uid"].to_pylist() == ["a", "b", "c", "d"]
    assert selection.uids_of(split, ("train",)) == ["c", "d"]
    assert selection.uids_of(split, ("vendor", "concept")) == ["a", "b"]
    assert selection.uids_of(split, ("none",)) == selection.uids_of(split, ()) == []


def test_membership_of_one_shard_keeps_its_order(tmp_path: Path) -> None:
    selection.write_split(str(tmp_path), split_of({"c": "train", "a": "vendor", "b": "test"}), "s")
    assert selection.in_splits(artifact(tmp_path), "s", ("train", "test")).to_pylist() == [True, False, True]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_selection_keeps_what_it_dropped_and_why(tmp_path: Path, place: str) -> None:
    uri = str(tmp_path) if place == "local" else f"memory://selection/{tmp_path.name}"
    selection.write_selection(uri, pairs_of(PAIRS[:1]), "00000")
    selection.write_selection(uri, pairs_of(PAIRS[1:]), "00001")
    selection.write_entries(uri, pa.Table.from_pylist([ENTRY], ENTRY_SCHEMA))
    found = selection.read_selection(artifact(uri))
    assert found.schema.equals(SELECTION_SCHEMA)
    assert found.to_pylist()[1] == {"uid": "b", "kept": False, "p_keep": 0.1, "draw": 0.9, "reason": "drawn_out"}
    assert selection.kept_uids(artifact(uri)).to_pylist() == ["a", "c"]
    assert selection.read_entries(artifact(uri)).to_pylist() == [ENTRY]


def test_columns_come_in_the_schema_s_order(tmp_path: Path) -> None:
    turned = pairs_of(PAIRS).select(SELECTION_SCHEMA.names[::-1])
    selection.write_selection(str(tmp_path), turned)
    assert selection.read_selection(artifact(tmp_path)).schema.names == SELECTION_SCHEMA.names
