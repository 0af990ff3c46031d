"""Our parts of Ray Tune: a population that really copies, and a listener that writes down what every trial says.

Tune's own PBT, in its synchronous mode, is used with three differences: after its last segment a trial is left alone
(there is nothing left to train), what is told between segments does not count, and new values come from the caller,
seeded, inside their ranges.
"""

from collections.abc import Callable
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from data.events import Events

Explore = Callable[[int, int, dict[str, Any]], dict[str, Any]]  # (trial, samples seen, the donor's values) -> values


def _told(trial: Trial) -> dict[str, Any]:
    """What a trial was told: its number and its values."""
    found: dict[str, Any] = trial.config["trial"]
    return found


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """Synchronous PBT over trials with config {trial: {number, values}} that report a checkpoint after a segment."""

    def __init__(self, segment_samples: int, quantile: float, mode: str, explore: Explore) -> None:
        super().__init__(
            time_attr="samples_seen", metric="value", mode=mode, perturbation_interval=segment_samples,
            quantile_fraction=quantile, custom_explore_fn=dict, log_config=False, synch=True,
        )  # fmt: skip
        self._explore = explore

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Wait for the others after a segment; then the worst take the checkpoints of the best."""
        if "value" not in result or result["is_end"]:
            return str(self.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        number, samples = _told(trial)["number"], int(trial.last_result.get("samples_seen", 0))
        values = self._explore(number, samples, _told(trial_to_clone)["values"])
        return {"trial": {"number": number, "values": values}}, {}


class Listener(Callback):  # type: ignore[misc]
    """Appends what trials say to events: `started`, `told` and `ended`, each with the trial's number."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins, or goes on."""
        del iteration, trials, info
        self._say("trial_started", trial, values=_told(trial)["values"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial told something."""
        del iteration, trials, info
        said = {key: result[key] for key in ("samples_seen", "pairs", "value", "numbers", "lineage", "is_end", "failed")
                if key in result}  # fmt: skip
        self._say("told", trial, **said)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has come to its end, or was stopped."""
        del iteration, trials, info
        self._say("ended", trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's process was lost too often."""
        del iteration, trials, info
        self._say("ended", trial, failed="its process was lost too often; see the log")

    def _say(self, event: str, trial: Trial, **fields: Any) -> None:
        self._events.emit(event, trial=_told(trial)["number"], **fields)
        if event == "ended":
            self._events.flush()
