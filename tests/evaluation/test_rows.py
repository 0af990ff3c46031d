"""Rows: written and read back whole, drops last and with their reason, columns of one length."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.rows import Rows, file_name, group_ids, read_rows, write_rows


def made(**changes):
    fields = {
        "ids": ["b", "a", "c"], "clusters": ["y", "x", "y"], "labels": ["cat", "dog", "cat"],
        "predictions": ["cat", "cat", "dog"],
        "numbers": {
            "rank": np.array([1, 2, 3]), "ties": np.array([0, 2, 1]), "correct": np.array([1, 0, 0]),
            "confidence": np.array([0.25, 1 / 3, 1e-300]), "seen": np.array([True, False, True]),
        },
        "dropped": {"z": "no_label", "d": "not_embedded"},
    }  # fmt: skip
    return Rows(**(fields | changes))


def test_rows_come_back_as_they_were(tmp_path):
    uri = str(tmp_path / "rows.parquet")
    rows = made(direction="image_to_text")
    write_rows(uri, rows)
    back = read_rows(uri, "image_to_text")
    for name in ("ids", "clusters", "labels", "predictions", "dropped", "direction"):
        assert getattr(back, name) == getattr(rows, name), name
    assert back.numbers.keys() == rows.numbers.keys()
    for name, column in rows.numbers.items():
        assert back.numbers[name].dtype == column.dtype, name
        assert (back.numbers[name] == column).all(), name


def test_dropped_samples_stand_last_and_have_no_numbers(tmp_path):
    uri = str(tmp_path / "rows.parquet")
    write_rows(uri, made())
    table = pq.read_table(uri)
    assert table["sample"].to_pylist() == ["b", "a", "c", "d", "z"]
    assert table["dropped"].to_pylist() == ["", "", "", "not_embedded", "no_label"]
    for name in set(table.column_names) - {"sample", "dropped"}:
        assert table[name].null_count == 2, name
        assert table[name].slice(3).null_count == 2, name


def test_rows_without_drops_have_no_nulls(tmp_path):
    uri = str(tmp_path / "rows.parquet")
    write_rows(uri, made(dropped={}))
    assert all(column.null_count == 0 for column in pq.read_table(uri).columns)
    assert read_rows(uri).dropped == {}


def test_equal_rows_are_equal_bytes(tmp_path):
    for name, dropped in (("a", {"z": "no_label", "d": "no_label"}), ("b", {"d": "no_label", "z": "no_label"})):
        write_rows(str(tmp_path / name), made(dropped=dropped))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", ["clusters", "labels", "predictions"])
def test_a_column_of_another_length_is_refused(name):
    with pytest.raises(AssertionError, match=r"other lengths than 3: .*2"):
        made(**{name: ["x", "y"]})
    with pytest.raises(AssertionError, match="'rank': 2"):
        made(numbers={"rank": np.array([1, 2])})


@pytest.mark.parametrize("name", ["sample", "cluster", "label", "prediction", "dropped"])
def test_a_number_cannot_take_the_place_of_a_column_that_every_row_has(name):
    with pytest.raises(AssertionError, match=name):
        made(numbers={name: np.array([1, 2, 3])})


def test_clusters_are_numbered_by_name_whatever_the_order():
    assert made().clusters_Q.tolist() == [1, 0, 1]
    assert group_ids(["b", "a", "10", "9", "b"]).tolist() == [3, 2, 0, 1, 3]


def test_samples_with_a_tie_are_counted_once():
    assert made().ties == 2
    assert made(numbers={"rank": np.array([1, 2, 3])}).ties == 0


def test_a_file_is_named_after_all_that_tells_rows_apart():
    names = {
        file_name("emoji", "test", "captions", "image_to_text"), file_name("emoji", "test", "captions"),
        file_name("emoji", "val", "captions"), file_name("textile", "test", "captions"),
        file_name("emoji", "test", "captions", baseline="majority"),
        file_name("emoji", "test", "captions", "image_to_text", "majority"),
    }  # fmt: skip
    assert len(names) == 6
    assert file_name("emoji", "test", "z", "", "majority") == "emoji/test/z.majority.parquet"
