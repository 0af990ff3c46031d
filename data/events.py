"""Progress as events: stages say what they did, appended as JSON lines; one renderer elsewhere draws it.

A stage writes only here. On a path the file is appended, by any number of processes. Objects cannot be appended to:
there every writer puts its own small object again every few seconds, and readers merge them by time.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from data import storage

T = TypeVar("T")
_REMOTE_PUT_SECONDS = 5.0
_PROGRESS_SECONDS = 0.5
_ENDS = ("finished", "failed", "reused")


class Events:
    """Appends events of one stage to a sink. Safe to pickle: a copy in another process adds to the same events.

    Event fields: `time`, `stage`, `event` (started | progress | message | metrics | finished | failed | reused) and
    what belongs to it: progress has `done`, `total`, `unit`, `rate` (units per second); metrics `step` and `values`.
    """

    def __init__(self, uri: str | None, stage: str) -> None:
        self.uri, self.stage = uri, stage
        self._lines: list[str] = []  # of a remote sink: all that this writer said
        self._object = ""
        self._last_put = self._last_progress = float("-inf")
        self._first, self._last_done = (0.0, 0.0), 0.0  # (time, done) where this series of progress events began
        self._unit = ""

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "stage": self.stage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["uri"], state["stage"])  # type: ignore[misc]

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event."""
        if self.uri is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "stage": self.stage, "event": event, **fields}, default=str)
        if storage.is_local(self.uri):
            storage.append_line(self.uri, line)
            return
        if not self._lines:
            self._object = storage.join(_parts(self.uri), f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.jsonl")
        self._lines.append(line)
        if time.monotonic() - self._last_put > _REMOTE_PUT_SECONDS or event in _ENDS:
            self.flush()

    def flush(self) -> None:
        """Put what a remote sink still lacks; a copy in another process does so before that ends."""
        if self._lines and self.uri is not None:
            storage.write_bytes(self._object, ("\n".join(self._lines) + "\n").encode())
            self._last_put = time.monotonic()

    def progress(self, done: float, total: float | None, unit: str, message: str = "") -> None:
        """Say how far the stage is; at most twice a second, the last always. A new unit or fewer done starts over."""
        now = time.monotonic()
        if unit != self._unit or done < self._last_done:
            self._unit, self._first = unit, (now, done)
        self._last_done = done
        if now - self._last_progress < _PROGRESS_SECONDS and done != total:
            return
        elapsed = now - self._first[0]
        rate = (done - self._first[1]) / elapsed if elapsed > 0 else None
        self._last_progress = now
        self.emit("progress", done=done, total=total, unit=unit, rate=rate, message=message)

    def message(self, text: str) -> None:
        """Say something a person should read."""
        self.emit("message", message=text)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of one step (loss parts, rates)."""
        self.emit("metrics", step=step, values=values)

    def track(self, items: Iterable[T], total: int | None, unit: str, message: str = "") -> Iterator[T]:
        """Yield `items` and report progress after each."""
        self.progress(0, total, unit, message)
        done = 0
        for done, item in enumerate(items, start=1):
            yield item
            self.progress(done, total, unit, message)
        if total is None:
            self.progress(done, done, unit, message)


SILENT = Events(None, "")


def read_events(uri: str) -> list[dict[str, Any]]:
    """Read the events of one stage, oldest first; a torn line is left out."""
    return EventLog(uri).read()


class EventLog:
    """Reads one stage's events again and again; of a remote sink only what its writers have added since."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._sizes: dict[str, int] = {}  # of each writer's object, as far as it was read: writers only add
        self._events: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All events there are by now, oldest first; a torn line is left out."""
        if storage.is_local(self.uri):
            return _parse(storage.read_bytes(self.uri)) if storage.exists(self.uri) else []
        for name, size in storage.list_files(_parts(self.uri)):
            before = self._sizes.get(name, 0)
            if size > before:
                self._events += _parse(storage.read_bytes(storage.join(_parts(self.uri), name), before, size))
                self._sizes[name] = size
        return sorted(self._events, key=lambda event: float(event["time"]))


def _parts(uri: str) -> str:
    return f"{uri}.parts"


def _parse(content: bytes) -> list[dict[str, Any]]:
    events = []
    for line in content.decode("utf-8", "replace").splitlines():
        with suppress(ValueError):  # the last line, while its writer writes, or of one that was killed
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]
