"""A Kubernetes API server on the loopback: RayJobs, pods, their logs and events, with KubeRay played by a script.

It refuses what a real one, KubeRay or Kueue would refuse (tests/k8s/rayjob_schema.py), and can be made to misbehave.
"""

import importlib.util
import json
import os
import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml

from components import stage
from components.runtime import IN_RAYJOB
from components.stage import Task
from data import storage
from data.place import Place

Values = dict[str, Any]
TOKEN = "a-token-that-no-log-shows"
DROP, DROP_AFTER = "drop", "drop after"  # of a connection: before the request was done, and after
_RAYJOBS = re.compile(r"/apis/ray\.io/v1/namespaces/([^/]+)/rayjobs(?:/([^/]+))?")
_CORE = re.compile(r"/api/v1/namespaces/([^/]+)/(pods|events)(?:/([^/]+)/log)?")


def schema() -> ModuleType:
    """The rules of RayJobs, which the tests of the manifests share."""
    path = Path(__file__).parents[1] / "k8s" / "rayjob_schema.py"
    spec = importlib.util.spec_from_file_location("clipworks_rayjob_schema", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES = schema()


def pod(name: str, *, is_head: bool = False, is_ready: bool = True, restarts: int = 0, **status: Any) -> Values:
    """A pod as the API server describes it."""
    labels = {"ray.io/node-type": "head" if is_head else "worker"}
    containers = [{"name": "ray", "restartCount": restarts, "state": {"running": {}}}]
    conditions = [{"type": "Ready", "status": "True" if is_ready else "False"}]
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": containers, **status},
    }


def ended(reason: str, code: int) -> list[Values]:
    """Container statuses of a pod whose container ended."""
    return [{"name": "ray", "restartCount": 0, "state": {"terminated": {"reason": reason, "exitCode": code}}}]


def waiting(reason: str, message: str) -> list[Values]:
    """Container statuses of a pod whose container cannot start."""
    return [{"name": "ray", "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}}]


RUN = "monday"
HEAD, WORKER = pod("head", is_head=True), pod("worker")


class Step(NamedTuple):
    """What the next question about the RayJob finds; `do` happens just before."""

    deployment: str = ""
    job: str = ""
    cluster: str = "cluster-1"
    pods: tuple[Values, ...] = (HEAD, WORKER)
    reason: str = ""
    message: str = ""
    is_suspended: bool = False
    is_removed: bool = False
    do: Callable[[Values], object] | None = None


class FakeKubernetes(ThreadingHTTPServer):
    """The server. Attributes may be changed while it runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, Values] = {}
        self.story: deque[Step] = deque()  # the last step stays
        self.pods: list[Values] = []
        self.events: list[Values] = []
        self.logs: dict[str, str] = {}
        self.previous_logs: dict[str, str] = {}
        self.hiccups: deque[int | str | None] = deque()  # what the next requests get in place of an answer
        self.lingers = 0  # questions that still find a RayJob that was deleted
        self.requests: list[tuple[str, str]] = []
        self.posted: list[Values] = []
        self.deleted: list[str] = []
        self.lock = threading.RLock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here."""
        value = {
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": TOKEN}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(value))
        return path

    def did(self, method: str, part: str) -> int:
        """How many requests of this kind there were."""
        return sum(m == method and part in path for m, path in self.requests)

    def advance(self, job: Values) -> None:
        """Play the next step of the story."""
        if not self.story:
            return
        step = self.story.popleft() if len(self.story) > 1 else self.story[0]
        if step.do:
            step.do(job)
        self.pods = list(step.pods)
        job["spec"]["suspend"] = step.is_suspended
        job["status"] = {
            name: value
            for name, value in {
                "jobDeploymentStatus": step.deployment, "jobStatus": step.job, "rayClusterName": step.cluster,
                "reason": step.reason, "message": step.message,
            }.items()
            if value
        }  # fmt: skip
        if step.is_removed:
            self.jobs.pop(job["metadata"]["name"], None)


class _Handler(BaseHTTPRequestHandler):
    server: FakeKubernetes

    def _serve(self) -> None:
        with self.server.lock:
            parts = urlsplit(self.path)
            self.server.requests.append((self.command, parts.path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hiccup = self.server.hiccups.popleft() if self.server.hiccups else None
            if hiccup == DROP:
                self.close_connection = True
                return
            if isinstance(hiccup, int):
                self._answer(hiccup, {"message": "hiccup"})
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"message": "Unauthorized"})
                return
            status, value = self._found(parts.path, parse_qs(parts.query), body)
        if hiccup == DROP_AFTER:
            self.close_connection = True
        else:
            self._answer(status, value)

    do_GET = do_POST = do_DELETE = _serve

    def _found(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Values | str]:
        if found := _RAYJOBS.fullmatch(path):
            return self._rayjob(found[2], json.loads(body or b"null"), query)
        if found := _CORE.fullmatch(path):
            if found[3]:
                logs = self.server.previous_logs if query.get("previous") == ["True"] else self.server.logs
                if found[3] not in logs:
                    return 400, {"message": "container has not started"}
                return 200, "\n".join(logs[found[3]].splitlines()[-int(query["tailLines"][0]) :])
            return 200, {"items": self.server.pods if found[2] == "pods" else self.server.events}
        return 404, {"message": "the server could not find the requested resource"}

    def _rayjob(self, name: str | None, value: Any, query: dict[str, list[str]]) -> tuple[int, Values]:
        jobs = self.server.jobs
        if self.command == "POST":
            problems = RULES.problems(value)
            if problems:
                return 422, {"message": f"RayJob is invalid: {problems[0]}"}
            if value["metadata"]["name"] in jobs:
                return 409, {"message": "already exists"}
            self.server.posted.append(value)
            jobs[value["metadata"]["name"]] = json.loads(json.dumps(value))
            return 201, value
        if name not in jobs:
            return 404, {"message": f'rayjobs.ray.io "{name}" not found'}
        job = jobs[name]
        if self.command == "DELETE":
            assert query.get("propagationPolicy") == ["Foreground"]
            self.server.deleted.append(name)
            if self.server.lingers:
                job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            else:
                del jobs[name]
            return 200, {"status": "Success"}
        if "deletionTimestamp" in job["metadata"]:
            self.server.lingers -= 1
            if self.server.lingers <= 0:
                del jobs[name]
        else:
            self.server.advance(job)
        return 200, job

    def _answer(self, status: int, value: Values | str) -> None:
        content = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Wait for something; False when it does not come, which only a hang needs so long for."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def plain(place: Place) -> Place:
    """The place without Ray: what a stage makes there is the same."""
    return place.model_copy(update={"rayjob": None, "data_workers": 0})


def task_of(rayjob: Values) -> tuple[Task, str]:
    """What the entrypoint of a RayJob names: its task, and where to leave a failure."""
    *command, task_uri, failure_uri = shlex.split(rayjob["spec"]["entrypoint"])
    assert command == ["python", "-P", "-m", "components.stage"]
    return Task.model_validate_json(storage.read_bytes(task_uri)), failure_uri


def fail_inside(rayjob: Values) -> None:
    """Run the stage as the process in the RayJob does, without Ray, and leave what it leaves."""
    task, uri = task_of(rayjob)
    os.environ[IN_RAYJOB] = "1"
    try:
        failure = stage.run(task.model_copy(update={"pods": 0, "place": plain(task.place)}))
    finally:
        del os.environ[IN_RAYJOB]
    assert failure
    storage.write_bytes(uri, failure.model_dump_json().encode())


def done(do: Callable[[Values], object]) -> deque[Step]:
    """A RayJob that works, from its first status to its last."""
    return deque(
        [
            Step(cluster="", pods=()),
            Step("Initializing", pods=(pod("head", is_head=True, is_ready=False),)),
            Step("Initializing", pods=(HEAD, pod("worker", is_ready=False))),
            Step("Running"),
            Step("Running", "RUNNING", do=do),
            Step("Running", "SUCCEEDED"),
            Step("Complete", "SUCCEEDED"),
        ]
    )
