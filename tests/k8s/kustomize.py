"""As much of kustomize as k8s/ uses, so that its tests run where kubectl is not; where it is, both must agree."""

from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "labels"}
_CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "ResourceFlavor", "ClusterQueue"}


def render(folder: Path) -> list[Object]:
    """The objects that `kubectl kustomize FOLDER` prints, sorted by `identity`."""
    return sorted(_gathered(folder, []), key=identity)


def identity(thing: Object) -> tuple[str, str, str]:
    """What makes an object one of its kind."""
    return thing["kind"], thing["metadata"].get("namespace", ""), thing["metadata"]["name"]


def _gathered(folder: Path, inherited: list[Object]) -> list[Object]:
    """A kustomization's objects; a component works on those of who includes it."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(plan) - _KNOWN
    assert not unknown, f"{folder}: {unknown} is not in this renderer"
    things = [*inherited]
    for name in plan.get("resources", []):
        path = folder / name
        things += _gathered(path, []) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for name in plan.get("components", []):
        things = _gathered(folder / name, things)
    for patch in plan.get("patches", []):
        _patch(things, yaml.safe_load((folder / patch["path"]).read_text()))
    for thing in things:
        if "namespace" in plan and thing["kind"] not in _CLUSTER_WIDE:
            thing["metadata"]["namespace"] = plan["namespace"]
        for labels in plan.get("labels", []):
            thing["metadata"].setdefault("labels", {}).update(labels["pairs"])
    return things


def _patch(things: list[Object], patch: Object) -> None:
    found = [thing for thing in things if identity(thing) == identity(patch)]
    assert len(found) == 1, f"{identity(patch)}: {len(found)} objects to patch"
    _merge(found[0], patch)


def _merge(into: Object, patch: Object) -> None:
    for key, value in patch.items():
        assert not isinstance(value, list), "a patch of a list: kustomize merges some by name, this renderer none"
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
