"""A small W&B server on the loopback: as much of its API as `wandb sync` of 0.31 asks for, and what it was told.

It keeps W&B's rule that matters for lineage: an artifact of a name with a known digest is the one that is there.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "w" * 40


class FakeWandb:
    """What the server knows. `status`: answer every request with this HTTP status instead."""

    def __init__(self) -> None:
        self.url, self.key = "", API_KEY
        self.status = 200
        self.runs: dict[str, dict[str, Any]] = {}  # name -> variables of its first upsert
        self.artifacts: dict[tuple[str, str], dict[str, Any]] = {}  # (collection, digest) -> what is known
        self.used: list[tuple[str, str]] = []  # (run, collection)
        self.logged: list[tuple[str, str]] = []  # (run, collection), a second logging too
        self.files: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def made_by(self) -> dict[str, str | None]:
        """Collection -> display name of the run that made its (only) version; None where none did."""
        return {name: self._title(one["run"]) for (name, _), one in self.artifacts.items()}

    def edges(self) -> set[tuple[str, str]]:
        """(collection, display name of a run that uses it)."""
        return {(collection, str(self._title(run))) for run, collection in self.used}

    def _title(self, run: str | None) -> str | None:
        return self.runs[run]["displayName"] if run else None

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer."""
        given = variables.get("input", variables)
        do = {
            "Viewer": self._viewer, "UpsertBucket": self._run,
            "CreateArtifact": self._artifact, "UseArtifact": self._use,
            "CreateArtifactManifest": self._manifest, "UpdateArtifactManifest": self._manifest,
            "CommitArtifact": self._commit, "CreateRunFiles": self._files, "CreateArtifactFiles": self._artifact_files,
        }.get(operation)  # fmt: skip
        return do(given) if do else {"project": None}

    def _viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        del given
        teams = {"edges": [{"node": {"name": "team"}}]}
        who = {"id": "v1", "username": "user", "entity": "team", "email": "", "flags": "{}", "teams": teams}
        return {"viewer": who}

    def _run(self, given: dict[str, Any]) -> dict[str, Any]:
        self.runs.setdefault(given["name"], given)
        entity = {"id": "e1", "name": "team"}
        bucket = {
            "id": f"id-{given['name']}", "name": given["name"], "displayName": given["displayName"], "config": "{}",
            "project": {"id": "p1", "name": given["project"] or "p", "entity": entity}, "historyLineCount": 0,
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        key, run = (given["artifactCollectionName"], given["digest"]), given["runName"]
        new = {"id": f"a{len(self.artifacts)}", "run": run, "state": "PENDING", "type": given["artifactTypeName"],
               "metadata": json.loads(given["metadata"] or "{}"), "aliases": given["aliases"]}  # fmt: skip
        known = self.artifacts.setdefault(key, new)
        if run:
            self.logged.append((run, key[0]))
        latest = {"artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": {"id": known["id"], "state": known["state"], **latest}}}

    def _use(self, given: dict[str, Any]) -> dict[str, Any]:
        names = {one["id"]: name for (name, _), one in self.artifacts.items()}
        self.used.append((given["runName"], names[given["artifactID"]]))
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def _manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        del given
        upload = {"id": "f1", "name": "wandb_manifest.json", "displayName": "m", "uploadUrl": f"{self.url}/up/manifest",
                  "uploadHeaders": []}  # fmt: skip
        made = {"artifactManifest": {"id": "m1", "file": upload}}
        return {"createArtifactManifest": made, "updateArtifactManifest": made}

    def _commit(self, given: dict[str, Any]) -> dict[str, Any]:
        for one in self.artifacts.values():
            if one["id"] == given["artifactID"]:
                one["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def _files(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/up/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        """Where the files of an artifact go that has some: tables, which W&B keeps as artifacts of its own."""
        nodes = [
            {"id": f"f{number}", "name": one["name"], "displayName": one["name"], "uploadHeaders": [],
             "uploadUrl": f"{self.url}/up/artifact/{one['name']}", "storagePath": one["name"],
             "uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]}}
            for number, one in enumerate(given["artifactFiles"])
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


@contextmanager
def serving() -> Iterator[FakeWandb]:
    """A server on a free port."""
    fake = FakeWandb()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(fake))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


def _handler_of(fake: FakeWandb) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return None

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client ends when it has what it came for
                super().handle()

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            with fake.lock:
                said = self._said(body)
            content = json.dumps(said).encode()
            self.send_response(fake.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _said(self, body: bytes) -> dict[str, Any]:
            if fake.status != 200:
                return {"error": "no"}
            if self.path != "/graphql":
                fake.files[self.path] = fake.files.get(self.path, b"") + body
                return {}
            asked = json.loads(body)
            words = asked["query"].split()
            name = asked.get("operationName") or words[1].partition("(")[0]
            name = "Viewer" if "viewer" in name.lower() else name
            return {"data": fake.answer(name, asked.get("variables") or {})}

        do_GET = do_POST = do_PUT = _do

    return Handler
