"""What a task's container gets of this machine, and what is said where there is no engine; no engine is needed here."""

import http.server
import json
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data.errors import BackendError, RecipeError
from data.place import Place
from data.spec import Operational, Spec
from pipelines.here import container_engine, containers
from pipelines.here.container_engine import check
from pipelines.here.containers import Mount, mounts_of, passed_environment
from pipelines.recipe import parse_recipe
from pipelines.yaml_text import to_yaml

pytest.importorskip("docker")


@contextmanager
def engine(folder: Path, answers: dict[str, tuple[int, Any]], asked: list[str]) -> Iterator[str]:
    """A container engine's API on a socket of the file system: (path without version -> status, JSON)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            path = "/" + path.split("/", 2)[2] if path.startswith("/v1.") else path
            asked.append(f"{self.command} {path}")
            status, value = answers.get(path, (404, {"message": f"no such thing: {path}"}))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def address_string(self) -> str:
            return "socket"

        def log_message(self, *_: object) -> None:
            return

    path = folder / "engine.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()


PONG = {"/_ping": (200, "OK"), "/version": (200, {"ApiVersion": "1.41"})}
FOUND = {"Id": "sha256:abc", "RepoTags": ["clipworks:0.1.0"], "RepoDigests": []}


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a socket, whose path may not be long, and no DOCKER_HOST but the test's own."""
    monkeypatch.setenv("DOCKER_HOST", "")
    return tmp_path_factory.mktemp("s")


def test_no_engine_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(container_engine, "_SOCKETS", ("/nowhere/docker.sock",))
    with pytest.raises(
        BackendError, match=r"no container engine: DOCKER_HOST is not set.*start docker or `podman system"
    ):
        check(Place(runner="container"))


def test_an_engine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/gone.sock")
    with pytest.raises(
        BackendError, match=r"no container engine answers at unix://\S+/gone.sock .*; start it"
    ) as raised:
        check(Place(runner="container"))
    assert "\n" not in str(raised.value)


def test_an_image_is_pinned_by_its_content(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {**PONG, "/images/clipworks:0.1.0/json": (200, FOUND)}
    with engine(short, answers, []) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        assert check(Place(runner="container")) == "sha256:abc"
        answers["/images/clipworks:0.1.0/json"] = (200, {**FOUND, "RepoDigests": ["host.example/clipworks@sha256:d"]})
        assert check(Place(runner="container")) == "host.example/clipworks@sha256:d"


def test_a_bare_name_is_never_pulled_and_a_full_one_is_with_its_tag(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    with engine(short, {**PONG, "/images/create": (500, {"message": "no route to host"})}, asked) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        for name in ("clipworks:0.1.0", "someone/clipworks:0.1.0", "localhost/clipworks:0.1.0"):
            with pytest.raises(
                BackendError, match=f"image: '{name}': not on this machine, and its name has no registry"
            ):
                check(Place(runner="container", image=name))
        assert "POST /images/create" not in asked
        with pytest.raises(BackendError, match=r"image: 'host.example/c:1': .*no route to host.*k8s/images/README.md"):
            check(Place(runner="container", image="host.example/c:1"))
        assert "POST /images/create" in asked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("host.example:5000/a/b:1", ("host.example:5000/a/b", "1")),
        ("host.example:5000/a/b", ("host.example:5000/a/b", "latest")),
        ("host.example/a@sha256:00", ("host.example/a", "sha256:00")),
    ],
)
def test_what_is_pulled_is_one_tag(name: str, expected: tuple[str, str]) -> None:
    assert container_engine._repository(name) == expected


@pytest.mark.parametrize("path", ["relative", "/nowhere/at/all"])
def test_a_mount_must_be_there(path: str) -> None:
    with pytest.raises(
        RecipeError, match=f"mounts: '{path}': give the absolute path of a folder or file that is there"
    ):
        check(Place(runner="container", mounts=(path,)))


def test_the_command_says_so_in_one_line(
    data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/gone.sock")
    place = tmp_path / "place.yaml"
    place.write_text(to_yaml({"root": str(tmp_path / "runs"), "runner": "container"}))
    said = refused("run", data_file, "--place", place, is_silent=False)
    assert "no container engine answers" in said
    assert not list((tmp_path / "runs").glob("[!.]*"))


def test_credentials_and_what_the_run_says_are_passed_and_nothing_else(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    variables, files = passed_environment(
        {
            "AWS_SECRET_ACCESS_KEY": "key", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "CLIPWORKS_FAILURE_FILE": "/f",
            "RAY_AUTH_TOKEN": "token", "https_proxy": "http://proxy", "AWS_CA_BUNDLE": str(bundle),
            "SSL_CERT_FILE": "/nowhere.pem", "AWS_CONFIG_FILE": "relative", "PYTHONPATH": "/src", "HOME": "/home/me",
            "PATH": "/bin", "RAY_ADDRESS": "other:1", "WANDB_API_KEY": "w", "LD_LIBRARY_PATH": "/lib",
        }
    )  # fmt: skip
    assert variables == {
        "AWS_SECRET_ACCESS_KEY": "key", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "CLIPWORKS_FAILURE_FILE": "/f",
        "RAY_AUTH_TOKEN": "token", "https_proxy": "http://proxy", "AWS_CA_BUNDLE": str(bundle),
    }  # fmt: skip
    assert files == [str(bundle)]


def test_a_container_sees_the_root_and_the_files_that_the_recipe_names(
    small: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    place = Place(root=str(tmp_path / "runs"), mounts=("/usr",))
    mounts, working_dir = mounts_of(parse_recipe(small), place)
    assert set(mounts) == {
        Mount("/usr", "ro"), Mount(str(pictures / "images"), "ro"), Mount(str(pictures / "captions.csv"), "ro"),
        Mount(str(tmp_path / "runs"), "rw"),
    }  # fmt: skip
    assert working_dir is None


def test_every_operational_text_of_a_recipe_is_a_path_that_is_looked_for() -> None:
    """A path cannot change what is made, so it is marked Operational: a new one is found here."""
    import components.runtime  # all kinds of stages, with the specs inside them

    def all_below(spec: type) -> Iterator[type]:
        yield spec
        for one in spec.__subclasses__():
            yield from all_below(one)

    assert components.runtime.SPECS
    fields = [(name, field) for spec in all_below(Spec) for name, field in spec.model_fields.items()]
    texts = {name for name, field in fields if Operational in field.metadata and "str" in str(field.annotation)}
    assert {"images", "url", "path"} <= texts <= {*containers.PATHS, "artifact"}


def test_a_relative_path_means_the_same_in_a_container(
    small: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    small["stages"]["pairs"]["pool"].update(images="images", captions="../pool/captions.csv")
    mounts, working_dir = mounts_of(parse_recipe(small), Place(root=str(tmp_path / "runs")))
    assert working_dir == str(pictures)
    assert Mount(str(pictures), "ro") in mounts
    assert all(Path(mount.path).is_absolute() and ".." not in mount.path for mount in mounts)


def test_a_bucket_is_not_mounted(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = parse_recipe({**small, "stages": {"init": small["stages"]["init"]}})
    assert mounts_of(recipe, Place(root="s3://bucket/runs")) == ([], None)
    (tmp_path / ".aws").mkdir()
    mount = Mount(str(tmp_path / ".aws"), "ro", "/home/clipworks/.aws")
    assert mounts_of(recipe, Place(root="s3://bucket/runs")) == ([mount], None)


@pytest.mark.parametrize(
    ("security", "user", "selinux"),
    [
        ([], f"{os.getuid()}:{os.getgid()}", False),
        (["name=seccomp,profile=default", "name=rootless"], "0:0", False),
        (["name=selinux"], f"{os.getuid()}:{os.getgid()}", True),
    ],
)
def test_files_belong_to_the_user(
    security: list[str], user: str, selinux: bool, small: dict[str, Any], tmp_path: Path
) -> None:
    """A rootless engine's root is the user; on another one the user's own number is."""
    place = Place(root=str(tmp_path / "runs"))
    settings = containers._settings(parse_recipe(small), place, "test", [tmp_path], {"SecurityOptions": security})
    assert settings["user"] == user
    assert ("label=disable" in settings["security_opt"]) == selinux
    assert settings["shm_size"] > 64 * 2**20
    assert settings["volumes"][str(tmp_path)] == {"bind": str(tmp_path), "mode": "rw"}
    assert "device_requests" not in settings


def test_a_place_with_gpus_asks_the_engine_for_them(small: dict[str, Any], tmp_path: Path) -> None:
    place = Place(root=str(tmp_path / "runs"), gpus_per_worker=1)
    (request,) = containers._settings(parse_recipe(small), place, "test", [], {})["device_requests"]
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])
