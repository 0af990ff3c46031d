"""Weights & Biases from the stages' events: one run a stage that really ran, grouped by the run's name.

No stage talks to W&B. On this machine one process follows the event files of the whole run, until its input is closed
(`python -m training.tracking JOB.json`); in a pod a thread follows the one stage. Measured on 2 cores, offline: 1 s to
import wandb, 0.7 s for its first run, 0.16 s for each further one.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from data import storage
from data.artifacts import Artifact, Output, open_artifact
from data.events import read_events
from data.place import Place
from data.stage import StageSpec
from training.tables import tables_of

_POLL_SECONDS = 2.0
_END_SECONDS = 60.0
_LIVE = ("online",)


class Tracked(NamedTuple):
    """One stage to follow."""

    stage: str
    kind: str
    config: dict[str, Any]
    events_uri: str


class Where(NamedTuple):
    """Which W&B project, group and folder."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    group: str
    folder: str
    since: float


class StageTracker:
    """Sends one stage's events to its W&B run, which starts with the stage's own `started` event."""

    def __init__(self, stage: Tracked, where: Where) -> None:
        self._stage, self._where = stage, where
        self._run: Any = None
        self._sent: set[str] = set()
        self.is_done = False

    def poll(self) -> None:
        """Send what is new."""
        since = round(self._where.since, 3)  # events give their time in milliseconds
        events = [event for event in read_events(self._stage.events_uri) if event["time"] >= since]
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
            artifact = open_artifact(event["artifact"])
            self._run.summary.update(summary(artifact, event["seconds"]))
            self._log_tables(artifact)
            self.close("finished")
        elif kind == "failed":
            self._run.summary.update({"error": f"{event['error']}: {event['message']}"})
            self.close("failed", exit_code=1)

    def _log_tables(self, artifact: Artifact) -> None:
        tables = tables_of(artifact)
        if tables:
            import wandb

            self._run.log({name: wandb.Table(columns=list(c), data=list(rows)) for name, (c, rows) in tables.items()})

    def close(self, why: str, exit_code: int = 0) -> None:
        """End the W&B run, if there is one."""
        if self._run is not None:
            self._run.summary["ended"] = why
            self._run.finish(exit_code=exit_code)
            self._run, self.is_done = None, why in ("finished", "failed")


def start_run(stage: Tracked, where: Where) -> Any:
    """Start a W&B run with the stage's resolved config."""
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, disable_job_creation=True,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
    )  # fmt: skip
    Path(where.folder).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_DATA_DIR", where.folder)
    return wandb.init(
        mode=where.mode, project=where.project, group=where.group, name=stage.stage, job_type=stage.kind,
        config=stage.config, dir=where.folder, reinit="create_new", settings=settings,
    )  # fmt: skip


def summary(artifact: Artifact, seconds: float) -> dict[str, Any]:
    """What the record says, flat, with the artifact's lineage by fingerprint."""
    record = artifact.record
    return {
        "artifact": storage.name_of(artifact.uri),
        "fingerprint": record.fingerprint,
        "seconds": seconds,
        **{f"counts/{name}": count for name, count in record.counts.items()},
        **{f"parents/{role}": print_ for role, print_ in record.parents.items()},
        **flat(record.metrics),
    }


def flat(metrics: Any, prefix: str = "") -> dict[str, Any]:
    """Nested metrics by path, lists left out: they are in the report."""
    if isinstance(metrics, dict):
        inner = (flat(value, f"{prefix}/{name}" if prefix else name) for name, value in metrics.items())
        return {path: number for part in inner for path, number in part.items()}
    return {prefix: metrics} if isinstance(metrics, int | float | str | bool) else {}


def follow(stages: list[Tracked], where: Where, stop: threading.Event) -> None:
    """Follow the stages until all have ended or `stop` is set; then once more."""
    trackers = [StageTracker(stage, where) for stage in stages]
    while not stop.wait(_POLL_SECONDS):
        for tracker in trackers:
            if not tracker.is_done:
                tracker.poll()
    for tracker in trackers:
        if not tracker.is_done:
            tracker.poll()
        tracker.close("stopped", exit_code=1)


@contextmanager
def track_stage(name: str, spec: StageSpec, parent_uris: Mapping[str, str], place: Place, group: str) -> Iterator[None]:
    """Follow one stage's events from a thread of this process, for a pod, where no other process does."""
    prints = {role: open_artifact(uri).fingerprint for role, uri in parent_uris.items()}
    events_uri = Output(place.root, name, spec.fingerprint(prints)).events_uri
    stage = Tracked(name, spec.kind, spec.model_dump(mode="json"), events_uri)
    stop, folder = threading.Event(), tempfile.mkdtemp(prefix="wandb-")
    mode = cast(Literal["offline", "online", "disabled"], place.wandb_mode)
    where = Where(mode, place.wandb_project, group, folder, time.time())
    thread = threading.Thread(target=follow, args=([stage], where, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_END_SECONDS)


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
