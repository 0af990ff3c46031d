"""Events in, lines and bars out."""

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data.events import Events
from pipelines.render import EventTail, LiveBars, PlainLines, make_renderer, progress_text

STORY: list[dict[str, Any]] = [
    {"event": "started", "artifact": "/r/pretrain-0"},
    {"event": "progress", "done": 0, "total": 1000, "unit": "pairs", "rate": None, "message": ""},
    {"event": "metrics", "step": 1, "values": {"loss": 3.14159, "rate": 2.0}},
    {"event": "progress", "done": 512, "total": 1000, "unit": "pairs", "rate": 128.0, "message": "warm"},
    {"event": "message", "message": "a [note] to read"},
    {"event": "finished", "artifact": "/r/pretrain-0", "seconds": 75.0, "counts": {"pairs": 1000, "dropped": 0}},
]


def told(renderer_class: type[PlainLines] | type[LiveBars], terminal: bool, story: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    with renderer_class(console) as renderer:
        for event in story:
            renderer.show({"time": 0.0, "stage": "pretrain", **event})
    return stream.getvalue()


def test_plain_lines_are_few() -> None:
    lines = [line.split(maxsplit=1) for line in told(PlainLines, terminal=False, story=STORY).splitlines()]
    assert lines == [
        ["pretrain", "started"],
        ["pretrain", "a [note] to read"],
        ["pretrain", "done in 1 min 15 s: 1,000 pairs"],
    ]


def test_plain_progress_comes_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([float(second) for second in range(0, 60, 3)])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = [{"event": "progress", "done": n, "total": 100, "unit": "pairs", "rate": 2.0} for n in range(1, 13)]
    lines = told(PlainLines, terminal=False, story=[STORY[0], *progress]).splitlines()
    assert len(lines) == 1 + 3  # started, then after 12, 24 and 36 seconds
    assert lines[1].split(maxsplit=1)[1] == "4/100 pairs  2 pairs/s  48 s left"


def test_bars_show_amount_rate_and_time_left() -> None:
    text = told(LiveBars, terminal=True, story=STORY[:4])
    assert "512/1,000 pairs  128 pairs/s  3.8 s left  warm" in text
    assert "done in 1 min 15 s: 1,000 pairs" in told(LiveBars, terminal=True, story=STORY)


@pytest.mark.parametrize("event", [{"event": "failed", "error": "ShardError", "message": "x"}, {"event": "reused"}])
def test_other_endings(event: dict[str, Any]) -> None:
    for renderer, terminal in ((PlainLines, False), (LiveBars, True)):
        text = told(renderer, terminal=terminal, story=[event])
        assert "failed: ShardError" in text or "reused" in text


def test_bars_only_on_a_terminal() -> None:
    assert isinstance(make_renderer(Console(file=io.StringIO(), force_terminal=False)), PlainLines)
    assert isinstance(make_renderer(Console(file=io.StringIO(), force_terminal=True)), LiveBars)


def test_progress_without_a_total_or_a_rate() -> None:
    assert progress_text({"done": 3, "total": None, "unit": "captions", "rate": None}) == "3 captions"
    assert progress_text({"done": 5, "total": 5, "unit": "x", "rate": 0.25}) == "5/5 x  0.25 x/s"


def test_a_tail_reads_each_event_once_and_nothing_old(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    events = Events(str(path), "a")
    events.message("from an earlier run")
    tail = EventTail(str(path), time.time())
    assert list(tail.read()) == []
    events.message("one")
    with path.open("a") as stream:
        stream.write('{"event": "tor')
    assert [event["message"] for event in tail.read()] == ["one"]
    with path.open("a") as stream:
        stream.write('n"}\n')
    assert [event["event"] for event in tail.read()] == ["torn"]
    assert list(tail.read()) == []


def test_a_tail_waits_for_its_file(tmp_path: Path) -> None:
    tail = EventTail(str(tmp_path / "late" / "a.jsonl"), 0.0)
    assert list(tail.read()) == []
    Events(str(tmp_path / "late" / "a.jsonl"), "a").message("here")
    assert len(list(tail.read())) == 1


def test_a_tail_of_objects_that_are_put_again_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.lines._REMOTE_SECONDS", 0.0)
    monkeypatch.setattr("data.events._REMOTE_PUT_SECONDS", 0.0)
    uri = "memory://bucket/.events/a.jsonl"
    Events(uri, "a").message("from an earlier run")
    tail = EventTail(uri, time.time() + 0.002)
    time.sleep(0.005)
    first, second = Events(uri, "a"), Events(uri, "a")  # two processes of one stage
    for events, words in ((first, "one"), (second, "two"), (first, "three")):
        events.message(words)
        assert [event["message"] for event in tail.read()] == [words]
    assert list(tail.read()) == []
