"""A small Kubeflow Pipelines API on the loopback: what `kfp.Client` asks of it, and runs that really run.

It checks what is posted as the backend does first (protobuf, references, kfp-kubernetes' own message), and executes the
posted pipeline: parameters are resolved as KFP resolves them, a task is a call of its component in this process. What
it tells of a run has the shape that KFP gives it on Argo: a node a task, `executor` nodes below, ids beside pod names.
"""

import json
import re
import threading
import time
import traceback
import urllib.parse
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

_CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
Json = dict[str, Any]


class Rejected(Exception):
    """The posted pipeline is not one."""


def checked(spec: Json) -> Json:
    """Refuse what KFP's backend refuses; return the pipeline spec."""
    try:
        pipeline = json_format.ParseDict(spec["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(spec["platform_spec"], pipeline_spec_pb2.PlatformSpec())
        executors = spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for label, config in executors.items():
            json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
            if label not in spec["pipeline_spec"]["deploymentSpec"]["executors"]:
                raise Rejected(f"{label}: no such executor")
    except (KeyError, json_format.ParseError) as error:
        raise Rejected(f"{type(error).__name__}: {error}") from error
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,127}", pipeline.pipeline_info.name):
        raise Rejected(f"pipeline name {pipeline.pipeline_info.name!r}")
    for key, task in pipeline.root.dag.tasks.items():
        if task.component_ref.name not in pipeline.components or task.inputs.artifacts:
            raise Rejected(f"{key}: no such component, or an artifact as input")
    return dict(spec["pipeline_spec"])


class FakeKfp:
    """The server; `url` is its endpoint."""

    def __init__(self) -> None:
        self.experiments: dict[str, Json] = {}
        self.runs: dict[str, Json] = {}
        self.specs: dict[str, Json] = {}
        self.logs: dict[str, str] = {}  # pod name -> text
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.token: str | None = None  # what it asks for
        self.answer: Callable[[str, str], tuple[int, str, str] | None] = lambda method, path: None
        self.executes = True
        self.before: Callable[[str], None] = lambda stage: None  # called before each task; may raise, or wait
        self.gate = threading.Event()  # closed: a run waits before its first task
        self.gate.set()
        self.lingers = 0  # times that a run that was ended says CANCELING
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                fake._serve(self, None)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                fake._serve(self, json.loads(self.rfile.read(length) or b"{}"))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop; runs that wait go no further."""
        for run in self.runs.values():
            run["state"] = "CANCELED"
        self.gate.set()
        for thread in self._threads:
            thread.join(timeout=20)
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        """Until every run has ended."""
        for thread in self._threads:
            thread.join(timeout=60)

    def posted(self, path: str) -> list[Any]:
        """Bodies that were posted to a path."""
        return [body for method, where, _, body in self.seen if method == "POST" and where.endswith(path)]

    # -------------------------------------------------------------------------------------------------------- answers

    def _serve(self, request: BaseHTTPRequestHandler, body: Any) -> None:
        path, _, query = request.path.partition("?")
        self.seen.append((request.command, path, dict(request.headers), body))
        forced = self.answer(request.command, path)
        if forced:
            status, kind, text = forced
        elif self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            status, kind, text = 401, "text/plain", "Unauthorized"
        else:
            try:
                status, kind, text = self._answered(request.command, path, urllib.parse.parse_qs(query), body)
            except Rejected as error:
                told = {"error": f"Invalid input error: {error}", "code": 3, "message": f"Invalid input error: {error}"}
                status, kind, text = 400, "application/json", json.dumps(told)
        request.send_response(status)
        request.send_header("Content-Type", kind)
        if status in (301, 302):
            request.send_header("Location", text)
            text = ""
        content = text.encode()
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        try:
            request.wfile.write(content)
        except BrokenPipeError:
            return

    def _answered(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, str, str]:
        if path.startswith("/apis/v1alpha1/runs/"):
            pod = path.split("/")[6]
            if pod in self.logs:
                return 200, "text/plain", self.logs[pod]
            return 500, "application/json", json.dumps({"error_message": f"pod {pod} not found"})
        name = path.removeprefix("/apis/v2beta1/")
        match = re.fullmatch(r"runs/([^/:]+)(:terminate)?", name)
        if name == "healthz":
            return self._json({"multi_user": False})
        if name == "experiments" and method == "GET":
            wanted = json.loads(query["filter"][0])["predicates"][0]
            assert wanted["key"] in ("display_name", "name") and wanted["operation"] in (1, "EQUALS")
            found = [one for one in self.experiments.values() if one["display_name"] == wanted["stringValue"]]
            return self._json({"experiments": found} if found else {})
        if name == "experiments":
            made = {**body, "experiment_id": str(uuid.uuid4())}
            self.experiments[made["experiment_id"]] = made
            return self._json(made)
        if name == "runs" and method == "POST":
            return self._json(self._start(body))
        if match and match[1] in self.runs:
            return self._json(self._terminated(match[1]) if match[2] else self.told(match[1]))
        return 404, "application/json", json.dumps({"error": "not found", "code": 5, "message": f"{name} not found"})

    def _json(self, value: Json) -> tuple[int, str, str]:
        return 200, "application/json", json.dumps(value)

    # ----------------------------------------------------------------------------------------------------------- runs

    def _start(self, body: Json) -> Json:
        spec = checked(body["pipeline_spec"])
        if body["experiment_id"] not in self.experiments:
            raise Rejected("no such experiment")
        run_id = str(uuid.uuid4())
        tasks = {key: {"state": "WAITING", "pods": []} for key in spec["root"]["dag"]["tasks"]}
        run = {
            **body,
            "run_id": run_id,
            "state": "PENDING",
            "tasks": tasks,
            "workflow": f"{spec['pipelineInfo']['name']}-x1",
        }
        self.runs[run_id], self.specs[run_id] = run, spec
        if self.executes:
            self._threads.append(threading.Thread(target=self._execute, args=(run_id,), daemon=True))
            self._threads[-1].start()
        return self.told(run_id)

    def _terminated(self, run_id: str) -> Json:
        run = self.runs[run_id]
        if run["state"] not in ("PENDING", "RUNNING"):
            raise Rejected(f"run is {run['state']}")
        run["state"] = "CANCELING" if self.lingers else "CANCELED"
        self.gate.set()
        return {}

    def told(self, run_id: str) -> Json:
        """A run as the API tells it."""
        if self.runs[run_id]["state"] == "CANCELING":
            self.lingers -= 1
            self.runs[run_id]["state"] = "CANCELING" if self.lingers > 0 else "CANCELED"
        run, workflow = self.runs[run_id], self.runs[run_id]["workflow"]
        details: list[Json] = [
            {"display_name": "root-driver", "state": "SUCCEEDED", "pod_name": f"{workflow}-driver-1"}
        ]
        for number, (key, task) in enumerate(run["tasks"].items(), start=100):
            if task["state"] == "WAITING":
                continue
            nodes = [f"{workflow}-{number}{attempt}" for attempt in range(len(task["pods"]))]
            children = [{"pod_name": node} for node in nodes]
            details.append(
                {"display_name": f"{key}-driver", "state": "SUCCEEDED", "pod_name": f"{workflow}-driver-9{number}"}
            )
            details.append(
                {
                    "display_name": key, "state": task["state"], "pod_name": f"{workflow}-{key}-5{number}",
                    "child_tasks": children, **({"error": task["error"]} if "error" in task else {}),
                }
            )  # fmt: skip
            for attempt, (node, state) in enumerate(zip(nodes, task["pods"], strict=True)):
                hash_ = node.rpartition("-")[2]
                # below an executor hang the tasks that wait for it
                details.append(
                    {
                        "display_name": f"executor({attempt})", "state": state,
                        "child_tasks": [{"pod_name": "x-driver-77"}],
                        "pod_name": f"{workflow}-system-container-impl-{hash_}",
                    }
                )  # fmt: skip
        kept = {name: run[name] for name in ("run_id", "display_name", "experiment_id", "state")}
        return {**kept, "run_details": {"task_details": details}, **({"error": run["error"]} if "error" in run else {})}

    def pod(self, run_id: str, key: str, attempt: int = 0) -> str:
        """Name of a task's pod."""
        number = 100 + list(self.runs[run_id]["tasks"]).index(key)
        return f"{self.runs[run_id]['workflow']}-system-container-impl-{number}{attempt}"

    def _execute(self, run_id: str) -> None:
        """Run the tasks, parents first, each in this process; stop at the first that fails."""
        run, spec = self.runs[run_id], self.specs[run_id]
        self.gate.wait(timeout=60)
        if run["state"] == "PENDING":
            run["state"] = "RUNNING"
        values = _defaults(spec, run)
        outputs: dict[str, Any] = {}
        left = dict(spec["root"]["dag"]["tasks"])
        while left and run["state"] == "RUNNING":
            key = next(k for k, task in left.items() if set(task.get("dependentTasks", [])) <= set(outputs))
            try:
                run["tasks"][key] = {"state": "RUNNING", "pods": ["RUNNING"]}
                self.before(left[key]["taskInfo"]["name"])
                if run["state"] != "RUNNING":
                    break
                outputs[key] = self._task(run_id, spec, left.pop(key), values, outputs)
                run["tasks"][key] = {"state": "SUCCEEDED", "pods": ["SUCCEEDED"]}
            except BaseException:  # noqa: BLE001 - a pod that fails
                self.logs[self.pod(run_id, key)] = traceback.format_exc()
                run["tasks"][key] = {"state": "FAILED", "pods": ["FAILED"], "error": {"code": 2, "message": "exit 1"}}
                run["state"] = "FAILED"
        if run["state"] == "RUNNING":
            run["state"] = "SUCCEEDED"

    def _task(self, run_id: str, spec: Json, task: Json, values: Json, outputs: Json) -> str:
        from components.runtime import run_component

        component = spec["components"][task["componentRef"]["name"]]
        arguments = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]["args"]
        kind = arguments[arguments.index("--function_to_execute") + 1]
        given = _parameters(task, values, outputs)
        key = next(k for k, one in spec["root"]["dag"]["tasks"].items() if one is task)
        self.logs[self.pod(run_id, key)] = f"stage {given['name']} on a pod\n"
        return run_component(kind, **{name: given[name] for name in ("name", "config", "parents", "place", "run")})


def _defaults(spec: Json, run: Json) -> Json:
    """The pipeline's parameters: what the run gives, else their defaults."""
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    given = (run.get("runtime_config") or {}).get("parameters") or {}
    return {name: given.get(name, one.get("defaultValue")) for name, one in declared.items()}


def _parameters(task: Json, values: Json, outputs: Json) -> dict[str, str]:
    """A task's parameters, as KFP's driver resolves them."""
    found: dict[str, Any] = {}
    for name, source in task["inputs"]["parameters"].items():
        if "componentInputParameter" in source:
            found[name] = values[source["componentInputParameter"]]
        elif "taskOutputParameter" in source:
            found[name] = outputs[source["taskOutputParameter"]["producerTask"]]
        else:
            found[name] = source["runtimeValue"]["constant"]
    return {name: _CHANNEL.sub(lambda match: found[match[1]], value) for name, value in found.items()}


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
