"""Gives the tests of k8s/ its rendered overlays, and the rules they are held against (modules beside this one)."""

import importlib.util
import sys
from pathlib import Path

import pytest

K8S = Path(__file__).resolve().parents[2] / "k8s"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"clipworks_k8s_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def k8s():
    return K8S


@pytest.fixture(scope="session")
def kustomize():
    return _load("kustomize")


@pytest.fixture(scope="session")
def rights():
    return _load("rights")


@pytest.fixture(scope="session")
def pod_security():
    return _load("pod_security")


@pytest.fixture(scope="session")
def network():
    return _load("network")


@pytest.fixture(scope="session")
def quantities():
    return _load("quantities")


@pytest.fixture(scope="session")
def kueue_schema():
    return _load("kueue_schema")


@pytest.fixture(scope="session")
def rayjob_schema():
    return _load("rayjob_schema")


@pytest.fixture(scope="session", params=["laptop", "gpu"])
def overlay(request):
    return request.param


@pytest.fixture(scope="session")
def rendered(kustomize):
    """Both overlays, rendered here: no kubectl is needed."""
    return {name: kustomize.render(K8S / "overlays" / name) for name in ("laptop", "gpu")}


@pytest.fixture
def objects(rendered, overlay):
    """One overlay's objects, to be changed at will."""
    import copy

    return copy.deepcopy(rendered[overlay])
