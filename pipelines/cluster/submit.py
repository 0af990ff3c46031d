"""Handing a recipe in to a cluster: what is missing, as one KFP pipeline, and a record of the run in its root."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from data import storage
from data.errors import RecipeError, StorageError, UserError
from data.place import Place
from data.specs import IngestSpec
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.spec import Cluster
from pipelines.planning.plan import StagePlan, make_plan
from pipelines.recipe import Recipe
from pipelines.runs import NAME, RunRecord, StageOfRun, Submission, run_folder, versions, write_run

_POOL_PATHS = ("url", "images", "captions", "annotations")


class Order(NamedTuple):
    """What is to be handed in: looked at before anything happens, by whoever has a say in it (budget, code)."""

    recipe: Recipe
    cluster: Cluster
    place: Place
    run: str
    plans: tuple[StagePlan, ...]
    command: tuple[str, ...]
    before: RunRecord | None = None  # of a run that is continued

    @property
    def to_run(self) -> list[StagePlan]:
        """The stages that are missing."""
        return [plan for plan in self.plans if not plan.artifact]

    @property
    def done(self) -> dict[str, str]:
        """Complete stage -> URI of its artifact."""
        return {plan.name: plan.artifact.uri for plan in self.plans if plan.artifact}


def make_order(recipe: Recipe, cluster: Cluster, run: str | None, command: list[str]) -> Order:
    """Plan a recipe against the cluster's root.

    Raises:
        UserError: the root or a source cannot be read from here, or by a pod; or the run's name cannot be one.
    """
    place = reachable_place(cluster)
    name = run or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not NAME.fullmatch(name):
        raise RecipeError(f"--name {name!r}: use at most 80 letters, digits, `.`, `_` and `-`, a letter or digit first")
    check_sources(recipe, cluster)
    return Order(recipe, cluster, place, name, tuple(planned(recipe, place)), tuple(command))


def with_code(order: Order, folder: str) -> Order:
    """The order with the packages of a checkout in place of the image's; empty: those that run now.

    Raises:
        RecipeError: the folder is no checkout, or too large.
    """
    from pipelines.cluster.code import checkout, upload_code

    uri = upload_code(order.place.root, Path(folder) if folder else checkout())
    return order._replace(place=order.place.model_copy(update={"code": uri}))


def planned(recipe: Recipe, place: Place) -> list[StagePlan]:
    """The plan, refused where a stage cannot be planned."""
    plans = make_plan(recipe, place)
    for plan in plans:
        if plan.problem:
            raise UserError(f"stages.{plan.name}: {plan.problem}")
    return plans


def reachable_place(cluster: Cluster) -> Place:
    """The place as pods get it, if its root can be read from here: reuse is decided by who submits.

    Raises:
        StorageError: the root is on a volume that is not mounted here.
    """
    place = cluster.whole_place()
    root = storage.normalise(place.root)
    if storage.is_local(root):
        claim, mount = next((c, m) for c, m in cluster.volumes.items() if root.startswith(m.rstrip("/") + "/"))
        if not Path(mount).is_dir():
            raise StorageError(
                f"place.root: {root}: volume {claim!r} is not mounted here at {mount}; mount it, "
                "run this in a pod that has it, or use an s3:// root"
            )
    return place.model_copy(update={"root": root})


def check_sources(recipe: Recipe, cluster: Cluster) -> None:
    """Refuse a pool in a folder of this machine: the plan here would read it, and no pod could.

    Raises:
        RecipeError: names the stage, the field and the path.
    """
    mounts = [mount.rstrip("/") + "/" for mount in cluster.volumes.values()]
    for name, spec in recipe.stages.items():
        pool = spec.pool if isinstance(spec, IngestSpec) else None
        for field in _POOL_PATHS:
            path = getattr(pool, field, None)
            if path and storage.is_local(path) and not any(storage.normalise(path).startswith(m) for m in mounts):
                raise RecipeError(
                    f"stages.{name}.pool.{field}: {path!r}: no pod sees this folder; "
                    "copy it to the bucket and give its s3:// address, or a folder below one of the cluster's `volumes`"
                )


def hand_in(order: Order, api: KfpApi) -> RunRecord:
    """Compile what is missing, hand it to KFP, and leave the run's record in the root.

    Raises:
        UserError: KFP or the root refuses; nothing runs then.
    """
    from pipelines.graph import stages_of_tasks

    text = compiled(order)
    spec = dict(zip(("pipeline_spec", "platform_spec"), yaml.safe_load_all(text), strict=True))
    experiment = api.experiment(order.cluster.kfp.experiment)
    folder = run_folder(order.place.root, order.run)
    storage.write_bytes(storage.join(folder, "pipeline.yaml"), text)
    storage.remove(storage.join(folder, "failures"))  # of an earlier attempt
    run_id = api.create_run(order.run, experiment, spec, order.cluster.service_account)
    record = _record(order, run_id, experiment, stages_of_tasks(spec["pipeline_spec"]))
    try:
        write_run(order.place.root, record)
    except BaseException:
        api.terminate(run_id)  # nobody could follow or end it without its record
        raise
    return record


def compiled(order: Order) -> bytes:
    """The IR YAML of what is missing."""
    from kfp import compiler

    from pipelines.graph import build_pipeline

    pipeline = build_pipeline(order.recipe, order.place, order.cluster, order.done, order.run)

    with tempfile.TemporaryDirectory(prefix="clipworks-") as folder:
        path = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(pipeline, str(path))
        return path.read_bytes()


def _record(order: Order, run_id: str, experiment_id: str, tasks: Mapping[str, str]) -> RunRecord:
    """The record of a run that was handed in now; a run that is continued keeps its beginning and its whole recipe."""
    submission = Submission(
        cluster=order.cluster.model_dump(mode="json"), run_id=run_id, experiment_id=experiment_id, tasks=dict(tasks),
        submitted=time.time(),
    )  # fmt: skip
    stages = {plan.name: stage_of(plan, order.before) for plan in order.plans}
    fresh = {"state": "running", "ended": None, "failed_stage": None, "submission": submission}
    place = order.place.model_dump(mode="json")
    now = {"place": place, "image": order.place.image, "code": order.place.code, "versions": versions()}
    if order.before:
        return order.before.model_copy(update={**fresh, **now, "stages": {**order.before.stages, **stages}})
    return RunRecord.model_validate(
        {
            "name": order.run, "started": submission.submitted, "command": order.command, "stages": stages,
            "recipe": order.recipe.to_dict(), **now, **fresh,
        }
    )  # fmt: skip


def stage_of(plan: StagePlan, before: RunRecord | None) -> StageOfRun:
    """What a record says of a stage; one that an earlier attempt of this run made was not reused."""
    known = before.stages.get(plan.name) if before else None
    reused = plan.artifact is not None and not (known and known.fingerprint == plan.fingerprint and not known.reused)
    return StageOfRun(fingerprint=plan.fingerprint, artifact=plan.artifact_name, reused=reused)
