"""A study on Ray Tune: its trials as plain function trials, each in a Ray worker that the next one uses again."""

import json
import os
import random
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from components.failure import failure_of, leave
from data import storage
from data.errors import BackendError, UserError, facts_of
from data.events import Events
from data.place import Place
from pipelines.sweeps.space import Space, Values, perturbed
from pipelines.sweeps.spec import Resources
from pipelines.sweeps.study import Study
from pipelines.sweeps.trial import Runner, Told, trial_place

_LINEAGE = "lineage.json"
_SNAPSHOT_SECONDS = "3"  # of Tune's own state; what a snapshot lacks is found by its fingerprint
_START_SECONDS = "120"  # Ray's own 30 are too few for a busy machine
_STOP_SECONDS = "120"  # for a stopped trial to leave its step, before its worker is given up


class Tuning(NamedTuple):
    """What every process of a sweep is told."""

    study: Study
    name: str
    shared: Mapping[str, str]
    place: Place
    folder: str  # of Tune's own state


def tune_study(tuning: Tuning, events: Events, is_own_ray: bool) -> None:
    """Run what is left of the trials and wait. Ray is connected already."""
    set_tune_environment()
    numbers = list(range(len(tuning.study.settings)))
    if tuning.study.sweep.scheduler.pbt is None:
        _fit(tuning, "trials", numbers, _asha(tuning.study), events, is_own_ray)
        return
    # a baseline that copies from others would be none: it runs alone, before the population
    _fit(tuning, "baseline", numbers[:1], None, events, is_own_ray)
    _fit(tuning, "population", numbers[1:], _population(tuning.study), events, is_own_ray)


def _fit(tuning: Tuning, name: str, numbers: list[int], scheduler: Any, events: Events, is_own_ray: bool) -> None:
    from ray import tune

    from training.tuning import Listener

    _check_room(tuning)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(len(numbers))  # all at once: a generation needs every member
    sweep, path = tuning.study.sweep, storage.join(tuning.folder, name)
    trainable = tune.with_resources(_trainable(tuning), _resources(sweep.share(tuning.place)))
    if tune.Tuner.can_restore(path):
        tune.Tuner.restore(path, trainable, resume_errored=True).fit()
        return
    limit = None if is_own_ray or sweep.scheduler.pbt else sweep.max_concurrent  # our own Ray has no room for more
    trials = [{"number": number, "values": tuning.study.settings[number]} for number in numbers]
    tune.Tuner(
        trainable, param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler, reuse_actors=True, max_concurrent_trials=limit, trial_name_creator=_folder_name,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=tuning.folder, callbacks=[Listener(events)], verbose=0,
            failure_config=tune.FailureConfig(max_failures=tuning.place.max_restarts),
        ),
    ).fit()  # fmt: skip


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.config['trial']['number']}"


def _check_room(tuning: Tuning) -> None:
    """Tune would wait for ever for a machine that is not there."""
    import ray

    share = tuning.study.sweep.share(tuning.place)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= share.cpus and node.get("GPU", 0) >= share.gpus for node in nodes):
        raise BackendError(
            f"a trial needs {share.cpus} CPUs and {share.gpus} GPUs on one machine; the largest of Ray's "
            f"{len(nodes)} has {max(node.get('CPU', 0) for node in nodes):g} CPUs, "
            f"{max(node.get('GPU', 0) for node in nodes):g} GPUs; lower resources"
        )


def _resources(resources: Resources) -> Any:
    """One bundle: all ranks of a trial are on one machine."""
    from ray import tune

    bundle = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    return tune.PlacementGroupFactory([bundle])


def _asha(study: Study) -> Any:
    asha = study.sweep.scheduler.asha
    if asha is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    # a trial ends by itself at its own length: the scheduler must not count that as its work
    longest = max(study.samples(values) for values in study.settings)
    return ASHAScheduler(
        time_attr="samples_seen", metric="value", mode=study.sweep.objective.mode, max_t=longest,
        grace_period=asha.grace_samples, reduction_factor=asha.reduction, stop_last_trials=False,
    )  # fmt: skip


def _population(study: Study) -> Any:
    pbt = study.sweep.scheduler.pbt
    assert pbt
    from training.tuning import Population

    random.seed(study.sweep.seed)  # Tune draws the donor from it
    explore = partial(explored, study.sweep.space, study.sweep.seed, pbt.resample, pbt.factor)
    return Population(pbt.segment_samples, pbt.quantile, study.sweep.objective.mode, explore)


def explored(
    space: Space, seed: int, resample: float, factor: float, number: int, samples: int, donor: Values
) -> Values:
    """A member's next values near its donor's: a function of the seed, the member and the generation alone."""
    return perturbed(space, donor, random.Random(f"{seed}/{number}/{samples}"), resample, factor)


def _trainable(tuning: Tuning) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:
        run_tuned(tuning, config["trial"]["number"], config["trial"]["values"])

    return trial


def run_tuned(tuning: Tuning, number: int, values: Values) -> None:
    """One trial inside its Ray worker. What fails is written down and told: the other trials go on."""
    from ray import tune

    sweep = tuning.study.sweep
    place = trial_place(tuning.place, sweep.share(tuning.place))
    runner = Runner(tuning.study, tuning.shared, place, _tell)
    try:
        if sweep.scheduler.pbt:
            runner.run_member(values, _lineage(tune.get_checkpoint()))
        else:
            runner.run_trial(values)
    except Exception as error:  # noqa: BLE001 - told to the driver, with its traceback beside the run's record
        stage = facts_of(error).get("stage", sweep.objective.stage)
        leave(failure_of(stage, error, place.root), place.root, trial_name(tuning.name, number))
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        tune.report({"failed": f"stage {stage}: {' '.join(said.split())[:500]}"})


def trial_name(sweep: str, number: int) -> str:
    """Name of a trial's run."""
    return f"{sweep}-{number}"


def _tell(told: Told) -> None:
    """Report to Tune; it does not return where the scheduler stops the trial."""
    from ray import tune

    # not `done`: Tune ends a trial that says so
    said: dict[str, Any] = {
        "samples_seen": told.samples, "pairs": told.pairs, "numbers": told.numbers, "is_end": told.is_end,
    }  # fmt: skip
    if told.value is not None:
        said["value"] = told.value
    if not told.lineage:
        tune.report(said)
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _LINEAGE).write_text(json.dumps(told.lineage))
        tune.report({**said, "lineage": list(told.lineage)}, checkpoint=tune.Checkpoint.from_directory(folder))


def _lineage(checkpoint: Any) -> list[dict[str, Any]]:
    """What a member is made of so far: its own past or, after it copied, another's."""
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        found: list[dict[str, Any]] = json.loads(Path(folder, _LINEAGE).read_text())
    return found


def set_tune_environment() -> None:
    """What Ray and Tune read from the environment; Tune's workers inherit it, so before Ray starts."""
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_GLOBAL_CHECKPOINT_S=_SNAPSHOT_SECONDS,
        TUNE_FUNCTION_THREAD_TIMEOUT_S=_STOP_SECONDS, RAY_AIR_NEW_OUTPUT="0", RAY_CHDIR_TO_TRIAL_DIR="0",
        RAY_raylet_start_wait_time_s=_START_SECONDS,
        TUNE_DISABLE_STRICT_METRIC_CHECKING="1",  # not every word of a trial holds the objective
    )  # fmt: skip
