"""Runs on this machine, in real processes: the data stages through kfp.local, reuse, failure, a kill at any moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data.artifacts import RECORD_NAME
from pipelines.runs import read_run
from pipelines.yaml_text import to_yaml

pytestmark = pytest.mark.e2e

SLEEPER = """
import os, time
if os.environ.get("SLOW_STAGE"):
    import data.split
    run = data.split.run
    def slow(spec, work):
        work.events.progress(1, 100, "pairs", "asleep")
        time.sleep(120)
        return run(spec, work)
    data.split.run = slow
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For commands whose `split` stage sleeps when SLOW_STAGE is set; narrow and colourless output."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLEEPER)
    return {**os.environ, "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}", "NO_COLOR": "1", "COLUMNS": "120"}


@pytest.fixture
def place_file(tmp_path: Path) -> Path:
    path = tmp_path / "place.yaml"
    path.write_text(to_yaml({"root": str(tmp_path / "python3 runs"), "wandb_mode": "disabled"}))
    return path


def command(recipe: Path, place: Path, *more: str) -> list[str]:
    program = "import sys; from pipelines.cli import main; sys.exit(main())"
    options = ["--place", str(place), "--name", "test", *more]
    return [sys.executable, "-P", "-c", program, "run", str(recipe), *options]


def run(recipe: Path, place: Path, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command from a folder that has a package named `data`, as a user's folder may."""
    folder = place.parent / "elsewhere"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "__init__.py").write_text("raise RuntimeError('not ours')")
    words = command(recipe, place, *more)
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def processes_of(root: Path) -> list[int]:
    """Processes that have this root in their arguments: the child, its steps, its helpers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if str(root).encode() in arguments and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


@contextmanager
def started_and_asleep(
    recipe: Path, place: Path, environment: dict[str, str], root: Path
) -> Iterator[subprocess.Popen[str]]:
    """A run that is in the middle of its second stage."""
    process = subprocess.Popen(command(recipe, place), env={**environment, "SLOW_STAGE": "1"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        wait_for(lambda: any("asleep" in path.read_text() for path in root.glob(".events/split-*.jsonl")))
        yield process
    finally:
        process.kill()
        process.communicate()
        wait_for(lambda: not processes_of(root))


def artifacts(root: Path) -> dict[str, bool]:
    """Visible artifact folders and whether each is complete."""
    return {path.name: (path / RECORD_NAME).exists() for path in root.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "python3 runs"  # kfp replaces `python3` in arguments; a path may have it, and spaces


def test_run_reuse_and_change(data_file: Path, place_file: Path, environment: dict[str, str], root: Path) -> None:
    first = run(data_file, place_file, environment)
    assert first.returncode == 0, first.stdout + first.stderr + (root / ".logs/test/kfp.log").read_text()
    assert "4 of 4 stages to run" in first.stdout
    assert "12 pairs" in first.stdout
    made = artifacts(root)
    assert len(made) == 4
    assert all(made.values())
    assert not (root / ".kfp" / "test").exists()
    record = read_run(str(root), "test")
    assert record.state == "finished"
    assert {stage.artifact for stage in record.stages.values()} == set(made)

    again = run(data_file, place_file, environment)
    assert again.returncode == 0
    assert "0 of 4 stages to run" in again.stdout
    assert (root / ".logs/test/kfp.log").read_text() == ""  # no pipeline was started

    changed = run(data_file, place_file, environment, "--set", "stages.curate.seed=1")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert "1 of 4 stages to run" in changed.stdout
    assert len(artifacts(root)) == 5


def test_after_sigkill_nothing_runs_on_and_the_same_command_continues(
    data_file: Path, place_file: Path, environment: dict[str, str], root: Path
) -> None:
    with started_and_asleep(data_file, place_file, environment, root) as process:
        assert len(processes_of(root)) >= 2  # the child and its step
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not processes_of(root), seconds=15)
    assert [name.split("-")[0] for name, complete in artifacts(root).items() if complete] == ["pairs"]
    assert all(artifacts(root).values())
    again = run(data_file, place_file, environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 of 4 stages to run" in again.stdout
    assert len(artifacts(root)) == 4


def test_an_interrupt_ends_everything_and_says_how_to_continue(
    data_file: Path, place_file: Path, environment: dict[str, str], root: Path
) -> None:
    with started_and_asleep(data_file, place_file, environment, root) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert f"continue: clipworks run {data_file}" in out
        assert err == "interrupted\n"
        assert not processes_of(root)


def test_a_users_mistake_inside_a_stage_is_exit_2_with_its_log_and_the_command(
    small: dict[str, Any], tmp_path: Path, place_file: Path, environment: dict[str, str], root: Path
) -> None:
    pairs = small["stages"]["pairs"]
    pairs["pool"]["caption_column"] = "captoin"
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(to_yaml({**small, "stages": {"pairs": pairs}}))
    done = run(recipe, place_file, environment)
    assert done.returncode == 2, done.stdout + done.stderr
    message, log, page, again = done.stderr.splitlines()
    assert message.startswith("error: stage pairs: ")
    assert Path(log.removeprefix("log: ")).exists()
    assert Path(page.removeprefix("post-mortem: ")).exists()
    assert again.startswith(f"continue: clipworks run {recipe}")
    assert all(artifacts(root).values())


def test_a_defect_of_ours_keeps_its_traceback(
    data_file: Path, place_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    site = tmp_path / "site" / "sitecustomize.py"
    site.write_text("import data.ingest\ndef run(spec, work):\n    return 1 / 0\ndata.ingest.run = run\n")
    done = run(data_file, place_file, environment)
    assert done.returncode == 1
    assert "stage pairs failed: ZeroDivisionError" in done.stderr
    assert "return 1 / 0" in done.stderr
