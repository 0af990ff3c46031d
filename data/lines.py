"""What events say in words, and the new ones of a stage as they come: for a terminal, a page, and a pod's log."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data import storage
from data.events import EventLog

_REMOTE_SECONDS = 5.0
_LINE_SECONDS = 10.0
ENDED = ("finished", "failed", "reused")


class EventTail:
    """Yields the events that were added to one stage's file since `since` (time), each once."""

    def __init__(self, uri: str, since: float) -> None:
        self.uri, self.since = uri, round(since, 3)  # events give their time in milliseconds
        self._offset = 0
        self._seen: set[str] = set()
        self._log = EventLog(uri)
        self._next_read = 0.0
        if storage.is_local(uri) and Path(uri).exists():
            self._offset = Path(uri).stat().st_size

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield new events; a line that is not complete yet waits for the next call."""
        if storage.is_local(self.uri):
            yield from self._read_local()
        elif time.monotonic() >= self._next_read:
            self._next_read = time.monotonic() + _REMOTE_SECONDS
            yield from unseen(self._log.read(), self.since, self._seen)

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


def duration(seconds: float | None) -> str:
    """Seconds in a person's units."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counts_text(counts: Mapping[str, int], most: int) -> str:
    """The counts that say most: what is there before what was dropped, nothing that is 0."""
    ranked = sorted((what.startswith("dropped"), number) for number, what in enumerate(counts) if counts[what])
    names = [list(counts)[number] for _, number in ranked]
    return ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names[:most])


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


class Lines:
    """One line when a stage starts and ends, and at most one every ten seconds between."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """`write` gets each line."""
        self._write = write
        self._last: dict[str, float] = {}
        self._numbers: dict[str, str] = {}

    def show(self, event: Mapping[str, Any]) -> None:
        """Write the line of an event, if it gets one."""
        stage, kind, now = event["stage"], event["event"], time.monotonic()
        if kind == "metrics":
            self._numbers[stage] = metrics_text(event["values"])
        elif kind == "started":
            self._last[stage] = now
            self._line(stage, "started")
        elif kind in ENDED:
            self._line(stage, ending_text(event))
        elif kind == "message":
            self._line(stage, event["message"])
        elif kind == "progress" and now - self._last.get(stage, 0.0) >= _LINE_SECONDS:
            self._last[stage] = now
            words = [progress_text(event), self._numbers.get(stage, ""), event.get("message", "")]
            self._line(stage, "  ".join(word for word in words if word))

    def _line(self, stage: str, text: str) -> None:
        self._write(f"{stage:<20} {text}")
