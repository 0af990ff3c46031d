"""Following a run of a cluster until it ends: its events drawn as they come, its end told as that of a local run."""

import shlex
import time
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console

from data import storage
from data.lines import EventTail, duration
from data.place import Place
from pipelines.cluster.kfp_api import KfpApi, KfpError, KfpRun
from pipelines.cluster.pods import PodState, UnreachableError, asking, reach
from pipelines.cluster.spec import Cluster
from pipelines.cluster.status import ask_kfp, missing_stages, read_failure, settle, tasks_of
from pipelines.failures.postmortem import leave_cluster_page
from pipelines.here.local import StageError, show_end
from pipelines.planning.plan import make_plan
from pipelines.recipe import parse_recipe
from pipelines.render import make_renderer
from pipelines.runs import RunRecord

POLL_SECONDS = 0.2
ASK_SECONDS = 5.0  # between questions to KFP
LAST_EVENTS_SECONDS = 5.5  # events on object storage come every five seconds; the last ones behind the end
_PATIENCE_SECONDS = 600.0  # without an answer from KFP; the run goes on meanwhile
_LOG_LINES = 25


def follow(record: RunRecord, cluster: Cluster, on: str, since: float, console: Console) -> RunRecord:
    """Draw the run's events from `since` on until KFP says that it has ended; return its settled record.

    Raises:
        StageError: a stage failed, or the run was cancelled.
        KeyboardInterrupt: the caller goes; the run does not.
    """
    root = record.place["root"]
    stages = [record.stages[stage] for stage in tasks_of(record).values()]
    tails = [EventTail(storage.join(root, ".events", f"{one.artifact}.jsonl"), since) for one in stages]
    with make_renderer(console) as renderer:
        for kfp in _until_ended(KfpApi(cluster.kfp), record, console):
            for tail in tails:
                for event in tail.read():
                    renderer.show(event)
            if kfp is not None:
                break
    ended = settle(root, record, kfp)
    if missing_of_task(ended):
        _fail(ended, cluster, on)
    return ended


def missing_of_task(record: RunRecord) -> set[str]:
    """Stages that were handed in and are not complete."""
    return set(missing_stages(record.place["root"], record)) & set(tasks_of(record).values())


def _until_ended(api: KfpApi, record: RunRecord, console: Console) -> Iterator[KfpRun | None]:
    """Yield None often, and KFP's last word once, behind the last events."""
    answered = time.monotonic()
    asked = float("-inf")
    is_told = False
    while True:
        yield None
        if time.monotonic() - asked >= ASK_SECONDS:
            asked = time.monotonic()
            try:
                kfp = ask_kfp(api, record)
            except KfpError as error:
                if not error.is_passing or asked - answered > _PATIENCE_SECONDS:
                    raise
                if not is_told:
                    console.print(f"{error}; asking again", markup=False, highlight=False, soft_wrap=True)
                is_told = True
            else:
                answered, is_told = asked, False
                if kfp.has_ended:
                    time.sleep(0 if storage.is_local(record.place["root"]) else LAST_EVENTS_SECONDS)
                    yield kfp
        time.sleep(POLL_SECONDS)


def _fail(record: RunRecord, cluster: Cluster, on: str) -> NoReturn:
    """Raise StageError with what failed, where more is told, and how to go on."""
    run, stage = shlex.quote(record.name), record.failed_stage
    retry = f"continue: clipworks retry {run} --on {on}"
    if record.state == "cancelled":
        raise StageError(f"run {record.name}: was cancelled; what is complete stays\n{retry}", 1)
    if stage is None:
        raise StageError(f"run {record.name}: KFP ended it without naming a stage\n{retry}", 1)
    failure = read_failure(record.place["root"], record.name, stage)
    word = _last_word(record, cluster, stage) if failure is None else None
    page = leave_cluster_page(record, stage, failure, on, [word] if word else [])
    hints = f"log: clipworks logs {run} --stage {stage} --on {on}\n{page}\n{retry}"
    if failure is None:
        raise StageError(f"stage {stage} failed: {word}\n{hints}", 1, stage)
    if failure.user_error:
        raise StageError(f"stage {stage}: {failure.message}\n{hints}", 2, stage)
    tail = "\n".join(failure.traceback.splitlines()[-_LOG_LINES:])
    raise StageError(f"stage {stage} failed: {failure.error}\n{tail}\n{hints}", 1, stage)


def _last_word(record: RunRecord, cluster: Cluster, stage: str) -> str:
    """Why a stage's pod ended that could not say so itself, from Kubernetes if that can be asked."""
    try:
        pods = pods_of(record, cluster)
    except UnreachableError as error:
        return f"its pod ended without a word; why is not known here: {error}"
    reasons = [f"{pod.name}: {pod.reason}" for pod in reversed(pods) if pod.stage == stage and pod.reason]
    return reasons[0] if reasons else "its pod ended without a word"  # it is gone, and with it why


def pods_of(record: RunRecord, cluster: Cluster) -> list[PodState]:
    """The pods of a run, from Kubernetes.

    Raises:
        UnreachableError: it cannot be asked from here.
    """
    assert record.submission
    found: list[PodState] = asking(reach(cluster).of, record.name, record.submission.run_id)
    return found


def show_result(record: RunRecord, on: str, console: Console) -> None:
    """Print what a run made that did what was asked of it: artifacts, the headline results, the report."""
    place = Place.model_validate(record.place)
    if missing := missing_stages(place.root, record):
        told = f"what was asked for is complete; still missing: {', '.join(missing)}"
        console.print(f"{told}\ncontinue: clipworks retry {record.name} --on {on}", highlight=False, soft_wrap=True)
        return
    plans = make_plan(parse_recipe(record.recipe), place)
    made = [plan if record.stages[plan.name].reused else plan._replace(artifact=None) for plan in plans]
    show_end(place, made, console, (record.ended or time.time()) - record.started)


def how_to_follow(record: RunRecord, on: str) -> str:
    """The commands for a run that goes on by itself."""
    run = shlex.quote(record.name)
    return (
        f"follow: clipworks status {run} --on {on} --watch\nlogs:   clipworks logs {run} --on {on}\n"
        f"end it: clipworks cancel {run} --on {on}"
    )


def age(record: RunRecord) -> str:
    """How long a run has been going, or took."""
    return duration((record.ended or time.time()) - record.started)
