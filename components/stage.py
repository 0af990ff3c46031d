"""The process of a stage inside its RayJob, on the head: `python -P -m components.stage TASK_URI FAILURE_URI`.

The head has no CPUs for Ray, so all that the stage gives to Ray runs in the worker pods; what it does itself needs
memory here. The folder of Ray Train (`training/fit.py`) is one of each pod: Train V2 writes an empty marker there
from every process, and copies checkpoints there that are reported to it, which ours, written to the root, never are.
"""

import os
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from components import code
from components.failure import Failure, failure_of
from components.runtime import IN_RAYJOB, run_component
from data import storage
from data.artifacts import CODE
from data.place import Place
from data.ray import CODE_FOLDER, connect
from data.spec import Spec

_WORKERS_SECONDS = 300.0  # KubeRay starts the stage when all pods are ready; not so after a head was lost
_LOG_OF_POD = Path("/proc/1/fd/1")


class Task(Spec):
    """What the launcher hands over, as JSON."""

    kind: str
    name: str
    config: str
    parents: str
    place: Place
    run: str
    pods: int


def main() -> None:
    """Run the task; exit with 0, 2 for what the user can put right, 1 for all else."""
    task_uri, failure_uri = sys.argv[1:]
    storage.be_patient()
    task = Task.model_validate_json(storage.read_bytes(task_uri))
    if task.place.code and not code.is_active():
        start_again_with(task.place.code)
    os.environ[IN_RAYJOB] = "1"
    os.environ.setdefault("RAY_ADDRESS", "auto")
    failure = run(task)
    if failure:
        storage.write_bytes(failure_uri, failure.model_dump_json().encode())
        say(f"{task.name}: {failure.message}" if failure.user_error else failure.traceback)
        sys.exit(2 if failure.user_error else 1)


def start_again_with(uri: str) -> NoReturn:
    """Become the same process on an archive of our packages, which lies in the pod until the pod ends."""
    folder = Path(tempfile.mkdtemp(prefix="clipworks-code-"))
    digest = code.fetch(uri, folder)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, CODE: digest, CODE_FOLDER: str(folder)}
    os.execve(sys.executable, [sys.executable, "-P", "-m", "components.stage", *sys.argv[1:]], environment)  # noqa: S606


def run(task: Task) -> Failure | None:
    """Run the stage here; return why it failed. A SIGTERM is no failure of the stage, so nothing is left for it."""
    say(f"{task.name}: begins with {task.pods} worker pods")
    try:
        if task.pods:
            wait_for_workers(task.pods)
        run_component(task.kind, task.name, task.config, task.parents, task.place.model_dump_json(), task.run)
    except Exception as error:  # noqa: BLE001 - the launcher raises it
        failure = failure_of(task.name, error, task.place.root)
        pod = os.environ.get("POD_NAME", "of the head")
        return failure.model_copy(update={"where": ", ".join(filter(None, [f"pod {pod}", failure.where]))})
    return None


def wait_for_workers(pods: int) -> None:
    """Join Ray and wait until so many nodes with CPUs are there; the stage itself says what it lacks after a while."""
    import ray

    connect()
    deadline = time.monotonic() + _WORKERS_SECONDS
    while time.monotonic() < deadline:
        if sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()) >= pods:
            return
        time.sleep(1)
    say(f"fewer than {pods} worker pods joined Ray within {_WORKERS_SECONDS:.0f} s; going on with what is there")


def say(text: str) -> None:
    """Write to the job's log, which Ray keeps, and to the pod's, where `kubectl logs` and the launcher look."""
    sys.stdout.write(text.rstrip() + "\n")
    sys.stdout.flush()
    if "POD_NAME" in os.environ:
        with suppress(OSError), _LOG_OF_POD.open("a") as log:  # a runtime may keep it for root; Ray's log has it then
            log.write(text.rstrip() + "\n")


if __name__ == "__main__":
    try:
        main()
    except Exception:
        say(traceback.format_exc())
        raise
