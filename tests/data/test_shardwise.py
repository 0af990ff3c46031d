"""Work shard by shard: summaries in the shards' order, what is finished is not done again, errors arrive as raised."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data import storage
from data.artifacts import Output
from data.errors import ShardError, facts_of
from data.events import Events, read_events
from data.place import Place
from data.shardwise import Summary, _Task, each_shard
from data.stage import Work

_NAMES = ["b", "a", "folder/c"]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    out = Output(str(tmp_path), "stage", "0" * 64)
    return Work("stage", {}, out, Place(root=str(tmp_path)), Events(out.events_uri, "stage"))


def writer(work: Work, called: list[int], fails: int | None = None) -> Callable[[int], Summary]:
    def do(number: int) -> Summary:
        called.append(number)
        if number == fails:
            raise ShardError(f"shard {number}: is bad; mend it")
        storage.write_bytes(work.out.at(f"{number}.bin"), bytes([number]))
        return {"number": number}

    return do


def test_summaries_come_in_the_order_of_the_names(work: Work) -> None:
    called: list[int] = []
    summaries = each_shard(work, "step", _NAMES, writer(work, called))
    assert summaries == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert called == [0, 1, 2]


def test_a_finished_shard_is_not_done_again(work: Work) -> None:
    called: list[int] = []
    first = each_shard(work, "step", _NAMES, writer(work, called))
    assert each_shard(work, "step", _NAMES, writer(work, called)) == first
    assert called == [0, 1, 2]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_stage_that_ended_early_goes_on_at_the_first_missing_shard(work: Work, failing: int) -> None:
    called: list[int] = []
    with pytest.raises(ShardError, match=rf"^shard {failing}: is bad; mend it$"):
        each_shard(work, "step", _NAMES, writer(work, called, fails=failing))
    assert called == list(range(failing + 1))
    called.clear()
    assert [summary["number"] for summary in each_shard(work, "step", _NAMES, writer(work, called))] == [0, 1, 2]
    assert called == list(range(failing, 3))
    assert [name for name, _ in storage.list_files(work.out.uri)] == ["0.bin", "1.bin", "2.bin"]


def test_shards_that_are_missing_in_the_middle_are_the_only_ones_done(work: Work) -> None:
    called: list[int] = []
    each_shard(work, "step", _NAMES, writer(work, called))
    storage.remove(storage.join(work.out.state_uri, "step", "a.json"))
    called.clear()
    each_shard(work, "step", _NAMES, writer(work, called))
    assert called == [1]


def test_steps_do_not_know_each_others_shards(work: Work) -> None:
    called: list[int] = []
    each_shard(work, "step", _NAMES, writer(work, called))
    each_shard(work, "step-2", _NAMES, writer(work, called))
    assert called == [0, 1, 2, 0, 1, 2]


def test_what_a_kill_left_half_written_is_no_finished_shard(work: Work) -> None:
    torn = Path(work.out.state_uri, "step", ".a.json.0a1b2c3d.tmp")
    torn.parent.mkdir(parents=True)
    torn.write_text('{"num')
    called: list[int] = []
    each_shard(work, "step", _NAMES, writer(work, called))
    assert called == [0, 1, 2]


def test_no_shards_are_no_work(work: Work) -> None:
    assert each_shard(work, "step", [], writer(work, [])) == []


def test_a_defect_of_ours_keeps_its_type(work: Work) -> None:
    def do(number: int) -> Summary:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        each_shard(work, "step", _NAMES, do)


def test_progress_counts_what_an_earlier_run_did(work: Work) -> None:
    with pytest.raises(ShardError):
        each_shard(work, "step", _NAMES, writer(work, [], fails=1))
    again = work._replace(events=Events(storage.join(work.place.root, "again.jsonl"), "stage"))
    each_shard(again, "step", _NAMES, writer(work, []))
    told = [event for event in read_events(str(again.events.uri)) if event["event"] == "progress"]
    assert {(event["total"], event["unit"]) for event in told} == {(3, "shards")}
    assert (told[0]["done"], told[-1]["done"]) == (1, 3)


class _Death(BaseException):
    """What the process would not survive."""


def test_a_shard_that_ends_every_worker_is_named_and_another_run_tries_again(tmp_path: Path) -> None:
    uris = [str(tmp_path / f"{name}.json") for name in "ab"]
    deaths: list[int] = []

    def do(number: int) -> dict[str, int]:
        if number == 1 and len(deaths) < 6:
            deaths.append(number)
            raise _Death
        return {"n": number}

    task = _Task(do, ["a", "b"], uris)
    assert task.on_worker(0, "first") == 0
    for _ in range(5):
        with pytest.raises(_Death):
            task.on_worker(1, "first")
    with pytest.raises(ShardError, match="shard b: 5 workers died at it"):
        task.on_worker(1, "first")
    with pytest.raises(_Death):
        task.on_worker(1, "second")
    assert task.on_worker(1, "second") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "b.json.first"]


@pytest.mark.parametrize(("unit", "what"), [("shards", "shard"), ("pieces", "piece")])
def test_an_error_says_in_which_shard_it_happened_defects_too(work: Work, unit: str, what: str) -> None:
    def do(number: int) -> Summary:
        return {"number": 1 // (number - 1)}

    with pytest.raises(ZeroDivisionError) as caught:
        each_shard(work, "step", _NAMES, do, unit=unit)
    assert facts_of(caught.value) == {what: "a"}
