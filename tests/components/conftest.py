"""A fake Kubernetes for the launcher's tests, under the name by which its module is loaded."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from components.launcher import launch
from data.place import Place, RayJob
from data.specs import IngestSpec
from data.stage import run_stage

NAME = "clipworks_fake_kubernetes"


def _load() -> ModuleType:
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, Path(__file__).with_name("fake_kubernetes.py"))
        assert spec
        assert spec.loader
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return sys.modules[NAME]


_load()


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, with a kubeconfig that leads to it, and no wait between two questions."""
    server = _load().FakeKubernetes()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    for name in ("POD_NAME", "POD_UID", "POD_NAMESPACE", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("components.rayjob_watch._POLL_SECONDS", 0.005)
    monkeypatch.setattr("components.kube_api._FIRST_WAIT_SECONDS", 0.005)
    monkeypatch.setattr("components.kube_api._PATIENCE_SECONDS", 20.0)
    monkeypatch.setattr("components.launcher._GONE_POLL_SECONDS", 0.005)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place with RayJobs."""
    return Place(root=str(tmp_path / "runs"), data_workers=1, wandb_mode="disabled", rayjob=RayJob(start_seconds=60))


@pytest.fixture
def config(tmp_path: Path) -> str:
    """An ingest of three pairs."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\n" + "".join(f"{number}.png,thing {number}\n" for number in range(3)))
    pool = {"source": "folder", "images": str(folder), "captions": str(captions)}
    return json.dumps({"kind": "ingest", "pool": pool})


@pytest.fixture
def go(config: str, place: Place) -> Callable[..., str]:
    """Launch the stage."""

    def run(**changes: Any) -> str:
        return launch("ingest", "pairs", changes.pop("config", config), "", changes.pop("place", place), _load().RUN)

    return run


@pytest.fixture
def make(config: str, place: Place) -> Callable[[Any], Any]:
    """What a RayJob that works does: the same stage, here without Ray."""
    spec, without_ray = IngestSpec.model_validate_json(config), _load().plain(place)
    return lambda _: run_stage("pairs", spec, {}, without_ray)
