"""Weights & Biases from the stages' events: one run a stage that really ran, grouped by the run's name.

No stage talks to W&B. On this machine one process follows the event files of the whole run, until its input is closed
(`python -m training.tracking JOB.json`); in a pod a thread follows the one stage. A reused stage gets a run, tagged
`reused`, only where no W&B run of this folder has made its artifact: with it the lineage is complete.
"""

import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from data import storage
from data.artifacts import Output, open_artifact
from data.events import EventLog
from data.place import Place
from data.stage import StageSpec
from training.wandb_runs import (
    REUSED,
    Tracked,
    Where,
    flat,
    log_lineage,
    log_result,
    noted,
    start_run,
    summary,
)

__all__ = ["StageTracker", "Tracked", "Where", "flat", "follow", "start_run", "summary", "track_stage"]
_POLL_SECONDS = 2.0
_END_SECONDS = 60.0
_LIVE = ("online",)


class StageTracker:
    """Sends one stage's events to its W&B run, which starts with the stage's own `started` event."""

    def __init__(self, stage: Tracked, where: Where) -> None:
        self._stage, self._where = stage, where
        self._run: Any = None
        self._log = EventLog(stage.events_uri)
        self._sent: set[str] = set()
        self.is_done = False

    def follow(self) -> None:
        """Send what is new; where W&B fails, say so in the log and leave this stage, not the others, untold."""
        try:
            self.poll()
        except Exception:  # noqa: BLE001 - whatever a service is down with; the run goes on without it
            traceback.print_exc()
            self._run, self.is_done = None, True

    def poll(self) -> None:
        """Send what is new."""
        since = round(self._where.since, 3)  # events give their time in milliseconds
        events = [event for event in self._log.read() if event["time"] >= since]
        if not self._run and not self._should_start(events):
            return
        for event in events:
            text = json.dumps(event, sort_keys=True)
            if text not in self._sent:  # one of another process may come late, before others that were sent
                self._sent.add(text)
                self._send(event)

    def _should_start(self, events: list[dict[str, Any]]) -> bool:
        """Offline nobody watches, so a run is written when its stage has ended: it takes nothing from the stage."""
        names = [event["event"] for event in events]
        return "started" in names and (self._where.mode in _LIVE or names[-1] in ("finished", "failed"))

    def _send(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "started":
            self.close("restarted")
            self._run = start_run(self._stage, self._where)
        elif self._run is None:
            return
        elif kind == "metrics":
            self._run.log(event["values"], step=int(event["step"]))
        elif kind == "finished":
            log_result(self._run, open_artifact(event["artifact"]), event["seconds"])
            self.close("finished")
        elif kind == "failed":
            self._run.summary.update({"error": f"{event['error']}: {event['message']}"})
            self.close("failed", exit_code=1)

    def close(self, why: str, exit_code: int = 0) -> None:
        """End the W&B run, if there is one."""
        if self._run is not None:
            self._run.summary["ended"] = why
            self._run.finish(exit_code=exit_code)
            self._run, self.is_done = None, why in ("finished", "failed")


def follow(stages: list[Tracked], where: Where, stop: threading.Event) -> None:
    """Follow the stages until all have ended or `stop` is set; then once more."""
    _log_reused([stage for stage in stages if stage.artifact], where)
    trackers = [StageTracker(stage, where) for stage in stages if not stage.artifact]
    while not stop.wait(_POLL_SECONDS):
        for tracker in trackers:
            if not tracker.is_done:
                tracker.follow()
    for tracker in trackers:
        if not tracker.is_done:
            tracker.follow()
        tracker.close("stopped", exit_code=1)


def _log_reused(stages: list[Tracked], where: Where) -> None:
    """A small run for each artifact whose making no run of this folder has told."""
    known = noted(where.folder) if stages else set()
    for stage in stages:
        if stage.fingerprint in known:
            continue
        run, artifact = start_run(stage, where, [REUSED]), open_artifact(stage.artifact)
        run.summary.update({**summary(artifact, None), "ended": REUSED})
        log_lineage(run, artifact)
        run.finish()


@contextmanager
def track_stage(name: str, spec: StageSpec, parent_uris: Mapping[str, str], place: Place, group: str) -> Iterator[None]:
    """Follow one stage's events from a thread of this process, for a pod, where no other process does."""
    prints = {role: open_artifact(uri).fingerprint for role, uri in parent_uris.items()}
    print_ = spec.fingerprint(prints)
    events_uri = Output(place.root, name, print_).events_uri
    stage = Tracked(name, spec.kind, spec.model_dump(mode="json"), events_uri, print_, prints)
    stop, folder = threading.Event(), tempfile.mkdtemp(prefix="wandb-")
    mode = cast(Literal["offline", "online", "disabled"], place.wandb_mode)
    where = Where(mode, place.wandb_project, group, folder, time.time(), _shared(place, group))
    thread = threading.Thread(target=follow, args=([stage], where, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_END_SECONDS)


def _shared(place: Place, run: str) -> dict[str, Any]:
    """What the record of the run says of all its stages; only the place for a stage outside a recorded run."""
    uri = storage.join(storage.normalise(place.root), ".runs", run, "run.json")
    record = storage.read_json(uri) if storage.exists(uri) else {}
    said = {name: record[name] for name in ("recipe", "versions", "image", "code") if record.get(name)}
    return {**said, "place": place.model_dump(mode="json")}


def _wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> None:
    """Follow the job in the file that is the only argument, until standard input is closed."""
    job = json.loads(Path(sys.argv[1]).read_text())
    os.nice(10)
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    follow([Tracked(**stage) for stage in job["stages"]], Where(**job["where"]), stop)


if __name__ == "__main__":
    main()
