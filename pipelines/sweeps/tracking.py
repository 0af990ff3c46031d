"""A sweep in W&B: one run a trial, all in one group, its losses over pairs seen.

Run by `pipelines.sweeps.driver`, beside it. Offline a trial's run is written when it has ended, online from its start;
which ones are written is remembered, so that a sweep that goes on after a kill writes none twice.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from data import storage
from data.events import read_events
from data.place import Place
from pipelines.runs import versions
from pipelines.sweeps.board import ENDED, Board
from pipelines.sweeps.spec import Sweep
from pipelines.sweeps.study import Study, make_study
from pipelines.sweeps.trial import trial_place
from pipelines.sweeps.tuning import trial_name
from training.tracking import Tracked, Where, start_run

_POLL_SECONDS = 2.0


class Tracker:
    """Sends the trials of one sweep to W&B."""

    def __init__(self, study: Study, name: str, place: Place, events_uri: str, folder: str) -> None:
        self._study, self._name, self._place, self._events_uri, self._folder = study, name, place, events_uri, folder
        self._written_uri = f"{events_uri.removesuffix('.jsonl')}.wandb.json"
        self._written: list[int] = storage.read_json(self._written_uri) if storage.exists(self._written_uri) else []
        self._runs: dict[int, Any] = {}
        self._sent: dict[int, int] = {}

    def poll(self) -> None:
        """Send what is new."""
        events = read_events(self._events_uri)
        board = Board(self._study.settings, self._study.sweep.objective.mode)
        for event in events:
            board.take(event)
        for trial in board.trials:
            is_due = trial.state in ENDED or (trial.state == "running" and self._place.wandb_mode == "online")
            if trial.number not in self._written and is_due:
                self._send(board, trial.number, [event for event in events if event.get("trial") == trial.number])

    def _send(self, board: Board, number: int, events: list[dict[str, Any]]) -> None:
        trial, objective = board.trials[number], self._study.sweep.objective
        if number not in self._runs:
            self._runs[number] = self._start(number, board)
        run, told = self._runs[number], [event for event in events if event["event"] == "told" and "pairs" in event]
        for event in told[self._sent.get(number, 0) :]:
            value = {} if event.get("value") is None else {objective.name: event["value"]}
            if event["numbers"] or value:
                run.log({**event["numbers"], **value, "samples_seen": event["samples_seen"]}, step=event["pairs"])
        self._sent[number] = len(told)
        if trial.state not in ENDED:
            return
        end = {
            "ended": trial.state,
            "samples_seen": trial.samples,
            **({"error": trial.message} if trial.message else {}),
        }
        run.summary.update({**end, **({} if trial.value is None else {objective.name: trial.value})})
        run.finish(exit_code=int(trial.state == "failed"))
        self._written.append(number)
        storage.write_json(self._written_uri, self._written)

    def _start(self, number: int, board: Board) -> Any:
        trial = board.trials[number]
        history = trial.history if len(trial.history) == self._study.segments else [trial.values] * self._study.segments
        recipe = self._study.trial(history).to_dict()
        place = trial_place(self._place, self._study.sweep.share(self._place)).model_dump(mode="json")
        config = {"trial": number, "values": trial.values, **({"lineage": trial.lineage} if trial.lineage else {})}
        shared = {"recipe": recipe, "place": place, "versions": versions()}
        where = Where(self._place.wandb_mode, self._place.wandb_project, self._name, self._folder, 0.0, shared)  # type: ignore[arg-type]
        return start_run(Tracked(trial_name(self._name, number), "trial", config, self._events_uri), where)

    def close(self) -> None:
        """End the runs of trials that have not ended."""
        for number, run in self._runs.items():
            if number not in self._written:
                run.summary["ended"] = "interrupted"
                run.finish(exit_code=1)


def _wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> None:
    """Follow the sweep in the file that is the only argument, until standard input is closed."""
    job = json.loads(Path(sys.argv[1]).read_text())
    os.nice(10)
    place, study = Place.model_validate(job["place"]), make_study(Sweep.model_validate(job["sweep"]))
    tracker = Tracker(study, job["name"], place, job["events"], job["wandb"])
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    while not stop.wait(_POLL_SECONDS):
        tracker.poll()
    tracker.poll()
    tracker.close()


if __name__ == "__main__":
    main()
