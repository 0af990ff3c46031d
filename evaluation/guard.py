"""Hyper-parameters and weights never meet test pairs: checked by uid against every selection behind a feature set."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.artifacts import Artifact
from data.errors import EvaluationError
from data.selection import kept_uids


def guard_splits(
    features: Artifact, pairs: Artifact, split: Artifact, evaluated: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Refuse to evaluate pairs that anything behind `features` was trained on or curated with; say what was checked.

    Raises:
        EvaluationError: names the split, the count and one uid that leaked, or the selection cut from another split.
    """
    _require_same(features, "pairs", pairs)
    _require_same(features, "split", split)
    checked: list[str] = []
    pretrained: list[str] = []
    for ancestor in features.ancestors():
        if ancestor.record.kind == "selection":
            _require_same(ancestor, "split", split)
            _require_disjoint(ancestor, evaluated)
            checked.append(ancestor.fingerprint)
        elif ancestor.record.config.get("pretrained"):
            pretrained.append(str(ancestor.record.config["pretrained"]))
    # what weights from elsewhere were trained on cannot be checked: the report says so
    return {"selections": len(checked), "pretrained_elsewhere": sorted(pretrained)}


def _require_same(artifact: Artifact, role: str, expected: Artifact) -> None:
    found = artifact.record.parents.get(role)
    if found != expected.fingerprint:
        made = f"was made with {role} {found[:12]}" if found else f"has no {role}"
        raise EvaluationError(
            f"{artifact.uri}: {made}, the evaluation with {expected.fingerprint[:12]}; use the same {role} stage"
        )


def _require_disjoint(selection: Artifact, evaluated: Mapping[str, Sequence[str]]) -> None:
    kept = set(kept_uids(selection).to_pylist())
    for name, uids in evaluated.items():
        leaked = sorted(kept.intersection(uids))
        if leaked:
            raise EvaluationError(
                f"split {name!r}: {len(leaked)} of {len(uids)} pairs are in the training selection {selection.uri}, "
                f"e.g. {leaked[0]!r}; evaluate splits that curation leaves out"
            )
