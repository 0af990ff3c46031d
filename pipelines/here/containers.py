"""Tasks of a run on this machine as containers of the place's image: kfp's DockerRunner, made fit for a whole run.

Docker, or podman through its docker-compatible socket. Folders are mounted where they are, so that a path means the
same in a container as in a process; the network is this machine's, so that a server on it is too. Credentials go over
the socket, by name, into no file, log or command line.
"""

import codecs
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from data import storage
from data.place import Place
from pipelines.here.container_engine import LABEL, connect, find_image, reaped, remove
from pipelines.recipe import Recipe

_PASSED = ("AWS_", "CLIPWORKS_", "RAY_AUTH_", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY",
           "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")  # fmt: skip
_PASSED_WITH_FILE = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
                     "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")  # fmt: skip
_AWS_FILES, _AWS_FILES_INSIDE = Path("~/.aws"), "/home/clipworks/.aws"  # HOME of our images
# fields of a recipe that may name something local; what is not there, or is a URL, is no path
PATHS = ("annotations", "captions", "folder", "images", "model", "path", "pretrained", "url")
_RUN_LABEL = "clipworks.run"
_KILLED = 137


class Mount(NamedTuple):
    """A folder or file of this machine in a container, at the same path unless `inside` names another."""

    path: str
    mode: str
    inside: str = ""


@contextmanager
def tasks_in_containers(recipe: Recipe, place: Place, run: str, folders: Sequence[Path]) -> Iterator[Any]:
    """Yield kfp's runner that starts each task as a container; none is left when the block ends, or the process does.

    Args:
        recipe: names the local files that tasks read.
        place: image, root and mounts.
        run: the run's name, a label of its containers.
        folders: what tasks write to besides the root: the run's logs and kfp's pipeline root.
    """
    from kfp import local
    from kfp.local import docker_task_handler as handler

    client = connect()
    try:
        settings = _settings(recipe, place, run, folders, client.info())
    finally:
        client.close()
    token = settings["labels"][LABEL]
    ours = settings.pop("volumes")

    def run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **more: Any) -> int:
        return _run_container(client, image, command, {**volumes, **ours}, more)

    handler.run_docker_container = run_container
    with reaped(token):
        yield local.DockerRunner(**settings)


def _settings(
    recipe: Recipe, place: Place, run: str, folders: Sequence[Path], engine: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of docker's `run` that make a container work as a process of this user would."""
    variables, files = passed_environment(os.environ)
    mounts, working_dir = mounts_of(recipe, place)
    mounts += [Mount(str(folder), "rw") for folder in folders] + [Mount(file, "ro") for file in files]
    options = [str(option) for option in engine.get("SecurityOptions") or ()]
    is_rootless = any("rootless" in option for option in options)
    settings: dict[str, Any] = {
        "environment": variables,
        "volumes": {mount.path: {"bind": mount.inside or mount.path, "mode": mount.mode} for mount in mounts},
        "labels": {LABEL: secrets.token_hex(8), _RUN_LABEL: run},
        # a rootless engine's root is the user; any other number would be one of its sub-ids
        "user": "0:0" if is_rootless else f"{os.getuid()}:{os.getgid()}",
        "network_mode": "host",
        "shm_size": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2,  # a limit; engines give 64 MB
        "security_opt": ["no-new-privileges"] + (["label=disable"] if any("selinux" in one for one in options) else []),
    }
    if not is_rootless:
        settings["group_add"] = [str(group) for group in os.getgroups()]
    if working_dir:
        settings["working_dir"] = working_dir
    if place.gpus_per_worker:
        from docker.types import DeviceRequest

        settings["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return settings


def passed_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(variables that a task needs, files that they name): credentials, endpoints, proxies, what the run told it."""
    variables = {name: value for name, value in environment.items() if name.startswith(_PASSED)}
    named = {name: environment[name] for name in _PASSED_WITH_FILE if name in environment}
    files = {name: path for name, path in named.items() if Path(path).is_file() and Path(path).is_absolute()}
    variables = {name: value for name, value in variables.items() if name not in named} | files
    return variables, sorted(set(files.values()))


def mounts_of(recipe: Recipe, place: Place) -> tuple[list[Mount], str | None]:
    """(what a run's containers see of this machine, their working directory where a path is relative to it)."""
    mounts = [Mount(path, "ro") for path in place.mounts]
    found = sorted({path for stage in recipe.stages.values() for path in _local_paths(stage.model_dump(mode="json"))})
    mounts += [Mount(os.path.normpath(Path(path).absolute()), "ro") for path in found]
    is_relative = any(not Path(path).is_absolute() for path in found)
    if is_relative:
        mounts.append(Mount(str(Path.cwd()), "ro"))
    if storage.is_local(place.root):
        mounts.append(Mount(storage.normalise(place.root), "rw"))
    elif _AWS_FILES.expanduser().is_dir():
        mounts.append(Mount(str(_AWS_FILES.expanduser()), "ro", _AWS_FILES_INSIDE))
    return mounts, str(Path.cwd()) if is_relative else None


def _local_paths(value: Any, name: str = "") -> Iterator[str]:
    """Paths of this machine that a stage's config names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _local_paths(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _local_paths(inner, name)
    elif isinstance(value, str) and name in PATHS and value and "://" not in value and Path(value).exists():
        yield value


def _run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], more: dict[str, Any]) -> int:
    """Stands in for `run_docker_container` of kfp: run a task to its end, return its exit code.

    kfp's takes a container that is removed before it is asked for a success, breaks where a log's chunk ends inside a
    character, leaves the container alone when it is interrupted, does not find podman's `localhost/` images, and
    starts the image's entry point with the task's command as arguments.
    """
    container = client.containers.create(
        image=find_image(client, image), entrypoint=command[:1], command=command[1:], volumes=volumes, **more
    )
    try:
        container.start()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for chunk in container.logs(stream=True, follow=True):
            sys.stdout.write(decoder.decode(chunk))
            sys.stdout.flush()
        code = int(container.wait(timeout=None)["StatusCode"])
        if code == _KILLED:
            container.reload()
            reason = "out of memory" if container.attrs["State"].get("OOMKilled") else "by the engine or a person"
            sys.stdout.write(f"the container was killed: {reason}\n")
        return code
    finally:
        remove(container)
