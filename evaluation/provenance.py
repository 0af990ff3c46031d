"""Where a report comes from: every artifact behind it, parents before children."""

from collections.abc import Iterable
from typing import Any

from data import storage
from data.artifacts import SHORT, Artifact, require_fingerprint


def lineage(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """These artifacts and all their ancestors, each once, every parent before its children."""
    seen: set[str] = set()
    ordered: list[Artifact] = []
    names: dict[str, list[str]] = {}  # of each root's folders, listed once

    def visit(artifact: Artifact) -> None:
        seen.add(artifact.fingerprint)
        for print_ in artifact.record.parents.values():
            if print_ not in seen:
                if artifact.root not in names:
                    names[artifact.root] = storage.list_folders(artifact.root)
                visit(require_fingerprint(artifact.root, print_, names[artifact.root]))
        ordered.append(artifact)

    for artifact in artifacts:
        if artifact.fingerprint not in seen:
            visit(artifact)
    return ordered


def describe(artifacts: Iterable[Artifact]) -> list[dict[str, Any]]:
    """One row an artifact: name, kind, counts, and the names of its parents by role."""
    artifacts = list(artifacts)
    name_of = {artifact.fingerprint: _stage_name(artifact) for artifact in artifacts}
    return [
        {
            "name": name_of[artifact.fingerprint],
            "kind": artifact.record.kind,
            "fingerprint": artifact.fingerprint[:SHORT],
            "counts": artifact.record.counts,
            "parents": {role: name_of[print_] for role, print_ in artifact.record.parents.items()},
        }
        for artifact in artifacts
    ]


def packages(artifacts: Iterable[Artifact]) -> dict[str, list[str]]:
    """Versions of each package that made any of the artifacts; more than one where they differ."""
    versions: dict[str, set[str]] = {}
    for artifact in artifacts:
        for name, version in artifact.record.packages.items():
            versions.setdefault(name, set()).add(version)
    return {name: sorted(found) for name, found in sorted(versions.items())}


def _stage_name(artifact: Artifact) -> str:
    return storage.name_of(artifact.uri).removesuffix(f"-{artifact.fingerprint[:SHORT]}")
