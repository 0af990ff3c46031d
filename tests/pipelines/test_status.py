"""How a stage stands when KFP, its events and its failure say different things."""

import time
from pathlib import Path
from typing import Any

import pytest

from components.failure import Failure, leave
from data.events import Events
from pipelines.cluster.kfp_api import KfpRun, Task
from pipelines.cluster.pods import PodState
from pipelines.cluster.status import Known, Row, rows
from pipelines.runs import RunRecord

NOW = time.time()


@pytest.fixture
def record(small: dict[str, Any]) -> RunRecord:
    """A run of two stages that was handed in a minute ago."""
    stages = {name: small["stages"][name] for name in ("pairs", "split")}
    made = {name: {"fingerprint": "0" * 64, "artifact": f"{name}-000000000000", "reused": False} for name in stages}
    return RunRecord.model_validate(
        {
            "name": "first", "state": "running", "started": NOW - 60, "command": ["clipworks"], "place": {},
            "recipe": {**small, "stages": stages}, "stages": made, "versions": {},
            "submission": {
                "cluster": {"name": "lab"}, "run_id": "r", "tasks": {"ingest": "pairs", "split": "split"},
                "submitted": NOW - 60,
            },
        }
    )  # fmt: skip


def told(root: Path, record: RunRecord, *tasks: Task, state: str = "RUNNING", pods: Any = ()) -> Row:
    """The row of the stage `pairs`."""
    return rows(str(root), record, Known(KfpRun("r", state, "", tasks), pods), NOW)[0]


def node(name: str, state: str, pod: str = "", children: tuple[str, ...] = (), error: str = "") -> Task:
    return Task(name, state, pod, children, error)


def say(root: Path, *events: dict[str, Any]) -> None:
    sink = Events(str(root / ".events" / "pairs-000000000000.jsonl"), "pairs")
    for event in events:
        sink.emit(**event)


def test_before_and_while_its_pod_starts(record: RunRecord, tmp_path: Path) -> None:
    assert told(tmp_path, record) == Row("pairs", "waiting")
    assert told(tmp_path, record, node("ingest", "PENDING")) == Row("pairs", "waiting", None, "for a pod")
    pending = (node("ingest", "RUNNING", "wf-5", ("wf-1",)), node("executor", "PENDING", "wf-impl-1"))
    assert told(tmp_path, record, *pending) == Row("pairs", "waiting", None, "for a pod")
    running = (node("ingest", "RUNNING", "wf-5", ("wf-1",)), node("executor", "RUNNING", "wf-impl-1"))
    assert told(tmp_path, record, *running) == Row("pairs", "starting", None, "its pod has said nothing yet")


def test_a_pod_that_failed_and_is_made_again(record: RunRecord, tmp_path: Path) -> None:
    say(tmp_path, {"event": "started"}, {"event": "failed", "error": "OSError"})
    again = (
        node("ingest", "RUNNING", "wf-5", ("wf-1", "wf-2")), node("executor(0)", "FAILED", "wf-impl-1"),
        node("executor(1)", "RUNNING", "wf-impl-2"),
    )  # fmt: skip
    assert told(tmp_path, record, *again) == Row("pairs", "starting", None, "failed: OSError; its pod is made again")
    say(tmp_path, {"event": "started"})
    assert told(tmp_path, record, *again).state == "running"


def test_a_pod_that_died_without_a_word(record: RunRecord, tmp_path: Path) -> None:
    say(tmp_path, {"event": "started"}, {"event": "progress", "done": 1, "total": 2, "unit": "pairs", "rate": None})
    failed = (node("ingest", "FAILED", "wf-5", ("wf-1",)), node("executor", "FAILED", "wf-impl-1", error="exit 137"))
    assert told(tmp_path, record, *failed)[::3] == ("pairs", "exit 137")
    pod = PodState("kubeflow", "wf-impl-1", "pairs", "main", "Failed", "OOMKilled (exit 137)", None)  # type: ignore[arg-type]
    row = told(tmp_path, record, *failed, pods=[pod])
    assert (row.state, row.detail) == ("failed", "OOMKilled (exit 137)")


def test_what_the_stage_said_of_its_failure_comes_first(record: RunRecord, tmp_path: Path) -> None:
    leave(
        Failure(stage="pairs", error="ShardError", message="torn shard", user_error=True, where="rank 3"),
        str(tmp_path),
        "first",
    )
    row = told(tmp_path, record, node("ingest", "FAILED", error="exit 1"), state="FAILED")
    assert (row.state, row.detail) == ("failed", "torn shard (rank 3)")


def test_a_pod_that_could_not_be_made(record: RunRecord, tmp_path: Path) -> None:
    row = told(tmp_path, record, node("ingest-driver", "FAILED", error="no such claim"))
    assert (row.state, row.detail) == ("failed", "no such claim")


def test_silence_is_said(record: RunRecord, tmp_path: Path) -> None:
    say(tmp_path, {"event": "started"})
    late = rows(str(tmp_path), record, Known(KfpRun("r", "RUNNING", "", ())), NOW + 3600)[0]
    assert late.state == "running"
    assert late.detail.startswith("no word for ")


def test_events_of_another_run_do_not_count(record: RunRecord, tmp_path: Path) -> None:
    say(tmp_path, {"event": "started"})
    later = record.model_copy(update={"started": NOW + 86_400, "submission": None})
    assert rows(str(tmp_path), later, Known())[0] == Row("pairs", "waiting")


def test_a_run_of_this_machine_whose_process_is_gone(record: RunRecord, tmp_path: Path) -> None:
    from pipelines.here.liveness import this_process

    say(tmp_path, {"event": "started"})
    here = this_process()
    assert here
    local = record.model_copy(update={"submission": None, "process": here})
    assert rows(str(tmp_path), local, Known())[0].state == "running"
    gone = local.model_copy(update={"process": here.rpartition("/")[0] + "/1"})  # the id, of a process before this one
    assert rows(str(tmp_path), gone, Known())[0][1:4:2] == ("failed", "its process is gone")


@pytest.mark.parametrize(("began", "state"), [(True, "cancelled"), (False, "not run")])
def test_a_run_that_was_cancelled(record: RunRecord, tmp_path: Path, began: bool, state: str) -> None:
    if began:
        say(tmp_path, {"event": "started"})
    ended = record.ended_as("cancelled")
    assert rows(str(tmp_path), ended, Known())[0].state == state
