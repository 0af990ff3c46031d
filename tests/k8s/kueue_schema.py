"""Kueue's v1beta2 objects as far as k8s/ uses them, unknown fields refused; and the rules of its webhooks on them.

Stated from Kueue's API types; v1beta2 is what it stores since 0.16, and v1beta1 is no longer served since 0.20.
"""

from typing import Any

import jsonschema

Object = dict[str, Any]
_NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
_TEXT = {"type": "string", "minLength": 1}
_QUANTITY = {"type": "string", "pattern": r"^[0-9]+(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
_EFFECT = {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]}


def _closed(required: list[str], /, **properties: Any) -> Object:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _many(items: Object, most: int) -> Object:
    return {"type": "array", "minItems": 1, "maxItems": most, "items": items}


_TAINT = _closed(["key", "effect"], key=_TEXT, value=_TEXT, effect=_EFFECT)
_TOLERATION = _closed([], key=_TEXT, operator={"enum": ["Exists", "Equal"]}, value=_TEXT, effect=_EFFECT)
_QUOTA = _closed(["name", "nominalQuota"], name=_TEXT, nominalQuota=_QUANTITY)
_FLAVOR = _closed(["name", "resources"], name=_NAME, resources=_many(_QUOTA, 64))
_GROUP = _closed(["coveredResources", "flavors"], coveredResources=_many(_TEXT, 64), flavors=_many(_FLAVOR, 64))
_SELECTOR = _closed([], matchLabels={"type": "object", "additionalProperties": {"type": "string"}})
_SPECS = {
    "ResourceFlavor": _closed(
        [],
        nodeLabels={"type": "object", "maxProperties": 8, "additionalProperties": {"type": "string"}},
        nodeTaints=_many(_TAINT, 8),
        tolerations=_many(_TOLERATION, 8),
    ),
    "ClusterQueue": _closed(
        [],
        namespaceSelector=_SELECTOR,
        queueingStrategy={"enum": ["StrictFIFO", "BestEffortFIFO"]},
        stopPolicy={"enum": ["None", "Hold", "HoldAndDrain"]},
        resourceGroups=_many(_GROUP, 16),
    ),
    "LocalQueue": _closed(["clusterQueue"], clusterQueue=_NAME),
}


def problems(thing: Object) -> list[str]:
    """What is wrong with one of Kueue's objects."""
    labels = {"type": "object", "additionalProperties": {"type": "string"}}
    kind = thing["kind"]
    placed = ["namespace"] if kind == "LocalQueue" else []
    metadata = _closed(["name", *placed], name=_NAME, labels=labels, **dict.fromkeys(placed, _NAME))
    whole = _closed(
        ["apiVersion", "kind", "metadata", *(["spec"] if kind != "ResourceFlavor" else [])],
        apiVersion={"const": "kueue.x-k8s.io/v1beta2"}, kind={"const": kind}, metadata=metadata, spec=_SPECS[kind],
    )  # fmt: skip
    found = [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(thing)]
    return found or (_order_problems(thing) if kind == "ClusterQueue" else [])


def _order_problems(queue: Object) -> list[str]:
    """A flavor lists what its group covers, in that order; a flavor and a resource are in one group only."""
    groups = queue["spec"].get("resourceGroups", [])
    lines = [
        f"{flavor['name']}: resources are not coveredResources"
        for group in groups
        for flavor in group["flavors"]
        if [quota["name"] for quota in flavor["resources"]] != group["coveredResources"]
    ]
    for name in ("coveredResources", "flavors"):
        seen = [part if isinstance(part, str) else part["name"] for group in groups for part in group[name]]
        lines += [f"{part}: twice in {name}" for part in {part for part in seen if seen.count(part) > 1}]
    return lines
