"""Steps are processes of their own, although they are forks of one that imported for them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.here.steps import Steps

SOURCE = """
import kfp
from kfp import dsl
from kfp.dsl import *
from typing import *

def ingest(name: str) -> str:
    import os, signal, sys
    import pipelines.here.steps as steps
    found = getattr(steps, "LEFT", "nothing")
    steps.LEFT = name
    if name == "exit":
        sys.exit(7)
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "raise":
        raise ZeroDivisionError("of the step")
    if name == "sleep":
        import time
        from pathlib import Path
        Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
        time.sleep(600)
    print("said by", name)
    return f"{name} found {found} {os.environ.get('COLOUR')} {os.getpid() != os.getppid()}"
"""


def command(folder: Path, name: str) -> list[str]:
    """What kfp's local runner would start for a component with one argument."""
    output = {
        "outputs": {"parameters": {"Output": {"outputFile": str(folder / name)}}, "outputFile": str(folder / "o")}
    }
    executor_input = json.dumps({"inputs": {"parameterValues": {"name": name}}, **output})
    script = '_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --component_module_path "x" "$@"'
    return ["sh", "-ec", script, SOURCE, "--executor_input", executor_input, "--function_to_execute", "ingest"]


@pytest.fixture
def answer(tmp_path: Path) -> Any:
    def read() -> Any:
        return json.loads((tmp_path / "o").read_text())["parameterValues"]["Output"]

    return read


def test_steps_share_nothing_and_end_as_they_end(
    tmp_path: Path, answer: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with Steps(tmp_path, ["ingest"]) as steps:
        assert steps.run(command(tmp_path, "python3 one"), {"COLOUR": "red"}) == 0
        assert answer() == "python3 one found nothing red True"
        assert steps.run(command(tmp_path, "two")) == 0
        assert answer() == "two found nothing None True"
        assert steps.run(command(tmp_path, "exit")) == 7
        assert steps.run(command(tmp_path, "raise")) == 1
        assert steps.run(command(tmp_path, "kill")) == -signal.SIGKILL
        assert steps.run(command(tmp_path, "three")) == 0
    said = capfd.readouterr().out
    assert "said by two" in said
    assert "ZeroDivisionError: of the step" in said
    assert not list(tmp_path.glob("tmp*"))


def test_another_command_of_kfp_is_not_taken_for_a_step(tmp_path: Path) -> None:
    with Steps(tmp_path, []) as steps, pytest.raises(AssertionError, match="has changed"):
        steps.run(["sh", "-c", "something else", "", "--function_to_execute", "ingest"])


PROGRAM = """
import sys
from pathlib import Path
from pipelines.here.steps import Steps
import json
folder, words = Path(sys.argv[1]), json.loads(sys.argv[2])
with Steps(folder, []) as steps:
    steps.run(words)
"""


def test_a_killed_run_leaves_no_step_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PID_FILE": str(pid_file)}
    words = [sys.executable, "-P", "-c", PROGRAM, str(tmp_path), json.dumps(command(tmp_path, "sleep"))]
    run = subprocess.Popen(words, env=environment)
    deadline = time.monotonic() + 120
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.05)
    step = Path("/proc") / pid_file.read_text()
    assert str(tmp_path) in (step / "cmdline").read_text()
    run.kill()
    run.wait()
    while step.exists() and "Z" not in (step / "stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
