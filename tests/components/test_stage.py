"""The process of a stage inside its RayJob: what it leaves, how it ends, whose code it runs."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from components import stage
from components.failure import Failure
from components.runtime import IN_RAYJOB
from components.stage import Task
from data import storage
from data.artifacts import CODE
from data.place import Place
from data.ray import CODE_FOLDER
from training import machine


@pytest.fixture
def task(config: str, place: Place) -> Task:
    without_ray = place.model_copy(update={"data_workers": 0})
    return Task(kind="ingest", name="pairs", config=config, parents="", place=without_ray, run="", pods=0)


def main(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Path]:
    """Run the process' main function; return its exit code and where it leaves a failure."""
    uris = tmp_path / "task.json", tmp_path / "failure.json"
    uris[0].write_text(task.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, uris)])
    monkeypatch.setenv(IN_RAYJOB, "set here so that it is unset again")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    try:
        stage.main()
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code, uris[1]
    return 0, uris[1]


def test_a_stage_that_works_leaves_its_artifact_only(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, failure = main(task, tmp_path, monkeypatch)
    assert (code, failure.exists()) == (0, False)
    assert [name for name in storage.list_folders(task.place.root) if name.startswith("pairs-")]


def test_a_users_mistake_ends_with_2_and_one_line(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = task.model_copy(update={"config": task.config.replace('"captions"', '"caption_column": "x", "captions"')})
    monkeypatch.setenv("POD_NAME", "pairs-head-x")
    monkeypatch.setattr(stage, "_LOG_OF_POD", tmp_path / "pod.log")
    code, left = main(wrong, tmp_path, monkeypatch)
    failure = Failure.model_validate_json(left.read_text())
    assert (code, failure.user_error, failure.where) == (2, True, "pod pairs-head-x")
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"pairs: {failure.message}"
    assert (tmp_path / "pod.log").read_text().splitlines() == said  # what `kubectl logs` shows


def test_a_defect_ends_with_1_and_its_traceback(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("components.runtime.run_stage", broken)
    code, left = main(task, tmp_path, monkeypatch)
    assert code == 1
    assert "in broken" in Failure.model_validate_json(left.read_text()).traceback
    assert "ZeroDivisionError: ours" in capsys.readouterr().out


def test_a_log_that_the_pod_keeps_for_root_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POD_NAME", "x")
    monkeypatch.setattr(stage, "_LOG_OF_POD", tmp_path / "no such folder" / "fd")
    stage.say("hello\n")
    assert capsys.readouterr().out == "hello\n"


PROGRAM = """
import os, sys, time
from components import runtime, stage

def hang(*_):
    print("at work", flush=True)
    time.sleep(600)

runtime.run_stage = hang
stage.main()
"""


def test_a_head_that_is_drained_leaves_no_failure(task: Task, tmp_path: Path) -> None:
    """The loss of a pod is KubeRay's to mend; a failure that is left would end the stage for good."""
    uris = tmp_path / "task.json", tmp_path / "failure.json"
    uris[0].write_text(task.model_dump_json())
    here = Path(stage.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, uris)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(here)},
    )  # fmt: skip
    assert process.stdout
    assert any(line == "at work\n" for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    process.stdout.close()
    assert not uris[1].exists()


def archive(folder: Path) -> str:
    """An archive of one changed file, under the name of its digest."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("data/changed.py", "CHANGED = True\n")
    path = folder / f"{hashlib.sha256(content.getvalue()).hexdigest()}.zip"
    path.write_bytes(content.getvalue())
    return str(path)


def test_code_that_was_submitted_takes_the_place_of_the_images(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[Any] = []

    def become(*arguments: Any) -> None:
        became.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", become)
    monkeypatch.delenv(CODE, raising=False)
    changed = task.model_copy(update={"place": task.place.model_copy(update={"code": archive(tmp_path)})})
    main(changed, tmp_path, monkeypatch)
    ((program, arguments, environment),) = became
    assert program == sys.executable
    assert arguments[1:4] == ["-P", "-m", "components.stage"]
    assert arguments[4:] == sys.argv[1:]
    folder = environment["PYTHONPATH"].split(os.pathsep)[0]
    assert Path(folder, "data", "changed.py").read_text() == "CHANGED = True\n"
    assert environment[CODE_FOLDER] == folder
    assert changed.place.code
    assert environment[CODE] == Path(changed.place.code).stem
    monkeypatch.setenv(CODE, environment[CODE])  # the process that it became
    became.clear()
    main(changed, tmp_path, monkeypatch)
    assert became == []


def test_workers_that_join_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    head, worker = ({"Alive": True, "Resources": resources} for resources in ({"memory": 1.0}, {"CPU": 4.0}))
    dead = {**worker, "Alive": False}
    answers = iter([[head], [head, worker, dead], [head, worker, worker]])
    monkeypatch.setattr(stage, "connect", lambda: None)
    monkeypatch.setattr(ray, "nodes", lambda: next(answers))
    monkeypatch.setattr(stage.time, "sleep", lambda _: None)
    stage.wait_for_workers(2)
    assert next(answers, None) is None


def test_workers_that_never_join_are_left_to_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(stage, "connect", lambda: None)
    monkeypatch.setattr(stage, "_WORKERS_SECONDS", 0.0)
    monkeypatch.setattr(ray, "nodes", list)
    stage.wait_for_workers(2)
    assert "fewer than 2 worker pods joined" in capsys.readouterr().out


def test_the_heads_own_resources_are_not_those_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.delenv(IN_RAYJOB, raising=False)
    assert machine.trains_elsewhere() is None
    monkeypatch.setenv(IN_RAYJOB, "1")
    assert machine.trains_elsewhere() == "127.0.0.1:6379"
