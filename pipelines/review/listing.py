"""What a root knows of its runs, put together for whoever looks at them: state, stages, headline number.

A record is written when its run starts and when it ends. Between the two, and for a run that nobody ended, the state is
told by what can be known: the run's process, the artifacts that are there, the last event of a stage.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

from data import storage
from data.artifacts import RECORD_NAME, Artifact, find_fingerprint
from data.errors import UserError
from data.events import read_events
from pipelines.here.liveness import is_alive
from pipelines.runs import RunRecord, StageOfRun, Unreadable, scan_runs

LOST, MAYBE_LOST = "lost", "lost?"
STAGE_STATES = ("made", "reused", "failed", "to come", "missing", "removed")
_SILENT_SECONDS = 3600.0  # a stage says something at least every few seconds, but a queue may take its time
_READERS = 16
_LOSSES = ("validation_loss", "loss")


class State(NamedTuple):
    """State of a run, and how that is known where the record does not say it."""

    name: str
    note: str = ""


class Number(NamedTuple):
    """A run's headline number."""

    metric: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    chance: float | None
    unit: str
    better: str


class Seen:
    """One run, with what lies below its root."""

    def __init__(self, root: str, record: RunRecord, names: list[str] | None = None) -> None:
        """`names` are the root's folders, where the caller has listed them: one listing does for many runs."""
        self.root, self.record = storage.normalise(root), record
        self._names = storage.list_folders(self.root) if names is None else names

    def artifact(self, stage: str) -> Artifact | None:
        """The complete artifact of a stage."""
        print_ = self.record.stages[stage].fingerprint
        return find_fingerprint(self.root, print_, self._names) if print_ else None

    @cached_property
    def stages(self) -> dict[str, str]:
        """Stage -> reused, made or failed; without an artifact to come, missing, or removed since."""
        return {name: self._stage_state(name, stage) for name, stage in self.record.stages.items()}

    def _stage_state(self, name: str, stage: StageOfRun) -> str:
        if self._is_there(stage):
            return "reused" if stage.reused else "made"
        if name == self.record.failed_stage:
            return "failed"
        if self.record.state == "finished":
            return "removed"
        return "to come" if self.state.name == "running" else "missing"

    def _is_there(self, stage: StageOfRun) -> bool:
        if stage.artifact not in self._names:
            return False
        return storage.is_local(self.root) or storage.exists(storage.join(self.root, stage.artifact, RECORD_NAME))

    @cached_property
    def state(self) -> State:
        """The run's state, for a run that says `running` only after a look."""
        if self.record.state != "running":
            return State(self.record.state)
        lives = is_alive(self.record.process)
        if lives:
            return State("running")
        if all(self._is_there(stage) for stage in self.record.stages.values()):
            return State("finished", "every artifact is there")
        if lives is False:
            return State(LOST, "its process is gone")
        silent = time.time() - self.last_sign
        if silent < _SILENT_SECONDS:
            return State("running")
        ask = "; `clipworks status` asks its cluster" if self.record.submission else ""
        return State(MAYBE_LOST, f"no sign of life for {silent / 3600:.1f} h{ask}")

    @cached_property
    def last_sign(self) -> float:
        """Time of the last thing that the run or one of its own stages said."""
        times = [self.record.started]
        for stage in self.record.stages.values():
            if stage.artifact and not stage.reused:
                events = read_events(storage.join(self.root, ".events", f"{stage.artifact}.jsonl"))
                times += [float(event["time"]) for event in events[-1:]]
        return max(times)

    @property
    def seconds(self) -> float | None:
        """How long it took; of one that runs, how long it runs; None for one that nobody ended."""
        if self.record.ended is not None:
            return self.record.ended - self.record.started
        return time.time() - self.record.started if self.state.name == "running" else None

    @cached_property
    def number(self) -> Number | None:
        """The headline of its last report; without one, the loss of its last training stage."""
        for name in self._last("report"):
            artifact = self.artifact(name)
            if artifact and artifact.record.metrics.get("headline"):
                return headline_of(artifact.record.metrics["headline"])
        for name in self._last("train"):
            artifact = self.artifact(name)
            if artifact:
                return _loss_of(name, artifact.record.metrics.get("final", {}))
        return None

    def _last(self, kind: str) -> list[str]:
        return [name for name in reversed(self.record.stages) if self.kind(name) == kind]

    def kind(self, stage: str) -> str:
        """Kind of a stage, by the recipe."""
        stages = self.record.recipe.get("stages", {})
        return str(stages.get(stage, {}).get("kind", "?"))

    def of_kind(self, kind: str) -> dict[str, Artifact]:
        """Stage -> complete artifact, of one kind of stage."""
        found = {name: self.artifact(name) for name in self.record.stages if self.kind(name) == kind}
        return {name: artifact for name, artifact in found.items() if artifact}

    def warm(self) -> "Seen":
        """Look up all that a list shows; what cannot be read is said in the list, not instead of it."""
        _ = self.state, self.seconds, self.stages
        try:
            _ = self.number
        except UserError as error:
            self.__dict__["number"] = None
            self.__dict__["state"] = State(self.state.name, str(error))
        return self


def headline_of(headline: Mapping[str, Any]) -> Number:
    """The final label's row of a report's headline."""
    rows = headline["rows"]
    row = next((row for row in rows if row["label"] == headline["final"]), rows[-1])
    metric = " ".join(str(headline[part]) for part in ("set", "split", "task", "metric"))
    shown = ("label", "value", "low", "high", "n", "chance", "unit", "better")
    return Number(metric, *(row[name] for name in shown))


def _loss_of(stage: str, final: Mapping[str, Any]) -> Number | None:
    name = next((name for name in _LOSSES if name in final), None)
    return Number(f"{stage} {name}", "", final[name], None, None, None, None, "", "lower") if name else None


def see(root: str) -> tuple[list[Seen], list[Unreadable]]:
    """Every run below a root, newest first, looked up side by side; and the records that cannot be read."""
    records, unreadable = scan_runs(root)
    names = storage.list_folders(root) if records else []
    return list(reversed(_each(lambda record: Seen(root, record, names).warm(), records))), unreadable


def _each(do: Callable[[RunRecord], Seen], records: list[RunRecord]) -> list[Seen]:
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(do, records))


def summary_of(seen: Seen) -> dict[str, Any]:
    """One run as a plain row: what `runs list --json` prints."""
    record, states = seen.record, list(seen.stages.values())
    return {
        "name": record.name,
        "state": seen.state.name,
        "note": seen.state.note,
        "started": record.started,
        "seconds": seen.seconds,
        "recipe": record.recipe.get("name"),
        "group": record.group,
        "on": record.submission.cluster.get("name", "cluster") if record.submission else "this machine",
        "stages": {name: states.count(name) for name in STAGE_STATES},
        "failed_stage": record.failed_stage,
        "headline": seen.number._asdict() if seen.number else None,
    }
