"""Kubernetes quantities as numbers, and what pods ask for in all."""

import re
from collections import Counter
from fractions import Fraction
from typing import Any

_UNITS = {
    "": 1, "m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def number(quantity: str | int | float) -> Fraction:
    """A quantity such as `500m` or `8Gi`."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert found, quantity
    return Fraction(found[1]) * _UNITS[found[2]]


def requests(pod: dict[str, Any]) -> Counter[str]:
    """What a pod asks for: all of its containers together, or its largest init container where that is more."""
    asked: Counter[str] = Counter()
    for container in pod["containers"]:
        asked.update(_of(container))
    for container in pod.get("initContainers", []):
        for name, value in _of(container).items():
            asked[name] = max(asked[name], value)
    return asked


def _of(container: dict[str, Any]) -> dict[str, Any]:
    resources = container.get("resources", {})
    merged = {**resources.get("limits", {}), **resources.get("requests", {})}  # a limit alone is the request too
    return {name: number(value) for name, value in merged.items()}
