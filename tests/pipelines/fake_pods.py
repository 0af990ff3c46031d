"""What of the Kubernetes API `pipelines/cluster/pods.py` asks: pods by label, logs, RayJobs. With a kubeconfig."""

import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class FakePods:
    """The server. `pods` and `rayjobs` are what it holds."""

    def __init__(self) -> None:
        self.pods: list[Json] = []
        self.rayjobs: list[Json] = []
        self.logs: dict[str, str] = {}
        self.forbidden: set[str] = set()  # namespaces that may not be read
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                fake._serve(self)

            do_DELETE = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here."""
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "fake", "users": [{"name": "me", "user": {}}],
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return path

    def add_pod(self, namespace: str, name: str, labels: dict[str, str], log: str = "", **status: Any) -> None:
        """A pod, in the words of the API."""
        number = len(self.pods)
        metadata = {
            "name": name, "namespace": namespace, "labels": labels,
            "creationTimestamp": f"2026-01-01T00:00:{number:02}Z",
        }  # fmt: skip
        containers = [{"name": "wait", "image": "x"}, {"name": "main", "image": "x"}]
        self.pods.append(
            {"metadata": metadata, "spec": {"containers": containers}, "status": {"phase": "Running", **status}}
        )
        self.logs[name] = log

    def add_rayjob(self, namespace: str, name: str, labels: dict[str, str]) -> None:
        """A RayJob."""
        self.rayjobs.append({"metadata": {"name": name, "namespace": namespace, "labels": labels}})

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        namespace = re.search(r"/namespaces/([^/]+)/", path)
        if namespace and namespace[1] in self.forbidden:
            return self._send(request, 403, json.dumps({"kind": "Status", "message": "forbidden"}))
        if log := re.fullmatch(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/log", path):
            return self._send(request, 200, self.logs[log[1]], "text/plain")
        assert namespace, path
        selector = urllib.parse.parse_qs(query).get("labelSelector", [""])[0]
        found = self.rayjobs if "/rayjobs" in path else self.pods
        if request.command == "DELETE":
            assert "propagationPolicy=Foreground" in query
            self.rayjobs = [job for job in self.rayjobs if job["metadata"]["name"] != path.rpartition("/")[2]]
            return self._send(request, 200, "{}")
        items = [one for one in found if one["metadata"]["namespace"] == namespace[1] and _matches(one, selector)]
        return self._send(request, 200, json.dumps({"kind": "List", "items": items}))

    def _send(self, request: BaseHTTPRequestHandler, status: int, text: str, kind: str = "application/json") -> None:
        content = text.encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


def _matches(one: Json, selector: str) -> bool:
    wanted = dict(pair.split("=") for pair in filter(None, selector.split(",")))
    return wanted.items() <= one["metadata"]["labels"].items()
