"""What a run would take: per stage time, GPU-hours, CPU-hours, money and bytes, each with what it rests on.

What is not known stays unknown, and a sum that lacks a part says "at least". Waiting in a queue and the start of pods
are in no number.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from components.runtime import needs_ray
from data.errors import ModelError
from data.measurement import cpu_model, folder_bytes
from data.place import Place, usable_cpus
from data.stage import StageSpec
from pipelines.cluster.spec import Cluster, Prices
from pipelines.planning.plan import StagePlan, counts_of, work_of
from pipelines.planning.ready import result_sizes
from pipelines.planning.throughput import Measured, Target, Time, Work, estimate_time, peak_of, read_measurements
from pipelines.planning.traffic import Size, bytes_read, size_of, size_to_be
from pipelines.recipe import Recipe
from training.machine import visible_gpus
from training.resources import uses_bf16
from training.sizes import ModelSizes
from training.specs import EmbedSpec, ModelSpec, TrainSpec
from training.workload import embedding_flops, training_flops

_GB = 1e9
_FLOAT_BYTES = 4  # checkpoints hold float32


class Sum(NamedTuple):
    """A sum of what is known; not `is_whole` where a part is not. None: nothing is known."""

    value: float | None
    is_whole: bool


class StageEstimate(NamedTuple):
    """One stage; a reused one takes nothing. `money` is None where a part of it or a price is not known."""

    plan: StagePlan
    work: int | None
    time: Time
    cpus: float
    gpus: int
    money: float | None
    bytes_read: int | None
    bytes_written: int | None

    @property
    def runs(self) -> bool:
        """True unless it is reused."""
        return self.plan.artifact is None

    @property
    def gpu_hours(self) -> float | None:
        """Hours of its GPUs; those of a stage that has none are 0 however long it takes."""
        return 0.0 if not self.gpus or not self.runs else _hours(self.time.seconds, self.gpus)

    @property
    def cpu_hours(self) -> float | None:
        """Hours of all CPUs that its pods ask for."""
        return _hours(self.time.seconds, self.cpus) if self.runs else 0.0


class RunEstimate(NamedTuple):
    """All stages of a run, parents first. `elapsed` is its whole time: on a cluster independent stages run at once."""

    stages: list[StageEstimate]
    prices: Prices | None
    elapsed: Sum
    basis: str

    def total(self, field: str) -> Sum:
        """The sum of a number over the stages that run."""
        return _sum(getattr(stage, field) for stage in self.stages if stage.runs)

    @property
    def dearest(self) -> StageEstimate | None:
        """The stage that costs most, or takes longest where nothing has a price."""
        running = [stage for stage in self.stages if stage.runs]
        return max(running, key=lambda stage: (stage.money or 0.0, stage.time.seconds or 0.0), default=None)


def estimate_run(
    recipe: Recipe, plans: Sequence[StagePlan], place: Place, cluster: Cluster | None = None, roots: Sequence[str] = ()
) -> RunEstimate:
    """Estimate a plan from what was measured below the place's root and below `roots`.

    Args:
        recipe: what is planned.
        plans: `make_plan(recipe, place, roots)`.
        place: where it shall run; a cluster's `whole_place()`.
        cluster: the cluster, or None for this machine.
        roots: further roots whose measurements count.
    """
    prices = cluster.prices if cluster else None
    if all(plan.artifact for plan in plans):
        return RunEstimate([_reused(plan) for plan in plans], prices, Sum(0.0, True), "nothing")
    measured = read_measurements([place.root, *roots])
    by_name = {plan.name: plan for plan in plans}
    models, sizes, stages = _model_sizes(recipe, plans), _Sizes(by_name), []
    for plan in plans:
        stage = (
            _estimate(plan, by_name, place, cluster, models, sizes, measured) if not plan.artifact else _reused(plan)
        )
        sizes.expect(stage)
        stages.append(stage)
    return RunEstimate(stages, prices, *_elapsed(recipe, stages, cluster is not None))


def _reused(plan: StagePlan) -> StageEstimate:
    return StageEstimate(plan, None, Time(0.0, "reused"), 0.0, 0, 0.0, 0, 0)


def _estimate(
    plan: StagePlan, plans: dict[str, StagePlan], place: Place, cluster: Cluster | None,
    models: dict[str, ModelSizes | None], sizes: "_Sizes", measured: Sequence[Measured],
) -> StageEstimate:  # fmt: skip
    spec, pairs = plan.spec, work_of(plan, plans)
    parents = {role: plans[stage].fingerprint or "" for role, (stage, _) in spec.roles().items()}
    own = {role: models.get(stage) for role, (stage, _) in spec.roles().items()}
    target = target_of(spec, place, cluster)
    busy = _busy(target, spec, plans)
    time = estimate_time(Work(plan, pairs, _flops(spec, pairs, own), parents), busy, measured)
    read = bytes_read(plan, sizes.of_parents(spec), pairs)
    written = _written(plan, time, models)
    cpus, gpus = reserved(spec.kind, target, place, cluster)
    money = _money(time.seconds, cpus, gpus, read, written, cluster.prices) if cluster else None
    return StageEstimate(plan, pairs, time, cpus, gpus, money, read, written)


def target_of(spec: StageSpec, place: Place, cluster: Cluster | None) -> Target:
    """What a stage will have."""
    workers, cpus, gpus = _amounts(spec, place)
    if cluster is None:
        names = (visible_gpus() or []) if gpus else [cpu_model()]
        return Target(workers, cpus, gpus, names[0] or None if names else None)
    if spec.kind not in ("train", "embed") and workers == 1:
        cpus = cluster.tasks.get(spec.kind, cluster.task).cpus
    gpu, reach = cluster.hardware.gpu if gpus else None, cluster.hardware.utilisation
    return Target(workers, cpus, gpus, gpu, reach, peak_of(gpu, uses_bf16(place)), is_here=False)


def _busy(target: Target, spec: StageSpec, plans: dict[str, StagePlan]) -> Target:
    """The workers that find something to do: a shard is one worker's, so more than there are shards wait for them."""
    shards = counts_of({role: plans[stage] for role, (stage, _) in spec.roles().items()}).get("pairs", {}).get("shards")
    if spec.kind == "train" or not shards or shards >= target.workers:
        return target
    part = shards / target.workers
    return target._replace(workers=shards, cpus=target.cpus * part, gpus=math.ceil(target.gpus * part))


def _amounts(spec: StageSpec, place: Place) -> tuple[int, float, int]:
    """(workers, CPUs, GPUs), of all workers."""
    if isinstance(spec, TrainSpec):
        workers, each, gpus = place.train_workers, place.cpus_per_worker, place.gpus_per_worker
    elif isinstance(spec, EmbedSpec):
        workers, gpus = max(1, place.data_workers), place.gpus_per_worker
        each = place.cpus_per_worker if gpus or not place.data_workers else 1
    elif spec.ON_RAY and place.data_workers:
        workers, each, gpus = place.data_workers, 1, 0
    else:
        workers, each, gpus = 1, usable_cpus(), 0
    return workers, float(workers * each), workers * gpus


def reserved(kind: str, target: Target, place: Place, cluster: Cluster | None) -> tuple[float, int]:
    """(CPUs, GPUs) that are taken while a stage runs, whether it is busy or not: those of all its pods."""
    if cluster is None:
        return target.cpus, target.gpus
    if cluster.ray is not None and needs_ray(kind, place):
        return cluster.launcher.cpus + cluster.ray.head.cpus + target.cpus, target.gpus
    return cluster.tasks.get(kind, cluster.task).cpus, target.gpus


def _flops(spec: StageSpec, pairs: int | None, models: dict[str, ModelSizes | None]) -> float | None:
    try:
        if isinstance(spec, TrainSpec):
            return training_flops(spec, models)
        return embedding_flops(spec, pairs, models) if isinstance(spec, EmbedSpec) and pairs else None
    except ModelError:  # `preflight` says what is wrong with a model; here its size is not known
        return None


def _model_sizes(recipe: Recipe, plans: Sequence[StagePlan]) -> dict[str, ModelSizes | None]:
    """Sizes of the model that each checkpoint stage makes or made, by stage."""
    found: dict[str, ModelSizes | None] = {}
    for plan in plans:
        spec = recipe.stages[plan.name]
        if isinstance(spec, ModelSpec | TrainSpec):
            models = {role: found.get(stage) for role, (stage, _) in spec.roles().items()}
            try:
                found[plan.name] = result_sizes(spec, plan.artifact or plan.twin, models)
            except ModelError:  # as above
                found[plan.name] = None
    return found


def _written(plan: StagePlan, time: Time, models: dict[str, ModelSizes | None]) -> int | None:
    """Bytes of the artifact: of its twin, of a checkpoint's parameters, or of what was measured, scaled by pairs."""
    if plan.twin is not None:
        return folder_bytes(plan.twin.uri)
    model = models.get(plan.name)
    if model is not None and model.parameters is not None:
        return model.parameters * _FLOAT_BYTES
    return time.bytes_written


def _money(
    seconds: float | None, cpus: float, gpus: int, read: int | None, written: int | None, prices: Prices
) -> float | None:
    """The price of one stage; None where a part of it is not known. A GB without a price is free, an hour is not."""
    total = 0.0
    for hours, name in ((_hours(seconds, gpus), "gpu_hour"), (_hours(seconds, cpus), "cpu_hour")):
        if name == "gpu_hour" and not gpus:
            continue
        if hours is None or name not in prices.model_fields_set:
            return None
        total += hours * float(getattr(prices, name))
    for size, price in ((read, prices.gb_read), (written, prices.gb_written)):
        if price and size is None:
            return None
        total += (size or 0) / _GB * price
    return total


def _hours(seconds: float | None, number: float) -> float | None:
    return None if seconds is None else seconds / 3600 * number


def _sum(values: Iterable[float | None]) -> Sum:
    parts = list(values)
    known = [value for value in parts if value is not None]
    return Sum(sum(known) if known or not parts else None, len(known) == len(parts))


def _elapsed(recipe: Recipe, stages: list[StageEstimate], at_once: bool) -> tuple[Sum, str]:
    """(time of the whole run, what it rests on): the sum of all stages, or the longest chain where they run at once."""
    running = [stage for stage in stages if stage.runs]
    known = [stage for stage in running if stage.time.seconds is not None]
    if not known and len(running) == len(stages) and recipe.minutes and not at_once:
        return Sum(recipe.minutes * 60, True), f"the recipe, on {recipe.hardware}"
    if not known:
        return Sum(None, False), "nothing: these stages were not measured"
    how = "independent stages at once" if at_once else "one stage after another"
    seconds = _longest_chain(stages) if at_once else sum(stage.time.seconds or 0.0 for stage in known)
    rest = "" if len(known) == len(running) else f"; {len(running) - len(known)} of {len(running)} are not known"
    return Sum(seconds, not rest), f"what was measured, {how}{rest}"


def _longest_chain(stages: list[StageEstimate]) -> float:
    ends: dict[str, float] = {}
    for stage in stages:
        begins = max((ends[name] for name, _ in stage.plan.spec.roles().values()), default=0.0)
        ends[stage.plan.name] = begins + (stage.time.seconds or 0.0)
    return max(ends.values(), default=0.0)


class _Sizes:
    """Sizes of artifacts, looked at once and only where a stage that runs reads them."""

    def __init__(self, plans: dict[str, StagePlan]) -> None:
        self._plans = plans
        self._found: dict[str, Size | None] = {}
        self._expected: dict[str, StageEstimate] = {}

    def expect(self, stage: StageEstimate) -> None:
        """Remember what a stage that is not made yet will write."""
        self._expected[stage.plan.name] = stage

    def of_parents(self, spec: StageSpec) -> dict[str, Size | None]:
        """Role -> size of the parent."""
        return {role: self._of(stage) for role, (stage, _) in spec.roles().items()}

    def _of(self, name: str) -> Size | None:
        if name not in self._found:
            plan, stage = self._plans[name], self._expected[name]
            made = plan.artifact
            self._found[name] = size_of(made) if made else size_to_be(plan, stage.bytes_written, stage.work)
        return self._found[name]
