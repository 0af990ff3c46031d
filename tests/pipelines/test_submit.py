"""From `submit` to `cancel`, against a KFP that executes what it gets: what is handed in, followed, repaired, ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.rayjob import label_value
from pipelines.cli import main
from pipelines.cluster import again, follow
from pipelines.runs import read_run, write_run
from pipelines.yaml_text import to_yaml

STAGES = ["pairs", "split", "match", "curate"]
TOKEN = "a-token-that-no-message-shows"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """KFP is asked often, and there is no kubeconfig unless a test has one."""
    monkeypatch.setattr(follow, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(again, "_POLL_SECONDS", 0.05)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def cluster(kfp: Any, tmp_path: Path) -> Path:
    """A cluster whose volume is this test's folder."""
    value = {
        "name": "lab", "kfp": {"endpoint": kfp.url}, "volumes": {"claim": str(tmp_path)}, "secrets": ["clipworks-s3"],
        "place": {"root": str(tmp_path / "runs"), "cpus_per_worker": 2, "wandb_mode": "disabled"},
    }  # fmt: skip
    path = tmp_path / "cluster.yaml"
    path.write_text(to_yaml(value))
    return path


@pytest.fixture
def clipworks(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command: exit code, output, errors."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def edit(cluster: Path, **values: Any) -> None:
    """Change fields of the cluster file."""
    cluster.write_text(to_yaml({**yaml.safe_load(cluster.read_text()), **values}))


def posted_tasks(kfp: Any, number: int = -1) -> list[str]:
    """Stages of a pipeline that was handed in."""
    spec = kfp.posted("/runs")[number]["pipeline_spec"]["pipeline_spec"]
    return sorted(task["taskInfo"]["name"] for task in spec["root"]["dag"]["tasks"].values())


def test_a_run_from_beginning_to_end_and_then_nothing_is_left_to_do(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command
) -> None:
    code, out, err = clipworks("submit", data_file, "--on", cluster, "--name", "first", "--wait")
    assert (code, err) == (0, "")
    assert "first: handed in to lab: 4 stages to run\n" in out
    assert f"clipworks status first --on {cluster} --watch" in out
    assert f"clipworks cancel first --on {cluster}" in out
    assert out.count(" made ") == 4
    assert "finished in" in out
    record = read_run(str(root), "first")
    assert record.state == "finished"
    assert record.submission
    assert record.submission.run_id in kfp.runs
    assert sorted(record.submission.tasks.values()) == sorted(STAGES)
    assert [entry.name for entry in root.glob("curate-*/record.json")] == ["record.json"]

    body = kfp.posted("/runs")[0]
    assert body["service_account"] == "clipworks"
    assert body["display_name"] == "first"
    assert clipworks("submit", data_file, "--on", cluster) == (
        0, f"Small recipe: all 4 stages are complete in {root}\n", "",
    )  # fmt: skip
    assert len(kfp.posted("/runs")) == 1

    code, out, _ = clipworks("status", "first", "--root", root, "--json")
    assert {row["stage"]: row["state"] for row in json.loads(out)["stages"]} == dict.fromkeys(STAGES, "finished")


def test_only_what_is_missing_is_handed_in(kfp: Any, data_file: Path, cluster: Path, clipworks: Command) -> None:
    assert clipworks("submit", data_file, "--on", cluster, "--wait")[0] == 0
    words = ("submit", data_file, "--on", cluster, "--wait", "--name", "second", "--set", "stages.curate.seed=7")
    code, out, _ = clipworks(*words)
    assert code == 0
    assert "1 of 4 stages to run, the others are reused" in out
    assert out.count(" reused ") == 3
    assert posted_tasks(kfp) == ["curate"]
    parents = kfp.posted("/runs")[-1]["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]["curate"]
    constant = parents["inputs"]["parameters"]["parents"]["runtimeValue"]["constant"]
    assert [line.partition("=")[0] for line in constant.splitlines()] == ["pairs", "split", "balance.matches"]
    assert all(Path(line.partition("=")[2], "record.json").exists() for line in constant.splitlines())


def test_what_is_posted_is_what_the_kfp_client_posts(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kfp.executes = False
    assert clipworks("submit", data_file, "--on", cluster, "--name", "ours")[0] == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    from kfp.client import Client

    client = Client(host=kfp.url, namespace="kubeflow")
    experiment = client.create_experiment("clipworks")
    client.run_pipeline(
        experiment.experiment_id, "ours", str(root / ".runs" / "ours" / "pipeline.yaml"), service_account="clipworks"
    )
    ours, theirs = kfp.posted("/runs")
    assert json.loads(json.dumps(ours)) == theirs
    assert client.get_run(next(iter(kfp.runs))).state == "PENDING"


def test_the_token_is_in_no_file_and_no_line(
    kfp: Any, data_file: Path, cluster: Path, tmp_path: Path, clipworks: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    kfp.token = TOKEN
    code, out, err = clipworks("submit", data_file, "--on", cluster, "--name", "first", "--wait")
    assert code == 0
    _, more, _ = clipworks("status", "first", "--on", cluster)
    assert TOKEN not in out + err + more
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def fail_once(kfp: Any, stage: str, error: Exception) -> None:
    """The next task of a stage fails."""
    left = [error]

    def before(name: str) -> None:
        if name == stage and left:
            raise left.pop()

    kfp.before = before


def test_a_pod_that_dies_is_told_and_retry_runs_only_what_is_missing(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command
) -> None:
    fail_once(kfp, "match", RuntimeError("node lost"))
    code, _, err = clipworks("submit", data_file, "--on", cluster, "--name", "first", "--wait")
    assert code == 1
    assert "error: stage match failed: its pod ended without a word" in err
    assert f"clipworks logs first --stage match --on {cluster}" in err
    assert err.rstrip().endswith(f"continue: clipworks retry first --on {cluster}")
    record = read_run(str(root), "first")
    assert (record.state, record.failed_stage) == ("failed", "match")
    began = record.started

    _, out, _ = clipworks("status", "first", "--on", cluster, "--json")
    states = {row["stage"]: row["state"] for row in json.loads(out)["stages"]}
    assert states == {"pairs": "finished", "split": "finished", "match": "failed", "curate": "not run"}
    _, out, _ = clipworks("logs", "first", "--stage", "match", "--on", cluster)
    assert "node lost" in out

    code, out, _ = clipworks("retry", "first", "--on", cluster, "--wait")
    assert code == 0
    assert posted_tasks(kfp) == ["curate", "match"]
    record = read_run(str(root), "first")
    assert (record.state, record.failed_stage, record.started) == ("finished", None, began)
    assert not any(stage.reused for stage in record.stages.values())  # this run made all of them, in two attempts
    assert clipworks("retry", "first", "--on", cluster)[1] == "first: all 4 stages are complete\n"


def test_a_users_mistake_keeps_its_line_and_its_exit_code(
    kfp: Any, data_file: Path, cluster: Path, pictures: Path, clipworks: Command
) -> None:
    def lose_the_pictures(stage: str) -> None:
        if stage == "pairs":
            shutil.rmtree(pictures / "images")
            (pictures / "images").mkdir()

    kfp.before = lose_the_pictures
    code, _, err = clipworks("submit", data_file, "--on", cluster, "--name", "first", "--wait")
    assert code == 2
    assert err.startswith("error: stage pairs: ")
    assert "Traceback" not in err
    _, out, _ = clipworks("status", "first", "--on", cluster)
    assert "failed" in out
    assert "pairs   failed   -     no pair of the pool is usable (missing_image 12)" in out


def test_retry_of_one_stage(kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command) -> None:
    fail_once(kfp, "match", RuntimeError("node lost"))
    clipworks("submit", data_file, "--on", cluster, "--name", "first", "--wait")
    words = ("retry", "first", "--on", cluster, "--stage")
    code, _, err = clipworks(*words, "curate")
    assert code == 2
    assert "--stage curate: is made of match, not complete either" in err
    code, _, err = clipworks(*words, "pairs")
    assert code == 2
    assert "--stage pairs: is complete (pairs-" in err
    code, _, err = clipworks(*words, "mach")
    assert (code, "did you mean 'match'?" in err) == (2, True)
    code, out, err = clipworks(*words, "match", "--wait")
    assert (code, err) == (0, "")
    assert posted_tasks(kfp) == ["match"]
    assert "what was asked for is complete; still missing: curate" in out
    record = read_run(str(root), "first")
    assert record.state == "failed"  # as a whole
    assert list(record.recipe["stages"]) == list(read_run(str(root), "first").stages) == STAGES
    assert clipworks("retry", "first", "--on", cluster, "--wait")[0] == 0
    assert read_run(str(root), "first").state == "finished"


def test_a_name_that_is_running_is_refused_and_cancel_ends_it(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command
) -> None:
    kfp.gate.clear()
    assert clipworks("submit", data_file, "--on", cluster, "--name", "first")[0] == 0
    for words in (("submit", data_file, "--name", "first"), ("retry", "first")):
        code, _, err = clipworks(*words, "--on", cluster)
        assert code == 2
        assert "'first': that run has not ended" in err
    _, out, _ = clipworks("status", "first", "--on", cluster, "--json")
    assert {row["state"] for row in json.loads(out)["stages"]} == {"waiting"}
    code, out, _ = clipworks("cancel", "first", "--on", cluster)
    assert code == 0
    assert "RayJobs not looked at: no usable kubeconfig" in out
    assert "first: cancelled; what is complete stays" in out
    assert read_run(str(root), "first").state == "cancelled"
    assert clipworks("cancel", "first", "--on", cluster)[1] == "first: is cancelled already\n"
    kfp.wait()
    kfp.gate.set()
    assert clipworks("retry", "first", "--on", cluster, "--wait")[0] == 0


def test_a_run_that_takes_its_time_to_end(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "CANCEL_SECONDS", 0.0)
    kfp.gate.clear()
    kfp.lingers = 4
    clipworks("submit", data_file, "--on", cluster, "--name", "first")
    code, _, err = clipworks("cancel", "first", "--on", cluster)
    assert code == 2
    assert "KFP has not ended" in err
    assert read_run(str(root), "first").state == "running"
    monkeypatch.setattr(again, "CANCEL_SECONDS", 30.0)
    assert clipworks("cancel", "first", "--on", cluster)[0] == 0
    assert len(kfp.posted(":terminate")) == 1
    assert read_run(str(root), "first").state == "cancelled"


def test_cancel_deletes_the_rayjobs_of_this_run_and_no_others(
    kfp: Any,
    pods: Any,
    data_file: Path,
    cluster: Path,
    clipworks: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(pods.kubeconfig(tmp_path / "kubeconfig")))
    kfp.gate.clear()
    name = "a-run-with-a-name-that-is-much-longer-than-what-a-label-may-hold-x"
    clipworks("submit", data_file, "--on", cluster, "--name", name)
    pods.add_rayjob("clipworks", "pretrain-1", {"clipworks/run": label_value(name)})
    pods.add_rayjob("clipworks", "other-1", {"clipworks/run": "other"})
    pods.add_rayjob("elsewhere", "pretrain-1", {"clipworks/run": label_value(name)})
    code, out, _ = clipworks("cancel", name, "--on", cluster)
    assert code == 0
    assert "RayJobs deleted: pretrain-1" in out
    assert [job["metadata"]["name"] for job in pods.rayjobs if job["metadata"]["namespace"] == "clipworks"] == [
        "other-1"
    ]


def test_status_says_why_a_pod_waits(
    kfp: Any,
    pods: Any,
    data_file: Path,
    cluster: Path,
    clipworks: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(pods.kubeconfig(tmp_path / "kubeconfig")))
    kfp.executes = False
    clipworks("submit", data_file, "--on", cluster, "--name", "first")
    run_id = next(iter(kfp.runs))
    run = kfp.runs[run_id]
    run["state"] = "RUNNING"
    run["tasks"]["ingest"] = {"state": "RUNNING", "pods": ["PENDING"]}
    labels = {"clipworks/run": "first", "clipworks/stage": "pairs", "pipeline/runid": run_id}
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes: Insufficient cpu",
    }
    pods.add_pod("kubeflow", "wf-impl-old", {**labels, "pipeline/runid": "another"}, reason="Evicted")
    pods.add_pod("kubeflow", "wf-impl-1", labels, log="hello\n", phase="Pending", conditions=[condition])
    pods.forbidden.add("clipworks")
    _, out, _ = clipworks("status", "first", "--on", cluster, "--json")
    told = {row["stage"]: (row["state"], row["detail"]) for row in json.loads(out)["stages"]}
    assert told["pairs"] == ("waiting", "Unschedulable: 0/3 nodes: Insufficient cpu")
    assert told["split"] == ("waiting", "for pairs")
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    pods.pods[-1]["status"] = {
        "phase": "Pending", "containerStatuses": [{"name": "main", "state": waiting, **_IMAGE}],
    }  # fmt: skip
    _, out, _ = clipworks("status", "first", "--on", cluster)
    assert "ImagePullBackOff: no such image" in out
    _, out, _ = clipworks("logs", "first", "--on", cluster)
    assert out == "--- pairs, pod wf-impl-1\nhello\n"


_IMAGE = {"image": "x", "imageID": "x", "ready": False, "restartCount": 0}


def test_status_and_logs_of_a_stage_that_runs(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def before(stage: str) -> None:
        if stage == "split":
            reached.set()
            go_on.wait(timeout=60)

    kfp.before = before
    clipworks("submit", data_file, "--on", cluster, "--name", "first")
    assert reached.wait(timeout=60)
    artifact = read_run(str(root), "first").stages["split"].artifact
    from data.events import Events

    events = Events(str(root / ".events" / f"{artifact}.jsonl"), "split")
    events.emit("started")
    events.emit("progress", done=1024, total=9000, unit="pairs", rate=512.0, message="")
    events.emit("metrics", step=3, values={"loss": 2.25})
    _, out, _ = clipworks("status", "first", "--on", cluster, "--json")
    told = {row["stage"]: row for row in json.loads(out)["stages"]}
    assert told["pairs"]["state"] == "finished"
    assert told["pairs"]["detail"].startswith("12 pairs")
    assert told["split"]["state"] == "running"
    assert told["split"]["detail"] == "1,024/9,000 pairs  512 pairs/s  16 s left  loss 2.25"
    _, out, _ = clipworks("logs", "first", "--on", cluster)
    assert "--- split, pod clipworks-data-only-x1-system-container-impl-" not in out  # the fake's pod has said nothing
    assert "stage pairs on a pod" in out
    code, out, err = clipworks("logs", "first", "--root", root, "--stage", "split")
    assert "step 3  loss 2.25" in out
    assert "add --on with the file of 'lab'" in err
    go_on.set()
    code, out, _ = clipworks("status", "first", "--on", cluster, "--watch")
    assert code == 0
    assert "finished in" in out


def test_logs_are_followed_to_the_end_each_line_once(
    kfp: Any, data_file: Path, cluster: Path, clipworks: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.commands.cluster._POLL_SECONDS", 0.05)
    kfp.gate.clear()
    clipworks("submit", data_file, "--on", cluster, "--name", "first")
    threading.Timer(0.5, kfp.gate.set).start()
    code, out, err = clipworks("logs", "first", "--on", cluster, "--follow")
    assert code == 0
    assert err.count("no pod's log to be had") == 1  # before there was a pod
    assert [out.count(f"stage {stage} on a pod\n") for stage in STAGES] == [1, 1, 1, 1]
    assert out.count("--- pairs, pod") == 1


def test_ctrl_c_leaves_the_run_going(kfp: Any, data_file: Path, cluster: Path, root: Path) -> None:
    kfp.gate.clear()
    words = ["submit", str(data_file), "--on", str(cluster), "--name", "first", "--wait"]
    child = subprocess.Popen(
        [str(Path(sys.executable).with_name("clipworks")), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert child.stdout
    while "end it:" not in child.stdout.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err == f"left; the run goes on. end it: clipworks cancel first --on {cluster}\n"
    assert next(iter(kfp.runs.values()))["state"] == "PENDING"
    assert read_run(str(root), "first").state == "running"


def test_kfp_that_is_away_for_a_while_is_waited_for(
    kfp: Any, data_file: Path, cluster: Path, clipworks: Command
) -> None:
    asked = []

    def answer(method: str, path: str) -> Any:
        if "/runs/" in path:
            asked.append(path)
            if 1 < len(asked) < 5:
                return 500, "text/plain", "away"
        return None

    kfp.answer = answer
    code, out, _ = clipworks("submit", data_file, "--on", cluster, "--wait")
    assert code == 0
    assert out.count("KFP fails with 500: without a reason; asking again") == 1


def test_kfp_that_refuses_the_pipeline_leaves_no_run(
    kfp: Any, data_file: Path, cluster: Path, root: Path, refused: Callable[..., str]
) -> None:
    told = json.dumps({"code": 3, "message": "Invalid input error: unknown template format"})
    kfp.answer = lambda method, path: (400, "application/json", told) if path.endswith("/runs") else None
    err = refused("submit", data_file, "--on", cluster, "--name", "first")
    assert "KFP refuses this (400): Invalid input error: unknown template format" in err
    assert not (root / ".runs" / "first" / "run.json").exists()


def test_a_run_whose_record_cannot_be_written_is_ended(
    kfp: Any, data_file: Path, cluster: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.errors import StorageError
    from pipelines.cluster import submit

    def full(*_: Any) -> None:
        raise StorageError("s3://bucket: no space left")

    kfp.gate.clear()
    monkeypatch.setattr(submit, "write_run", full)
    assert "no space left" in refused("submit", data_file, "--on", cluster)
    assert [run["state"] for run in kfp.runs.values()] == ["CANCELED"]


def test_a_run_that_was_deleted_in_kfp_is_said(kfp: Any, data_file: Path, cluster: Path, clipworks: Command) -> None:
    kfp.executes = False
    clipworks("submit", data_file, "--on", cluster, "--name", "first")
    kfp.runs.clear()
    code, out, _ = clipworks("status", "first", "--on", cluster)
    assert code == 0
    assert "KFP has no run" in out
    code, _, err = clipworks("cancel", "first", "--on", cluster)
    assert (code, "it was deleted there" in err) == (2, True)


def test_no_token_is_sent_to_an_address_out_of_a_record(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command
) -> None:
    kfp.executes = False
    clipworks("submit", data_file, "--on", cluster, "--name", "first")
    asked = len(kfp.seen)
    code, out, _ = clipworks("status", "first", "--root", root)
    assert code == 0
    assert "KFP was not asked: add --on with the file of 'lab'" in out
    code, _, err = clipworks("cancel", "first", "--root", root)
    assert code == 2
    assert "was submitted to 'lab'; add --on with its file" in err
    assert len(kfp.seen) == asked


def test_the_runs_of_a_root(kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command) -> None:
    assert clipworks("status", "--root", root)[1] == f"no runs below {root}\n"
    assert clipworks("submit", data_file, "--on", cluster, "--name", "first")[0] == 0
    kfp.wait()
    (root / ".runs" / "torn").mkdir()
    (root / ".runs" / "torn" / "run.json").write_text("{}")
    code, out, _ = clipworks("status", "--on", cluster)
    assert code == 0
    assert "finished" in next(line for line in out.splitlines() if line.startswith("first "))  # settled by looking
    assert "torn" in out.splitlines()[-1]
    assert read_run(str(root), "first").state == "finished"


def test_retry_on_this_machine(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that a local failure names; here it runs the stages themselves, in processes."""
    clipworks("submit", data_file, "--on", cluster, "--name", "mine", "--wait")
    record = read_run(str(root), "mine").model_copy(update={"submission": None})
    for stage in ("match", "curate"):
        shutil.rmtree(root / str(record.stages[stage].artifact))
    write_run(str(root), record.ended_as("failed", "match"))
    code, _, err = clipworks("retry", "mine", "--root", root, "--stage", "curate")
    assert (code, "--stage curate: is made of match" in err) == (2, True)
    code, _, err = clipworks("retry", "mine", "--on", cluster)
    assert (code, "with --root in place of --on" in err) == (2, True)
    code, out, err = clipworks("retry", "mine", "--root", root, "--stage", "match")
    assert (code, err) == (0, "")
    assert "stage match is complete; still missing: curate" in out
    after = read_run(str(root), "mine")
    assert (after.state, after.failed_stage, list(after.stages)) == ("failed", None, STAGES)
    assert after.recipe == record.recipe
    assert len(kfp.runs) == 1
    code, out, _ = clipworks("status", "mine", "--root", root, "--json")
    states = {row["stage"]: row["state"] for row in json.loads(out)["stages"]}
    assert states == {"pairs": "finished", "split": "finished", "match": "finished", "curate": "not run"}
    assert "done in" in clipworks("logs", "mine", "--root", root, "--stage", "match")[1]
    assert str(root / ".logs" / "mine") in clipworks("logs", "mine", "--root", root)[1]
    assert clipworks("cancel", "mine", "--root", root)[1] == "mine: is failed already\n"


def test_code_of_a_checkout_goes_along_and_is_recorded(
    kfp: Any, data_file: Path, cluster: Path, root: Path, clipworks: Command
) -> None:
    kfp.executes = False
    code, out, _ = clipworks("submit", data_file, "--on", cluster, "--name", "first", "--code")
    assert code == 0
    uri = read_run(str(root), "first").code
    assert uri
    assert f"code: {uri} in place of the image's packages" in out
    assert Path(uri).is_file()
    inputs = kfp.posted("/runs")[0]["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    assert json.loads(inputs["place"]["defaultValue"])["code"] == uri


def test_a_budget_is_kept_before_anything_is_handed_in(
    kfp: Any, data_file: Path, cluster: Path, refused: Callable[..., str]
) -> None:
    edit(cluster, prices={"cpu_hour": 1.0})
    assert "budget 5 USD: cannot be checked" in refused("submit", data_file, "--on", cluster, "--budget", "5")
    assert kfp.seen == []


WRONG = [
    ({"place": {"root": "runs"}}, ["place.root: 'runs': no other pod sees this folder"]),
    ({"kfp": {"endpoint": "http://user:secret@kfp"}}, ["kfp.endpoint"]),
    ({"kfp": {"endpoint": "http://kfp", "experimnet": "x"}}, ["kfp.experimnet", "did you mean 'experiment'"]),
    ({"task": {"memory": "lots"}}, ["task.memory"]),
    ({"task": {"disk": "1Gi"}}, ["task.disk: '1Gi': KFP cannot ask for it"]),
    ({"secrets": ["a", "b"]}, ["secret_keys: say which keys of 'b'"]),
    ({"secrets": ["a", "b"], "secret_keys": {"a": ["K"], "b": ["K"]}}, ["'K': in 'a' and in 'b'"]),
    ({"secret_keys": {"other": ["K"]}}, ["secret_keys.other: not one of `secrets`"]),
]


@pytest.mark.parametrize(("values", "words"), WRONG)
def test_a_wrong_cluster_file_is_one_line(
    values: dict[str, Any], words: list[str], data_file: Path, cluster: Path, refused: Callable[..., str]
) -> None:
    edit(cluster, **values)
    err = refused("submit", data_file, "--on", cluster)
    assert "secret@" not in err
    assert [word for word in words if word not in err] == [], err


def test_a_volume_that_is_not_mounted_here_is_said(
    data_file: Path, cluster: Path, refused: Callable[..., str], kfp: Any
) -> None:
    edit(cluster, volumes={"claim": "/not/here"}, place={"root": "/not/here/runs"})
    assert "volume 'claim' is not mounted here at /not/here" in refused("submit", data_file, "--on", cluster)
    assert not Path("/not/here").exists()
    assert kfp.seen == []


def test_a_pool_that_no_pod_sees_is_refused_before_anything_is_handed_in(
    data_file: Path, cluster: Path, tmp_path: Path, refused: Callable[..., str], kfp: Any
) -> None:
    (tmp_path / "volume").mkdir()
    edit(cluster, volumes={"claim": str(tmp_path / "volume")}, place={"root": str(tmp_path / "volume" / "runs")})
    assert "stages.pairs.pool.images: " in refused("submit", data_file, "--on", cluster)
    assert kfp.seen == []


def test_wrong_words(data_file: Path, cluster: Path, root: Path, refused: Callable[..., str]) -> None:
    assert "cannot read" in refused("submit", data_file, "--on", root / "gone.yaml")
    assert "--name '../up'" in refused("submit", data_file, "--on", cluster, "--name", "../up")
    for command in ("status", "logs", "retry", "cancel"):
        assert "run 'gone': no such run" in refused(command, "gone", "--on", cluster)


def test_a_run_on_object_storage(
    kfp: Any, seaweed: Any, data_file: Path, cluster: Path, clipworks: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root is a bucket; the pool stays on a volume. No key is in what was handed in or written down."""
    from data import storage

    monkeypatch.setattr(follow, "LAST_EVENTS_SECONDS", 5.5)
    recipe = yaml.safe_load(data_file.read_text())
    recipe["stages"] = {name: recipe["stages"][name] for name in ("pairs", "split")}
    data_file.write_text(to_yaml(recipe))
    root = f"s3://{seaweed.bucket}/submit-{os.getpid()}"
    edit(cluster, place={"root": root, "wandb_mode": "disabled"})
    code, out, _ = clipworks("submit", data_file, "--on", cluster, "--name", "first", "--wait")
    assert code == 0
    assert "split                done in" in out
    assert read_run(root, "first").state == "finished"
    assert clipworks("status", "first", "--on", cluster)[1].count("finished") == 3
    written = [storage.read_bytes(storage.join(root, name)) for name, _ in storage.list_files(root, recursive=True)]
    posted = json.dumps([body for _, _, _, body in kfp.seen]).encode()
    assert any(b"AWS_SECRET_ACCESS_KEY" in content for content in written)  # its name, in pipeline.yaml
    assert not any(seaweed.secret.encode() in content for content in [*written, posted])


def test_a_bucket_that_is_not_there_is_one_line(
    kfp: Any, seaweed: Any, data_file: Path, cluster: Path, refused: Callable[..., str]
) -> None:
    edit(cluster, place={"root": "s3://no-such-bucket/runs"})
    assert "s3://no-such-bucket" in refused("submit", data_file, "--on", cluster)
    assert kfp.posted("/runs") == []
