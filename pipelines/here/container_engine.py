"""The container engine of this machine: docker, or podman through its docker-compatible socket; its images; its reaper.

Run as a program it is the reaper: it waits until the run that started it is gone, however that ended, and removes the
containers that are left.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.errors import BackendError, RecipeError
from data.place import Place

LABEL = "clipworks.process"
_SOCKETS = ("/var/run/docker.sock", "{XDG_RUNTIME_DIR}/podman/podman.sock", "/run/podman/podman.sock")
_LOOK_SECONDS, _MOST_LOOKS, _END_SECONDS = 0.5, 120, 90.0
_EMPTY_LOOKS = 3  # until a request that was on its way when the run died has made its container


def connect() -> Any:
    """A client of the engine that DOCKER_HOST names, else of the first socket of docker or podman that is there.

    Raises:
        BackendError: there is no client, no engine, or it does not answer.
    """
    instead = "or leave out `runner: container`"
    try:
        import docker
    except ImportError as error:
        raise BackendError(
            f"runner: container: the package docker is missing; `pip install clipworks[containers]`, {instead}"
        ) from error
    address = os.environ.get("DOCKER_HOST") or _socket()
    if address is None:
        raise BackendError(
            "runner: container: no container engine: DOCKER_HOST is not set, and neither docker nor podman has a "
            f"socket here; start docker or `podman system service`, {instead}"
        )
    os.environ["DOCKER_HOST"] = address  # where kfp will look for it
    try:
        client = docker.from_env()
        client.ping()
    except Exception as error:  # docker, requests and urllib3 each have their own
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"runner: container: no container engine answers at {address} ({reason}); "
            f"start it, set DOCKER_HOST to another, {instead}"
        ) from error
    return client


def _socket() -> str | None:
    paths = [path.format(XDG_RUNTIME_DIR=os.environ.get("XDG_RUNTIME_DIR", "/run")) for path in _SOCKETS]
    return next((f"unix://{path}" for path in paths if os.access(path, os.R_OK | os.W_OK)), None)


def check(place: Place) -> str:
    """Make sure that tasks of this place can be started as containers; return the image, pinned by its content.

    Raises:
        BackendError: no engine, or no image.
        RecipeError: a mount that is not there.
    """
    for path in place.mounts:
        if not (Path(path).is_absolute() and Path(path).exists()):
            raise RecipeError(f"mounts: {path!r}: give the absolute path of a folder or file that is there")
    client = connect()
    try:
        attributes = find_image(client, place.image).attrs
    finally:
        client.close()
    pinned: list[str] = attributes.get("RepoDigests") or [attributes["Id"]]
    return pinned[0]


def find_image(client: Any, name: str) -> Any:
    """The image, pulled if its name says from where: a bare name would be another's on a public registry."""
    from docker.errors import APIError, NotFound

    try:
        return client.images.get(name)
    except NotFound as missing:
        host, slash, _ = name.partition("/")
        is_local = not slash or not (set(".:") & set(host)) or host == "localhost"
        reason: Exception = missing
        if not is_local:
            try:
                return client.images.pull(*_repository(name))
            except APIError as error:
                reason = error
        why = "its name has no registry to pull it from" if is_local else " ".join(str(reason).split())[:200]
        raise BackendError(
            f"image: {name!r}: not on this machine, and {why}; build it (k8s/images/README.md) or name another"
        ) from reason


def _repository(name: str) -> tuple[str, str]:
    """(repository, tag or digest); a name without either means `latest`, never all tags."""
    repository, at, digest = name.partition("@")
    if at:
        return repository, digest
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")


@contextmanager
def reaped(token: str) -> Iterator[None]:
    """Have the containers with this label removed when the block ends or this process dies.

    The reaper leads a session of its own, so that it outlives a killed process group, and sees the end of its input.
    """
    reaper = subprocess.Popen(
        [sys.executable, "-P", "-m", "pipelines.here.container_engine", token],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert reaper.stdin
    try:
        yield
        reaper.stdin.write(b"done")
    finally:
        reaper.stdin.close()
        reaper.wait(_END_SECONDS)


def main() -> None:
    """Wait for the end of the input, then remove the containers whose label's value is the argument."""
    ended_well = bool(sys.stdin.buffer.read())
    client, empty, wanted = connect(), 0, 1 if ended_well else _EMPTY_LOOKS
    for _ in range(_MOST_LOOKS):
        left = client.containers.list(all=True, ignore_removed=True, filters={"label": f"{LABEL}={sys.argv[1]}"})
        for container in left:
            remove(container)
        empty = 0 if left else empty + 1
        if empty == wanted:
            return
        time.sleep(_LOOK_SECONDS)
    raise RuntimeError(f"the engine does not remove {', '.join(container.name for container in left)}")


def remove(container: Any) -> None:
    """Remove a container, killed before: podman's forced removal asks it to end, and waits ten seconds for that.

    What is gone or going is another remover's; what stays is seen at the reaper's next look.
    """
    from docker.errors import APIError

    for step in (container.kill, lambda: container.remove(force=True, v=True)):
        with suppress(APIError):
            step()


if __name__ == "__main__":
    main()
