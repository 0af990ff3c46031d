"""Counts of entries, added up in a tree: the same for any sharding, without a file more in memory than the fan-in."""

from pathlib import Path

import numpy as np
import pytest

from data import storage
from data.artifacts import Output
from data.curation import counts
from data.curation.counts import total_counts, write_counts
from data.events import Events
from data.place import Place
from data.stage import Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    out = Output(str(tmp_path), "selection", "0" * 64)
    return Work("selection", {}, out, Place(root=str(tmp_path)), Events(None, "selection"))


def write(work: Work, step: str, ids_by_shard: list[list[int]]) -> list[str]:
    names = [f"{number:05d}" for number in range(len(ids_by_shard))]
    for name, ids in zip(names, ids_by_shard, strict=True):
        write_counts(storage.join(work.out.state_uri, step), name, np.array(ids, np.int32))
    return names


def test_counts_of_two_shards_are_added_entry_by_entry(work: Work) -> None:
    names = write(work, "count", [[0, 3, 3, 5], [3, 0]])
    assert total_counts(work, "count", names, 7).tolist() == [2, 0, 0, 3, 0, 1, 0]


def test_shards_without_a_match_and_pools_without_a_shard_count_nothing(work: Work) -> None:
    assert total_counts(work, "count", write(work, "count", [[], [1], []]), 3).tolist() == [0, 1, 0]
    assert total_counts(work, "none", [], 3).tolist() == [0, 0, 0]
    assert total_counts(work, "alone", write(work, "alone", [[2, 2]]), 3).tolist() == [0, 0, 2]
    assert total_counts(work, "empty", write(work, "empty", [[]]), 0).tolist() == []


def test_a_tree_of_many_levels_is_the_plain_count(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    shards = [random.integers(0, 40, random.integers(0, 30)).tolist() for _ in range(23)]
    plain = np.bincount(np.concatenate([np.array(ids, np.int64) for ids in shards]), minlength=40)
    monkeypatch.setattr(counts, "_FAN_IN", 2)
    assert total_counts(work, "deep", write(work, "deep", shards), 40).tolist() == plain.tolist()
    resharded = [[one for ids in shards[at : at + 5] for one in ids] for at in range(0, 23, 5)][::-1]
    assert total_counts(work, "other", write(work, "other", resharded), 40).tolist() == plain.tolist()


def test_a_tree_holds_no_more_files_than_its_fan_in(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    added, dense = [], counts._dense

    def watched(uris: list[str], num_entries: int) -> np.ndarray:
        added.append(len(uris))
        return dense(uris, num_entries)

    monkeypatch.setattr(counts, "_FAN_IN", 3)
    monkeypatch.setattr(counts, "_dense", watched)
    total_counts(work, "count", write(work, "count", [[0]] * 10), 1)
    assert added == [3, 3, 3, 1, 3, 1, 2, 1]  # 10 files -> 4 -> 2 -> 1, which is read


def test_counts_beyond_32_bits_do_not_wrap(work: Work) -> None:
    folder = storage.join(work.out.state_uri, "count")
    for name in ("a", "b"):
        counts._write(storage.join(folder, f"{name}.parquet"), np.array([1]), np.array([2**31]))
    assert total_counts(work, "count", ["a", "b"], 2).tolist() == [0, 2**32]


def test_a_step_that_was_counted_goes_on_at_the_first_missing_sum(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_FAN_IN", 2)
    names = write(work, "count", [[0], [0, 1], [1], [1]])
    first = total_counts(work, "count", names, 2).tolist()
    sums = storage.join(work.out.state_uri, "count", "sum-0")
    before = {name: storage.sha256(storage.join(sums, name)) for name, _ in storage.list_files(sums)}
    storage.remove(storage.join(sums, "000001.parquet"))
    storage.remove(storage.join(work.out.state_uri, "count-sum-0", "000001.json"))
    assert total_counts(work, "count", names, 2).tolist() == first == [2, 3]
    assert {name: storage.sha256(storage.join(sums, name)) for name, _ in storage.list_files(sums)} == before
