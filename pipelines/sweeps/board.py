"""Where every trial of a sweep stands, folded from the sweep's events: what is drawn, ranked and written at the end."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.sweeps.space import Values

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass
class Trial:
    """One trial. `curve`: pairs that the objective's stage has seen -> the objective. `lineage`: of a population's.

    `place`: how many trials had ended when it did. Times are seconds since 1970.
    """

    number: int
    values: Values
    state: State = "waiting"
    samples: int = 0
    pairs: int = 0
    value: float | None = None
    curve: dict[int, float] = field(default_factory=dict)
    lineage: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""
    place: int = 0
    started: float = 0.0
    ended: float | None = None

    @property
    def history(self) -> list[Values]:
        """Values of each of its segments; one entry where there are none."""
        return [entry["values"] for entry in self.lineage] or [self.values]

    def take(self, event: Mapping[str, Any]) -> None:
        """Move on by one event; after a restart some come again."""
        kind = event["event"]
        self.started = self.started or event["time"]
        if kind == "trial_started" and self.state not in ENDED:
            self.state, self.values = "running", event["values"]
        elif kind == "told":
            self._told(event)
        elif kind == "ended":
            self._end(event)

    def _told(self, event: Mapping[str, Any]) -> None:
        if "failed" in event:
            self.state, self.message = "failed", event["failed"]
            return
        self.samples, self.pairs = max(self.samples, event["samples_seen"]), max(self.pairs, event["pairs"])
        if event.get("value") is not None:
            self.value = float(event["value"])
            self.curve[int(event["samples_seen"])] = self.value
        if event.get("lineage"):
            self.lineage = list(event["lineage"])
            segment = event["samples_seen"] // len(self.lineage)
            self.curve = {(at + 1) * segment: entry["value"] for at, entry in enumerate(self.lineage)}
        if event["is_end"]:
            self.state = "finished"

    def _end(self, event: Mapping[str, Any]) -> None:
        self.ended = self.ended or event["time"]
        if "failed" in event:
            self.state, self.message = "failed", event["failed"]
        elif self.state not in ("finished", "failed"):
            self.state = "stopped"


class Board:
    """All trials of a sweep."""

    def __init__(self, settings: Iterable[Values], mode: str) -> None:
        self.trials = [Trial(number, values) for number, values in enumerate(settings)]
        self._sign = 1.0 if mode == "min" else -1.0

    def take(self, event: Mapping[str, Any]) -> Trial | None:
        """Fold one event in; the trial that has ended by it."""
        if "trial" not in event:
            return None
        trial = self.trials[int(event["trial"])]
        before = trial.state
        trial.take(event)
        if trial.state not in ENDED or before in ENDED:
            return None
        trial.place = self.count(*ENDED)
        return trial

    @property
    def is_over(self) -> bool:
        """True when every trial has ended."""
        return all(trial.state in ENDED for trial in self.trials)

    def count(self, *states: State) -> int:
        """How many trials are in one of these states."""
        return sum(trial.state in states for trial in self.trials)

    def ranked(self) -> list[Trial]:
        """Finished trials, best first; then those that were stopped, the longest first; then the failed."""
        order = {"finished": 0, "stopped": 1, "running": 2, "waiting": 3, "failed": 4}

        def key(trial: Trial) -> tuple[float, ...]:
            value = math.inf if trial.value is None or math.isnan(trial.value) else self._sign * trial.value
            length = 0 if trial.state == "finished" else -trial.samples
            return order[trial.state], length, value, trial.number

        return sorted(self.trials, key=key)

    def best(self) -> Trial | None:
        """The winner so far: the best of the finished trials, the lower number of equals."""
        first = self.ranked()[0]
        return first if first.state == "finished" and first.value is not None else None

    def best_known(self) -> Trial | None:
        """The trial with the best value told so far, whether it has ended or not."""
        known = [trial for trial in self.trials if trial.value is not None and trial.state != "failed"]
        return min(known, key=lambda trial: self._sign * (trial.value or 0.0), default=None)
