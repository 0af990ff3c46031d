"""The process that executes a compiled pipeline on this machine: kfp's local runner, the run's Ray and the tracker.

It leads a process group of its own, so that the command that watches it can end everything at once; and it ends the
group itself when that command is killed.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.failure import FAILURE_FILE
from components.runtime import RAY_FILE, TRACKED
from data import storage
from data.place import Place
from pipelines.graph import build_pipeline
from pipelines.here.beside import beside, followed_by, lead_group
from pipelines.here.containers import tasks_in_containers
from pipelines.here.evidence import noted
from pipelines.here.steps import Steps
from pipelines.recipe import Recipe, parse_recipe

_END_SECONDS = 30.0


def main() -> None:
    """Run the job in the file that is the only argument."""
    lead_group()
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ.update({FAILURE_FILE: job["failure"], TRACKED: "1"})
    storage.be_patient()
    place = Place.model_validate(job["place"])
    with _tracker(job, place), _ray(job, place):
        recipe, logs, scratch = parse_recipe(job["recipe"]), Path(job["logs"]), Path(job["kfp"])
        scratch.mkdir(parents=True, exist_ok=True)
        pipeline = build_pipeline(recipe, place, done=job["done"], run=job["run"])
        if place.runner == "container":
            execute_in_containers(pipeline, recipe, place, job["run"], logs, scratch)
        else:
            execute(pipeline, job["kinds"], logs, scratch)
        shutil.rmtree(scratch)


def execute(pipeline: Callable[[], Any], kinds: Sequence[str], logs: Path, pipeline_root: Path) -> None:
    """Run the pipeline through kfp.local, each task a process; raise RuntimeError when one fails."""
    from kfp import local
    from kfp.local import subprocess_task_handler as handler

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(pipeline_root), raise_on_error=True)
    with Steps(pipeline_root, kinds) as steps:
        handler.run_local_subprocess = noted(steps.run, logs)
        handler.replace_python_executable = lambda command, _: command  # kfp's would change our arguments too
        pipeline()


def execute_in_containers(
    pipeline: Callable[[], Any], recipe: Recipe, place: Place, run: str, logs: Path, pipeline_root: Path
) -> None:
    """The same, each task a container of the place's image."""
    from kfp import local

    workspace = pipeline_root / "workspace"  # kfp mounts one, and would make it in the temporary folder for ever
    workspace.mkdir(exist_ok=True)
    with tasks_in_containers(recipe, place, run, [logs, pipeline_root]) as runner:
        local.init(runner, pipeline_root=str(pipeline_root), workspace_root=str(workspace), raise_on_error=True)
        pipeline()


@contextmanager
def _ray(job: dict[str, Any], place: Place) -> Iterator[None]:
    """The run's Ray, starting in a process of its own while the first stages run, if a stage needs it."""
    if not job["needs_ray"]:
        yield
        return
    os.environ[RAY_FILE] = job["ray"]
    cpus, gpus = place.train_workers * place.cpus_per_worker, place.train_workers * place.gpus_per_worker
    with beside("pipelines.here.ray_server", job["ray"], str(cpus), str(gpus), end_seconds=_END_SECONDS) as server:
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
    with followed_by("training.tracking", job["tracking"], _END_SECONDS):
        yield


if __name__ == "__main__":
    main()
