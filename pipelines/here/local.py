"""`clipworks run` on this machine: plan, execute what is missing through kfp.local in a child process, draw, report."""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from components.runtime import needs_ray
from data import storage
from data.artifacts import Artifact, open_artifact
from data.errors import StorageError, UserError
from data.place import Place
from pipelines.failures.failing import StageError as StageError
from pipelines.failures.failing import fail
from pipelines.here import container_engine
from pipelines.here.evidence import Watch
from pipelines.here.liveness import this_process
from pipelines.here.workspace import Workspace, open_workspace
from pipelines.planning.plan import StagePlan, counts_text, duration, make_plan
from pipelines.recipe import Recipe
from pipelines.render import EventTail, Renderer, make_renderer
from pipelines.review.tracking_job import tracking_job
from pipelines.runs import RunRecord, StageOfRun, versions, write_run

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


def run_recipe(
    recipe: Recipe, place: Place, run: str | None, again: list[str], console: Console, group: str | None = None
) -> None:
    """Run a recipe on this machine; what is complete is reused.

    Args:
        recipe: what to run.
        place: where, with what.
        run: the run's name, or None for one made of the recipe's name and the time.
        again: the command that continues this run.
        console: where to draw.
        group: the sweep that the run belongs to.

    Raises:
        UserError: something the user can put right.
        StageError: a stage failed, with where its log is and how to continue.
        KeyboardInterrupt: the run was ended; every process of it too.
    """
    started = time.monotonic()
    place = place.model_copy(update={"root": storage.normalise(place.root)})
    workspace = open_workspace(place.root, run, recipe.name)
    plans = make_plan(recipe, place)
    for plan in plans:
        if plan.problem:
            raise UserError(f"stages.{plan.name}: {plan.problem}")
    to_run = [plan for plan in plans if not plan.artifact]
    console.print(
        f"{recipe.title}: {len(to_run)} of {len(plans)} stages to run, the others are reused", highlight=False
    )
    in_containers = place.runner == "container" and to_run
    record = _record(recipe, place, workspace, plans, again, container_engine.check(place) if in_containers else None)
    record = record.model_copy(update={"group": group})
    write_run(place.root, record)
    if to_run:
        try:
            _execute(recipe, place, workspace, plans, record, console)
        except KeyboardInterrupt:
            write_run(place.root, record.ended_as("cancelled"))
            console.print(
                f"ended; what is complete stays. continue: {shlex.join(again)}", highlight=False, soft_wrap=True
            )
            raise
        except StageError as error:
            with suppress(StorageError):  # it may be the storage that failed: the stage's own error is what counts
                write_run(place.root, record.ended_as("failed", error.stage))
            raise
    write_run(place.root, record.ended_as("finished"))
    show_end(place, plans, console, time.monotonic() - started)


def _execute(
    recipe: Recipe, place: Place, workspace: Workspace, plans: list[StagePlan], record: RunRecord, console: Console
) -> None:
    """Run the pipeline in a child process and draw its events until it ends."""
    _write_job(recipe, place, workspace, plans)
    tails = [EventTail(plan.events_uri(place.root), time.time()) for plan in plans if not plan.artifact]
    with ended_as_one(workspace) as child, make_renderer(console) as renderer:
        watch, told = Watch(child.pid), False
        while True:
            watch.look()
            has_ended = child.poll() is not None  # asked before reading, so that the last events are read
            problem = _draw(tails, renderer)
            if problem and not told:
                told = True
                console.print(f"{problem}; the run goes on", markup=False, highlight=False, soft_wrap=True)
            if has_ended:
                break
            time.sleep(_POLL_SECONDS)
    if child.returncode:
        fail(workspace, record, plans, child.returncode, watch.ending(workspace.logs), list(record.command))


def _draw(tails: list[EventTail], renderer: Renderer) -> str:
    """Draw new events; say why where storage fails, which must not end a run: its stages try for longer."""
    try:
        for tail in tails:
            for event in tail.read():
                renderer.show(event)
    except StorageError as error:
        return str(error)
    return ""


def _write_job(recipe: Recipe, place: Place, workspace: Workspace, plans: list[StagePlan]) -> None:
    """Write what the child and the tracker are to do."""
    to_run = [plan for plan in plans if not plan.artifact]
    tracking = workspace.logs / "tracking.json"
    tracking.write_text(json.dumps(tracking_job(recipe, place, workspace, plans)))
    job = {
        "recipe": recipe.to_dict(),
        "place": place.model_dump(mode="json"),
        "run": workspace.run,
        "failure": str(workspace.failure),
        "ray": str(workspace.ray),
        "kfp": str(workspace.kfp),
        "tracking": str(tracking),
        "kinds": sorted({plan.kind for plan in to_run}),
        "done": {plan.name: plan.artifact.uri for plan in plans if plan.artifact},
        "logs": str(workspace.logs),
        # in a container a stage starts its own
        "needs_ray": place.runner == "process" and any(needs_ray(plan.kind, place) for plan in to_run),
    }
    workspace.job.write_text(json.dumps(job))


def run_environment() -> dict[str, str]:
    """What the processes of a run need: our packages from anywhere, none from the user's folder, a Ray of their own."""
    here = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    if here.name != "site-packages":
        environment["PYTHONPATH"] = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment


@contextmanager
def ended_as_one(
    workspace: Workspace, module: str = "pipelines.here.child", environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the child as the leader of a process group; whatever ends the block ends the whole group."""
    with workspace.log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(workspace.job)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=run_environment() if environment is None else environment,
        )  # fmt: skip
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield child
    finally:
        _end(child)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _end(child: subprocess.Popen[bytes]) -> None:
    """TERM to the group, KILL to what is left of it."""
    try:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _record(
    recipe: Recipe, place: Place, workspace: Workspace, plans: list[StagePlan], again: list[str], image: str | None
) -> RunRecord:
    """The record of a run that starts now."""
    stages = {
        plan.name: StageOfRun(
            fingerprint=plan.fingerprint, artifact=plan.artifact_name, reused=plan.artifact is not None
        )
        for plan in plans
    }
    return RunRecord(
        name=workspace.run, state="running", started=time.time(), command=tuple(again), recipe=recipe.to_dict(),
        place=place.model_dump(mode="json"), stages=stages, versions=versions(), code=place.code,
        image=image,
        process=this_process(),
    )  # fmt: skip


def show_end(place: Place, plans: list[StagePlan], console: Console, seconds: float) -> None:
    """Print what came out: every artifact, the headline results, the report."""
    made = [(plan, open_artifact(storage.join(place.root, str(plan.artifact_name)))) for plan in plans]
    table = _table("stage", "", "artifact", "holds")
    for plan, artifact in made:
        counts = counts_text(artifact.record.counts, most=3)
        table.add_row(plan.name, "reused" if plan.artifact else "made", storage.name_of(artifact.uri), counts)
    console.print(table)
    for _, artifact in made:
        if artifact.record.kind == "report":
            _show_report(artifact, console)
    console.print(f"finished in {duration(seconds)}", highlight=False)


def _show_report(report: Artifact, console: Console) -> None:
    """Print the headline metric of every label, and where the page is."""
    headline = report.record.metrics.get("headline", {})
    if headline:
        table = _table(
            " ".join(str(headline[part]) for part in ("set", "split", "task", "metric")), "", "95 % interval", "chance"
        )
        for row in headline["rows"]:
            value, low, high, chance = (_shown(row[name], row["unit"]) for name in ("value", "low", "high", "chance"))
            table.add_row(
                f"{row['label']} (control)" if row["control"] else row["label"], value, f"{low} - {high}", chance
            )
        console.print()
        console.print(table)
    _show_averages(report.record.metrics.get("averages", []), console)
    console.print(f"\nreport: {report.at('report.html')}", markup=False, highlight=False, soft_wrap=True)


def _show_averages(averages: list[dict[str, Any]], console: Console) -> None:
    """Print the averages of a suite, each with how many of its numbers it holds."""
    if not averages:
        return
    table = _table("average", "", "", "95 % interval", "chance", "of")
    for row in averages:
        value, low, high, chance = (_shown(row[name], "fraction") for name in ("value", "low", "high", "chance"))
        table.add_row(row["average"], row["label"], value, f"{low} - {high}", chance, f"{row['n']} of {row['of']}")
    console.print()
    console.print(table)


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    written = {"fraction": f"{value:.1%}", "rank": f"{value:.1f}", "points": f"{100 * value:+.1f}"}
    return written.get(unit, f"{value:.3g}")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
