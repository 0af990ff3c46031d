"""Progress events: rates a person can trust, nothing lost between writers, torn lines left out."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data import events as events_module
from data import storage
from data.errors import StorageError
from data.events import SILENT, Events, read_events


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(events_module, "time", clock)
    return clock


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    uri = str(tmp_path / "x.jsonl") if request.param == "local" else f"memory://events/{tmp_path.name}/x.jsonl"
    yield uri
    storage.remove(storage.parent_of(uri))


def told(uri: str, event: str) -> list[dict[str, Any]]:
    return [entry for entry in read_events(uri) if entry["event"] == event]


def test_events_come_back_in_order_with_stage_and_time(uri: str, clock: Clock) -> None:
    events = Events(uri, "curate")
    events.emit("started", artifact="a")
    clock.now += 1
    events.message("kept 3 of 4")
    events.metrics(7, {"loss": 0.5})
    events.emit("finished", seconds=1)
    found = read_events(uri)
    assert [entry["event"] for entry in found] == ["started", "message", "metrics", "finished"]
    assert {entry["stage"] for entry in found} == {"curate"}
    assert [entry["time"] for entry in found] == [1000.0, 1001.0, 1001.0, 1001.0]
    assert found[1]["message"] == "kept 3 of 4"
    assert (found[2]["step"], found[2]["values"]) == (7, {"loss": 0.5})


def test_rate_is_units_per_second_since_the_first_progress(tmp_path: Path, clock: Clock) -> None:
    uri = str(tmp_path / "x.jsonl")
    events = Events(uri, "train")
    for done in (100, 120, 160):  # a resumed stage begins at 100: those were not made now
        events.progress(done, 1000, "pairs")
        clock.now += 10
    assert [entry["rate"] for entry in told(uri, "progress")] == [None, 2.0, 3.0]


def test_a_new_series_has_a_rate_of_its_own(tmp_path: Path, clock: Clock) -> None:
    uri = str(tmp_path / "x.jsonl")
    events = Events(uri, "embed")
    for unit, dones in (("pairs", (0, 50)), ("pairs", (0, 10)), ("texts", (5, 25))):
        for done in dones:
            clock.now += 10
            events.progress(done, 50, unit)
    assert [entry["rate"] for entry in told(uri, "progress")] == [None, 5.0, None, 1.0, None, 2.0]


def test_a_changing_message_keeps_the_rate(tmp_path: Path, clock: Clock) -> None:
    uri = str(tmp_path / "x.jsonl")
    events = Events(uri, "train")
    for step in range(3):
        events.progress(step * 20, 100, "pairs", f"loss {3 - step}")
        clock.now += 10
    assert told(uri, "progress")[-1]["rate"] == 2.0


def test_progress_is_told_twice_a_second_at_most_and_the_last_always(uri: str, clock: Clock) -> None:
    events = Events(uri, "curate")
    for done in range(1, 1001):
        clock.now += 0.01
        events.progress(done, 1000, "pairs")
    events.flush()
    found = told(uri, "progress")
    assert len(found) <= 22
    assert found[-1]["done"] == found[-1]["total"] == 1000


@pytest.mark.parametrize("total", [3, None])
def test_track_yields_everything_and_ends_at_the_count(tmp_path: Path, clock: Clock, total: int | None) -> None:
    uri = str(tmp_path / "x.jsonl")
    assert list(Events(uri, "x").track("abc", total, "letters")) == ["a", "b", "c"]
    assert told(uri, "progress")[-1]["done"] == told(uri, "progress")[-1]["total"] == 3


def test_a_pickled_copy_adds_to_the_same_events(uri: str, clock: Clock) -> None:
    events = Events(uri, "train")
    events.emit("started")
    clock.now += 1
    copy = pickle.loads(pickle.dumps(events))
    copy.metrics(1, {"loss": 2.0})
    copy.flush()
    clock.now += 1
    events.emit("finished")
    assert [entry["event"] for entry in read_events(uri)] == ["started", "metrics", "finished"]


def test_a_second_attempt_keeps_what_the_first_told(uri: str, clock: Clock) -> None:
    for outcome in ("failed", "finished"):
        events = Events(uri, "train")
        events.emit("started")
        clock.now += 1
        events.emit(outcome)
    assert [entry["event"] for entry in read_events(uri)] == ["started", "failed", "started", "finished"]


def test_remote_puts_are_few_but_the_end_is_put_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    puts: list[bytes] = []
    monkeypatch.setattr(storage, "write_bytes", lambda _, content: puts.append(content))
    events = Events("memory://events/few/x.jsonl", "train")
    for second in range(20):
        events.message(f"second {second}")
        clock.now += 1
    assert len(puts) == 4
    events.emit("finished")
    assert len(puts) == 5
    assert len(puts[-1].splitlines()) == 21


@pytest.mark.parametrize("torn", ['{"time": 1, "sta', '{"time": 1, "values": {"a": 1}', "", "\x00\x00"])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    uri = str(tmp_path / "x.jsonl")
    Events(uri, "x").emit("started")
    with Path(uri).open("a") as stream:
        stream.write(torn)
    assert [entry["event"] for entry in read_events(uri)] == ["started"]


def test_no_events_are_no_events(uri: str) -> None:
    assert read_events(uri) == []


def test_events_are_json_lines_even_of_odd_values(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.jsonl")
    Events(uri, "x").emit("message", message="two\nlines", where=tmp_path)
    (line,) = Path(uri).read_text().splitlines()
    assert json.loads(line)["where"] == str(tmp_path)


def test_silent_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(SILENT.track([1, 2], 2, "x")) == [1, 2]
    SILENT.emit("finished")
    SILENT.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_hold_events_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        Events(str(tmp_path / "file" / "x.jsonl"), "x").emit("started")
