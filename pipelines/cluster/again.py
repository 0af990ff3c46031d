"""`clipworks retry` and `cancel`: hand in again only what is missing, or end a run and what it left behind."""

import time
from collections.abc import Iterator

from rich.console import Console

from data.errors import RecipeError, UserError
from data.lines import duration
from data.place import Place
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.pods import UnreachableError, asking, reach
from pipelines.cluster.spec import Cluster
from pipelines.cluster.status import ask_kfp, missing_stages, settle
from pipelines.cluster.submit import Order, planned, reachable_place, stage_of
from pipelines.explain import need
from pipelines.here.local import run_recipe
from pipelines.planning.plan import StagePlan
from pipelines.recipe import Recipe, parse_recipe
from pipelines.runs import RunRecord, write_run

CANCEL_SECONDS = 60.0  # for the pods' own clean-up
_POLL_SECONDS = 1.0


def cut(recipe: Recipe, stage: str) -> Recipe:
    """The recipe up to one stage: it and what it is made of.

    Raises:
        RecipeError: there is no such stage.
    """
    need("--stage", stage, list(recipe.stages), "no such stage in this run")
    wanted, queue = {stage}, [stage]
    while queue:
        parents = {parent for parent, _ in recipe.stages[queue.pop()].roles().values()}
        queue += parents - wanted
        wanted |= parents
    return recipe.model_copy(update={"stages": {name: recipe.stages[name] for name in recipe.stages if name in wanted}})


def check_retry(run: str, plans: list[StagePlan], stage: str | None) -> None:
    """Refuse to retry one stage that is complete, or that waits for others.

    Raises:
        RecipeError: says which, and what to do.
    """
    if stage is None:
        return
    missing = [plan.name for plan in plans if not plan.artifact]
    if stage not in missing:
        made = next(plan.artifact_name for plan in plans if plan.name == stage)
        raise RecipeError(f"--stage {stage}: is complete ({made}); `clipworks status {run}` tells what is not")
    if others := [name for name in missing if name != stage]:
        raise RecipeError(
            f"--stage {stage}: is made of {', '.join(others)}, not complete either; "
            "retry without --stage: all that is missing runs"
        )


def make_retry(record: RunRecord, cluster: Cluster, stage: str | None) -> Order:
    """What a retry of a run hands in; its memory, images and nodes are those that the cluster file names now."""
    whole, place = parse_recipe(record.recipe), reachable_place(cluster)
    recipe = cut(whole, stage) if stage else whole
    plans = planned(recipe, place)
    check_retry(record.name, plans, stage)
    return Order(recipe, cluster, place, record.name, tuple(plans), record.command, record)


def retry_here(record: RunRecord, place: Place, stage: str | None, again: list[str], console: Console) -> None:
    """Retry a run of this machine; its record keeps the whole recipe.

    Raises:
        StageError: it failed again.
    """
    whole = parse_recipe(record.recipe)
    if stage is None:
        run_recipe(whole, place, record.name, again, console)
        return
    recipe = cut(whole, stage)
    plans = planned(recipe, place)
    check_retry(record.name, plans, stage)
    stages = {**record.stages, **{plan.name: stage_of(plan, record) for plan in plans}}
    merged, state = record.model_copy(update={"stages": stages, "command": tuple(again)}), "failed"
    try:
        run_recipe(recipe, place, record.name, again, console)
        state = "failed" if missing_stages(place.root, merged) else "finished"
    finally:
        failed = stage if stage in missing_stages(place.root, merged) else None
        write_run(place.root, merged.ended_as(state, failed))  # type: ignore[arg-type]
    if missing := missing_stages(place.root, merged):
        console.print(f"stage {stage} is complete; still missing: {', '.join(missing)}", highlight=False)


def cancel(record: RunRecord, cluster: Cluster) -> Iterator[str]:
    """End a run of a cluster: its KFP run first, then RayJobs that its pods did not delete. Yields what it did.

    Raises:
        UserError: KFP cannot be asked, or does not end it.
    """
    api = KfpApi(cluster.kfp)
    kfp = ask_kfp(api, record)
    if not kfp.has_ended:
        if kfp.state != "CANCELING":  # somebody was faster, or this is asked again
            api.terminate(kfp.run_id)
        deadline = time.monotonic() + CANCEL_SECONDS
        while not kfp.has_ended and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            kfp = ask_kfp(api, record)
    yield _clean_up(record, cluster)
    if not kfp.has_ended:
        raise UserError(
            f"{api.endpoint}: KFP has not ended {kfp.run_id} after {duration(CANCEL_SECONDS)} (it says {kfp.state}); "
            "its pods may need longer: ask again"
        )
    if kfp.state == "CANCELED":
        write_run(record.place["root"], record.ended_as("cancelled"))
        yield f"{record.name}: cancelled; what is complete stays"
        return
    ended = settle(record.place["root"], record, kfp)  # it ended by itself before it was asked to
    yield f"{record.name}: is {ended.state} already"


def _clean_up(record: RunRecord, cluster: Cluster) -> str:
    """Delete RayJobs that outlive their tasks; say what was done, or could not be looked at."""
    if cluster.ray is None:
        return "no RayJobs: this cluster runs Ray in the tasks' own pods"
    try:
        names = asking(reach(cluster).delete_rayjobs, record.name)
    except UnreachableError as error:
        look = f"kubectl -n {cluster.namespace} get rayjobs"
        return f"RayJobs not looked at: {error}; a task's pod deletes its own when it is ended, look with: {look}"
    return f"RayJobs deleted: {', '.join(names)}" if names else "no RayJob is left"
