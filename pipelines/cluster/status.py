"""How a run stands, stage by stage: KFP's word, our events and the artifacts themselves, merged into one row each.

The artifact's record decides what is complete; events say how far a stage is; KFP knows what has not begun, what was
cancelled, and pods that died without a word.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.failure import Failure, failure_uri
from data import storage
from data.artifacts import RECORD_NAME
from data.events import read_events
from data.lines import counts_text, duration, metrics_text, progress_text
from pipelines.cluster.kfp_api import KfpApi, KfpError, KfpRun, executors
from pipelines.cluster.pods import PodState
from pipelines.here.liveness import is_alive
from pipelines.recipe import parse_recipe
from pipelines.runs import RunRecord, run_folder, write_run

_SILENT_SECONDS = 600.0
_SKEW_SECONDS = 1.0  # between the clock of who submits and those of the pods
_STATES = {"SUCCEEDED": "finished", "FAILED": "failed", "CANCELED": "cancelled", "SKIPPED": "failed"}
_GIVEN_UP = ("SKIPPED", "CANCELED", "CANCELING")


class Row(NamedTuple):
    """One stage. `state`: reused | finished | running | starting | waiting | failed | cancelled | not run."""

    stage: str
    state: str
    seconds: float | None = None
    detail: str = ""


class Known(NamedTuple):
    """All that is known of a run from outside its record."""

    kfp: KfpRun | None = None
    pods: Sequence[PodState] = ()
    notes: tuple[str, ...] = ()  # what could not be asked, and why


def rows(root: str, record: RunRecord, known: Known, now: float | None = None) -> list[Row]:
    """A row a stage, parents first."""
    found: dict[str, Row] = {}
    recipe = parse_recipe(record.recipe)
    for stage in recipe.order():
        parents = sorted({parent for parent, _ in recipe.stages[stage].roles().values()})
        found[stage] = _row(root, record, known, stage, now or time.time())
        if found[stage].state == "waiting":
            found[stage] = found[stage]._replace(detail=_waits_for(parents, found) or found[stage].detail)
    return list(found.values())


def _waits_for(parents: list[str], found: Mapping[str, Row]) -> str:
    missing = [stage for stage in parents if stage in found and found[stage].state not in ("reused", "finished")]
    return f"for {', '.join(missing)}" if missing else ""


def _row(root: str, record: RunRecord, known: Known, stage: str, now: float) -> Row:
    of_run = record.stages[stage]
    of_all = _events(root, record, of_run.artifact)
    if of_run.artifact and storage.exists(storage.join(root, of_run.artifact, RECORD_NAME)):
        return Row(stage, "reused") if of_run.reused else _finished(stage, of_all)
    since = (record.submission.submitted if record.submission else None) or record.started
    events = [event for event in of_all if event["time"] >= since - _SKEW_SECONDS]  # of the last attempt
    task, error = _task_state(record, known, stage)
    if record.state != "running" or task in _STATES or is_lost(record):
        return _ended(root, record, stage, events, task, error)
    last = events[-1] if events else None
    if last and last["event"] not in ("failed", "finished", "reused"):
        return _running(stage, events, now)
    if last and last["event"] == "failed":
        again = "its pod is made again" if task in ("RUNNING", "PENDING") else "KFP has not said yet"
        return Row(stage, "starting", None, f"failed: {last.get('error', '')}; {again}")
    if task == "RUNNING":
        return Row(stage, "starting", None, error or "its pod has said nothing yet")
    return Row(stage, "waiting", None, error or ("for a pod" if task == "PENDING" else ""))


def _events(root: str, record: RunRecord, artifact: str | None) -> list[dict[str, Any]]:
    """What the stage said in this run, in all its attempts."""
    if artifact is None:
        return []
    told = read_events(storage.join(root, ".events", f"{artifact}.jsonl"))
    return [event for event in told if event["time"] >= record.started - _SKEW_SECONDS]


def _finished(stage: str, events: list[dict[str, Any]]) -> Row:
    last = next((event for event in reversed(events) if event["event"] == "finished"), None)
    if last is None:
        return Row(stage, "finished")
    return Row(stage, "finished", last["seconds"], counts_text(last.get("counts", {}), most=4))


def _running(stage: str, events: list[dict[str, Any]], now: float) -> Row:
    began = next((event["time"] for event in reversed(events) if event["event"] == "started"), events[0]["time"])
    progress = next((event for event in reversed(events) if event["event"] == "progress"), None)
    metrics = next((event for event in reversed(events) if event["event"] == "metrics"), None)
    words = [
        progress_text(progress) if progress else "", metrics_text(metrics["values"]) if metrics else "",
        str((progress or {}).get("message") or ""),
    ]  # fmt: skip
    silent = now - events[-1]["time"]
    if silent > _SILENT_SECONDS:
        words.append(f"no word for {duration(silent)}")
    return Row(stage, "running", now - began, "  ".join(word for word in words if word))


def _ended(root: str, record: RunRecord, stage: str, events: list[dict[str, Any]], task: str, error: str) -> Row:
    """A stage without an artifact of a task, or a run, that goes no further."""
    began = next((event["time"] for event in reversed(events) if event["event"] == "started"), None)
    seconds = round(events[-1]["time"] - began, 1) if began is not None else None
    failure = read_failure(root, record.name, stage)
    if task == "FAILED" or failure or (events and events[-1]["event"] == "failed"):
        told = failure_line(failure) if failure else error or "its pod ended without a word"
        return Row(stage, "failed", seconds, told)
    if is_lost(record) and began is not None:
        return Row(stage, "failed", seconds, "its process is gone")
    if record.failed_stage == stage:
        return Row(stage, "failed", seconds, error or "it ended without a word")
    if events and events[-1]["event"] in ("finished", "reused"):
        return Row(stage, "not run", None, "was made, but its artifact is gone")
    if began is not None or task == "CANCELED":
        return Row(stage, "cancelled", seconds)
    return Row(stage, "not run")


def read_failure(root: str, run: str, stage: str) -> Failure | None:
    """What a failed stage left, if it did."""
    uri = failure_uri(root, run, stage)
    return Failure.model_validate_json(storage.read_bytes(uri)) if storage.exists(uri) else None


def failure_line(failure: Failure) -> str:
    """A failure in one line."""
    told = failure.message if failure.user_error else f"{failure.error}: {failure.message}"
    where = f" ({failure.where})" if failure.where else ""
    return " ".join(told.split())[:200] + where


def _task_state(record: RunRecord, known: Known, stage: str) -> tuple[str, str]:
    """KFP's state of a stage's task ("" where it has none), and why, if somebody knows."""
    keys = [key for key, name in tasks_of(record).items() if name == stage]
    if known.kfp is None or not keys:
        return "", ""
    reason = next((pod.reason for pod in reversed(known.pods) if pod.stage == stage and pod.reason), "")
    driver = next((task for task in known.kfp.tasks if task.name == f"{keys[0]}-driver"), None)
    if driver and driver.state == "FAILED":
        return "FAILED", driver.error or "KFP could not make its pod; see the pod of its driver"
    task = next((task for task in known.kfp.tasks if task.name == keys[0]), None)
    if task is None:
        return ("CANCELED" if known.kfp.state in _GIVEN_UP else ""), reason
    pods = list(executors(known.kfp, keys[0]))
    state = pods[-1].state if pods and task.state == "RUNNING" else task.state
    return ("RUNNING" if state == "SUCCEEDED" else state), reason or task.error or (pods[-1].error if pods else "")


def settle(root: str, record: RunRecord, kfp: KfpRun | None) -> RunRecord:
    """The record, ended if KFP says that the run has ended; nobody else writes that after a submission.

    What KFP calls a success is one when every stage's artifact is there: a retry of one stage leaves others.
    """
    if record.state != "running" or kfp is None or not kfp.has_ended:
        return record
    state = _STATES[kfp.state]
    if state == "finished" and missing_stages(root, record):
        state = "failed"
    failed = failed_stage(root, record, kfp) if state == "failed" else None
    ended = record.ended_as(state, failed)  # type: ignore[arg-type]
    write_run(root, ended)
    return ended


def is_lost(record: RunRecord) -> bool:
    """A run of this machine that nobody runs any more, though its record still says so."""
    return record.state == "running" and record.submission is None and is_alive(record.process) is False


def missing_stages(root: str, record: RunRecord) -> list[str]:
    """Stages whose artifact is not complete."""
    return [
        stage for stage, of_run in record.stages.items()
        if not (of_run.artifact and storage.exists(storage.join(root, of_run.artifact, RECORD_NAME)))
    ]  # fmt: skip


def failed_stage(root: str, record: RunRecord, kfp: KfpRun | None) -> str | None:
    """The stage that ended the run: one that left a failure, or whose task failed."""
    folder = storage.join(run_folder(root, record.name), "failures")
    left = [name.removesuffix(".json") for name, _ in storage.list_files(folder)]
    names, missing = tasks_of(record), missing_stages(root, record)
    dead = [task.name.removesuffix("-driver") for task in (kfp.tasks if kfp else ()) if task.state == "FAILED"]
    return next((stage for stage in [*left, *map(names.get, dead)] if stage in missing), None)


def tasks_of(record: RunRecord) -> dict[str, str]:
    """KFP's name of a task -> stage, of what was handed in last."""
    return record.submission.tasks if record.submission else {}


def ask_kfp(api: KfpApi, record: RunRecord) -> KfpRun:
    """What KFP says of a record's run.

    Raises:
        KfpError: it cannot be asked, or has no such run any more.
    """
    assert record.submission
    try:
        return api.run(record.submission.run_id)
    except KfpError as error:
        if error.status == 404:
            raise KfpError(
                f"{api.endpoint}: KFP has no run {record.submission.run_id} ({record.name}); it was deleted there, "
                "or kfp.endpoint is another cluster's", 404,
            ) from error  # fmt: skip
        raise
