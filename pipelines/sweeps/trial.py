"""What a trial does: the stages that its values change, in this process, telling its loss on the way.

It knows nothing of Ray: `tell` gets what there is to say, and may end the trial by raising.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from data import storage
from data.artifacts import Artifact
from data.errors import BusyError, RecipeError, locating
from data.events import Events
from data.place import Place, usable_cpus
from data.stage import StageSpec, run_stage
from pipelines.recipe import Recipe
from pipelines.sweeps.space import Values
from pipelines.sweeps.spec import Objective, Resources, Sweep
from pipelines.sweeps.study import Study, length
from training.machine import visible_gpus
from training.specs import TrainSpec

_WAIT_SECONDS = 1.0
_QUIET_SECONDS = 2.0  # between words that hold no loss: each is a call to the scheduler
_LOSS = "/validation_loss"
Lineage = Sequence[Mapping[str, Any]]


class Told(NamedTuple):
    """What a trial says: pairs seen by the objective's stage, and the objective where it is known.

    `pairs` counts those of all its stages. `numbers` are metrics of the stage. `lineage` holds what a population's
    trial is made of so far, one entry a segment: its values, its checkpoint's fingerprint, its loss.
    """

    samples: int
    pairs: int
    value: float | None = None
    numbers: dict[str, float] = {}  # noqa: RUF012 - never mutated
    lineage: tuple[Mapping[str, Any], ...] = ()
    is_end: bool = False


Tell = Callable[[Told], None]


def concurrent_trials(sweep: Sweep, place: Place) -> int:
    """How many trials run at a time on this machine.

    Raises:
        RecipeError: it has not the GPUs for them.
    """
    share, gpus = sweep.share(place), visible_gpus()
    fit = max(1, usable_cpus() // share.cpus)
    if share.gpus and gpus is not None:
        if len(gpus) < share.gpus * (sweep.max_concurrent or 1):
            raise RecipeError(
                f"{sweep.max_concurrent or 1} trials x {share.gpus} GPUs: this machine has {len(gpus)}; lower "
                "resources.gpus or max_concurrent, or set RAY_ADDRESS to a cluster"
            )
        fit = len(gpus) // share.gpus
    return sweep.max_concurrent or fit


def trial_place(place: Place, share: Resources) -> Place:
    """The place of one trial: its share of the machine, and no Ray of its own."""
    ranks = share.ranks
    return place.model_copy(
        update={
            "ranks": "local", "train_workers": ranks, "min_train_workers": None, "rayjob": None, "data_workers": 0,
            "cpus_per_worker": share.cpus // ranks, "gpus_per_worker": share.gpus // ranks,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Runner:
    """Runs trials of one study. `shared` are the URIs of the stages that are the same for all trials, by name."""

    study: Study
    shared: Mapping[str, str]
    place: Place
    tell: Tell

    def run_trial(self, values: Values) -> None:
        """Run one trial to its end; what exists already is reused, what was begun goes on."""
        recipe = self.study.trial([values])
        made = self._run_stages(recipe, 0)
        value = final_value(self.study.sweep.objective, recipe, made)
        self.tell(Told(self.study.samples(values), pairs_of(self.study, recipe), value, is_end=True))

    def run_member(self, values: Values, lineage: Lineage) -> None:
        """Run what is left of a population's trial, a segment at a time from where `lineage` ends, with `values`."""
        pbt, objective = self.study.sweep.scheduler.pbt, self.study.sweep.objective
        assert pbt, "only a population has members"
        before = tuple(lineage)
        while len(before) < self.study.segments:
            recipe = self.study.trial([*(entry["values"] for entry in before), values])
            made = self._run_stages(recipe, len(before) * pbt.segment_samples)
            value = final_value(objective, recipe, made)
            before = (*before, {"values": values, "fingerprint": made.fingerprint, "value": value})
            samples, is_end = len(before) * pbt.segment_samples, len(before) == self.study.segments
            self.tell(Told(samples, samples, value, lineage=before, is_end=is_end))

    def _run_stages(self, recipe: Recipe, before: int) -> Artifact:
        """Run the trial's stages, parents first; the last one's artifact. `before`: pairs of earlier segments."""
        uris, made = dict(self.shared), None
        names = self.study.trial_stages(recipe)
        for name in names:
            spec = recipe.stages[name]
            parents = {role: uris[parent] for role, (parent, _) in spec.roles().items()}
            with locating(stage=name):
                made = _made(partial(run_stage, name, spec, parents, self.place, self._listener(name, spec, before)))
            uris[name] = made.uri
            before += length(spec) if self.study.segments == 1 else 0
        assert made, "a trial has the objective's stage at least"
        return made

    def _listener(self, name: str, spec: StageSpec, before: int) -> Callable[[str, str], Events]:
        """What a stage reports to; only the objective's own has a value for the scheduler, unless this is a segment."""
        objective, is_segment = self.study.sweep.objective, self.study.segments > 1
        listened = Listened(self.tell, spec, before, name == objective.stage, is_segment)
        return lambda uri, stage: _Listening(uri, stage, listened)


class Listened:
    """Turns a stage's metrics into what a trial tells: every validation, and a sign of life now and then.

    A stage's last word is kept back: a scheduler must not stop a trial that has only its checkpoint left to write.
    """

    def __init__(self, tell: Tell, spec: StageSpec, before: int, is_objective: bool, is_segment: bool) -> None:
        self._tell, self._spec, self._before = tell, spec, before
        self._has_value = is_objective and not is_segment
        self._counts = is_objective or is_segment
        self._lowest, self._said = math.inf, time.monotonic()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Tell one step's metrics."""
        loss = next((value for key, value in values.items() if key.endswith(_LOSS)), None)
        if loss is None and time.monotonic() - self._said < _QUIET_SECONDS:
            return
        self._said = time.monotonic()
        value = None
        if loss is not None and self._has_value and step < length(self._spec):
            self._lowest = min(self._lowest, loss)
            value = self._lowest if _keeps_best(self._spec) else loss
        samples = (self._before if not self._has_value else 0) + step if self._counts else 0
        self._tell(Told(samples, self._before + step, value, values))


class _Listening(Events):
    """Events of a trial's stage that are also listened to here. A copy in another process only appends."""

    def __init__(self, uri: str | None, stage: str, listened: Listened | None = None) -> None:
        super().__init__(uri, stage)
        self._listened = listened

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Append, then tell."""
        super().metrics(step, values)
        if self._listened is not None:
            self._listened(step, values)


def _made(make: Callable[[], Artifact]) -> Artifact:
    """The artifact; another trial that is making the same one is waited for."""
    while True:
        try:
            return make()
        except BusyError:
            time.sleep(_WAIT_SECONDS)


def pairs_of(study: Study, recipe: Recipe) -> int:
    """Pairs that all training stages of a trial see."""
    return sum(length(recipe.stages[name]) for name in study.trial_stages(recipe))


def _keeps_best(spec: StageSpec) -> bool:
    return isinstance(spec, TrainSpec) and list(spec.phases.values())[-1].result == "best"


def final_value(objective: Objective, recipe: Recipe, made: Artifact) -> float:
    """The objective of a finished trial, read from the artifact: of the weights or the evaluation that it holds.

    Raises:
        RecipeError: the evaluation has no such metric, or it is better the other way.
    """
    spec = recipe.stages[objective.stage]
    if isinstance(spec, TrainSpec):
        last = list(spec.phases)[-1]
        lines = map(json.loads, storage.read_bytes(made.at("metrics.jsonl")).decode().splitlines())
        losses = [line["validation_loss"] for line in lines if line["phase"] == last and "validation_loss" in line]
        return float(min(losses) if _keeps_best(spec) else losses[-1])
    return _metric(objective, storage.read_json(made.at("report.json"))["rows"])


def _metric(objective: Objective, rows: list[dict[str, Any]]) -> float:
    wanted = (objective.set, objective.split, objective.task, objective.metric)
    found = {
        (row["set"], row["split"], row["task"], row["metric"]): row
        for row in rows if not row["baseline"] and row["value"] is not None
    }  # fmt: skip
    if wanted not in found:
        known = sorted({key[3] for key in found if key[:3] == wanted[:3]})
        raise RecipeError(f"objective.metric: {objective.metric!r}: not measured; have {', '.join(known) or 'none'}")
    row = found[wanted]
    if row["better"] in ("higher", "lower") and (row["better"] == "higher") != (objective.mode == "max"):
        raise RecipeError(f"objective.mode: {objective.mode!r}: {row['better']} is better for {objective.metric}")
    return float(row["value"])
