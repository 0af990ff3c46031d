"""Draws stages from their events: live bars on a terminal, plain lines without one. The only place that draws."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.text import Text

from data import storage
from data.events import read_events
from pipelines.plan import counts_text, duration

_LINE_SECONDS = 10.0
_REMOTE_SECONDS = 5.0
_ENDED = ("finished", "failed", "reused")


class EventTail:
    """Yields the events that were added to one stage's file since `since` (time), each once."""

    def __init__(self, uri: str, since: float) -> None:
        self.uri, self.since = uri, round(since, 3)  # events give their time in milliseconds
        self._offset = 0
        self._seen: set[str] = set()
        self._next_read = 0.0
        if storage.is_local(uri) and Path(uri).exists():
            self._offset = Path(uri).stat().st_size

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield new events; a line that is not complete yet waits for the next call."""
        if storage.is_local(self.uri):
            yield from self._read_local()
        elif time.monotonic() >= self._next_read:
            self._next_read = time.monotonic() + _REMOTE_SECONDS
            yield from unseen(read_events(self.uri), self.since, self._seen)

    def _read_local(self) -> Iterator[dict[str, Any]]:
        try:
            with Path(self.uri).open("rb") as stream:
                stream.seek(self._offset)
                content = stream.read()
        except FileNotFoundError:
            return
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            if line.startswith(b"{") and line.endswith(b"}"):
                yield json.loads(line)


def unseen(events: list[dict[str, Any]], since: float, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the events from `since` on that are not in `seen`, and add them; one of another process may come late."""
    for event in events:
        text = json.dumps(event, sort_keys=True)
        if event["time"] >= since and text not in seen:
            seen.add(text)
            yield event


class Renderer(Protocol):
    """Shows one event at a time."""

    def show(self, event: Mapping[str, Any]) -> None:
        """Show an event."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def amount(value: float) -> str:
    """A number with as many digits as say something."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def progress_text(event: Mapping[str, Any]) -> str:
    """`1,024/9,000 pairs  510 pairs/s  15.6 s left`."""
    done, total, unit, rate = event["done"], event.get("total"), event["unit"], event.get("rate")
    parts = [f"{amount(done)}/{amount(total)} {unit}" if total else f"{amount(done)} {unit}"]
    if rate:
        parts.append(f"{amount(rate)} {unit}/s")
        if total and total > done:
            parts.append(f"{duration((total - done) / rate)} left")
    return "  ".join(parts)


def ending_text(event: Mapping[str, Any]) -> str:
    """What a stage's last event says."""
    if event["event"] == "reused":
        return "reused"
    if event["event"] == "failed":
        return f"failed: {event.get('error', '')}"
    counts = counts_text(event.get("counts", {}), most=4)
    return f"done in {duration(event['seconds'])}" + (f": {counts}" if counts else "")


def metrics_text(values: Mapping[str, float]) -> str:
    """The loss, or the first number."""
    if not values:
        return ""
    name = "loss" if "loss" in values else next(iter(values))
    return f"{name} {values[name]:.4g}"


class PlainLines:
    """One line when a stage starts and ends, and at most one every ten seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, float] = {}
        self._numbers: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, event: Mapping[str, Any]) -> None:
        """Print the line of an event, if it gets one."""
        stage, kind, now = event["stage"], event["event"], time.monotonic()
        if kind == "metrics":
            self._numbers[stage] = metrics_text(event["values"])
        elif kind == "started":
            self._last[stage] = now
            self._line(stage, "started")
        elif kind in _ENDED:
            self._line(stage, ending_text(event))
        elif kind == "message":
            self._line(stage, event["message"])
        elif kind == "progress" and now - self._last.get(stage, 0.0) >= _LINE_SECONDS:
            self._last[stage] = now
            words = [progress_text(event), self._numbers.get(stage, ""), event.get("message", "")]
            self._line(stage, "  ".join(word for word in words if word))

    def _line(self, stage: str, text: str) -> None:
        self._console.print(f"{stage:<20} {text}", markup=False, highlight=False, soft_wrap=True)


class _Columns(ProgressColumn):
    """Amount, rate and time left; the stage's own words behind."""

    def render(self, task: Any) -> Text:
        return Text(f"{task.fields['text']}  {task.fields['note']}".rstrip(), overflow="ellipsis", no_wrap=True)


class LiveBars:
    """A bar a stage, for a terminal."""

    def __init__(self, console: Console) -> None:
        name, mark = TextColumn("{task.description:<18}"), TextColumn("{task.fields[mark]}")
        self._progress = Progress(mark, name, BarColumn(24), _Columns(), console=console, refresh_per_second=5)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Move a bar."""
        stage, kind = event["stage"], event["event"]
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None, mark="·", text="", note="")
        task = self._tasks[stage]
        if kind == "progress":
            note = {"note": event["message"]} if event.get("message") else {}
            self._progress.update(
                task, completed=event["done"], total=event.get("total"), text=progress_text(event), mark="▸", **note
            )
        elif kind == "metrics":
            self._progress.update(task, note=metrics_text(event["values"]))
        elif kind == "message":
            self._progress.update(task, note=event["message"])
        elif kind in _ENDED:
            mark = "[red]✗[/]" if kind == "failed" else "[green]✓[/]"
            done: dict[str, Any] = {} if kind == "failed" else {"total": 1, "completed": 1}
            self._progress.update(task, mark=mark, text=ending_text(event), note="", **done)


def make_renderer(console: Console) -> Renderer:
    """Bars where they can be drawn, lines elsewhere."""
    return LiveBars(console) if console.is_terminal and not console.is_dumb_terminal else PlainLines(console)
