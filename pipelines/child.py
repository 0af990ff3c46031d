"""The process that executes a compiled pipeline on this machine: kfp's local runner, the run's Ray and the tracker.

It leads a process group of its own, so that the command that watches it can end everything at once; and it ends the
group itself when that command is killed.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.failure import FAILURE_FILE
from components.runtime import RAY_FILE, TRACKED, end_with_parent
from data.place import Place
from pipelines.graph import build_pipeline
from pipelines.recipe import Recipe, parse_recipe

_END_SECONDS = 30.0


def main() -> None:
    """Run the job in the file that is the only argument."""
    signal.signal(signal.SIGHUP, _end_group)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end_with_parent(signal.SIGHUP)
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ.update({FAILURE_FILE: job["failure"], TRACKED: "1"})
    place = Place.model_validate(job["place"])
    with _tracker(job, place), _ray(job, place):
        execute(parse_recipe(job["recipe"]), place, job["run"], Path(job["kfp"]))


def _end_group(*_: object) -> None:
    """The watching command is gone: leave no process behind."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def execute(recipe: Recipe, place: Place, run: str, pipeline_root: Path) -> None:
    """Run the recipe's pipeline through kfp.local; raise RuntimeError when a task fails."""
    from kfp import local

    pipeline_root.mkdir(parents=True, exist_ok=True)
    _start_steps_directly(pipeline_root)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(pipeline_root), raise_on_error=True)
    build_pipeline(recipe, place)(run=run)
    shutil.rmtree(pipeline_root)


def _start_steps_directly(scratch: Path) -> None:
    """Let the shell that kfp starts a step with become the step, keep its file in `scratch`, leave its arguments alone.

    kfp 2.17 replaces `python3` in every argument, which breaks a path or a caption that has this word in it; and a
    shell in between would outlive this process unseen. Its file would stay in the temporary folder for ever.
    """
    from kfp.local import subprocess_task_handler as handler

    def replaced(command: list[str], python: str) -> list[str]:
        shell, flags, script, *rest = command
        assert "_KFP_RUNTIME=true python3 -m" in script, "kfp's command for a local step has changed"
        script = script.replace("_KFP_RUNTIME=true python3", f"_KFP_RUNTIME=true exec {shlex.quote(python)}")
        return [shell, flags, script.replace("mktemp -d", f"mktemp -d -p {shlex.quote(str(scratch))}"), *rest]

    handler.replace_python_executable = replaced


@contextmanager
def _ray(job: dict[str, Any], place: Place) -> Iterator[None]:
    """The run's Ray, starting in a process of its own while the first stages run, if a stage needs it."""
    if not job["needs_ray"]:
        yield
        return
    os.environ[RAY_FILE] = job["ray"]
    cpus, gpus = place.train_workers * place.cpus_per_worker, place.train_workers * place.gpus_per_worker
    with _helper("pipelines.ray_server", job["ray"], str(cpus), str(gpus)) as server:
        try:
            yield
        finally:
            server.terminate()


@contextmanager
def _tracker(job: dict[str, Any], place: Place) -> Iterator[None]:
    """W&B, following the stages' events from a process of its own; it ends after its input is closed."""
    if place.wandb_mode == "disabled":
        yield
        return
    with _helper("training.tracking", job["tracking"]) as tracker:
        try:
            yield
        finally:
            assert tracker.stdin
            tracker.stdin.close()


@contextmanager
def _helper(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    main()
