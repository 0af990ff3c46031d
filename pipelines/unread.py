"""What a recipe no longer needs once one of its stages is replaced by something that has no parents."""

from collections.abc import Iterable, Mapping
from typing import Any

from data.stage import StageSpec
from evaluation.specs import EvaluateSpec, ReportSpec
from pipelines import checks
from training.specs import EmbedSpec

Stages = Mapping[str, StageSpec]


def unread_without(stages: Stages, replaced: str) -> set[str]:
    """Names of the stages that only the replaced one needed, and of the measuring of checkpoints among them.

    An ancestor goes when nothing that stays reads it. A checkpoint goes also when it is only measured: embedded and
    evaluated for the report, and neither trained on nor a teacher.
    """
    gone: set[str] = set()
    while more := _next(stages, replaced, gone):
        gone |= more
    return gone


def without_labels(report: dict[str, Any], gone: set[str]) -> dict[str, Any] | None:
    """A report (plain values) over the evaluations that stay; None where none does."""
    labels = {label: stage for label, stage in report["evaluations"].items() if stage not in gone}
    if not labels:
        return None
    gallery, checkpoints = report.get("gallery"), report.get("checkpoints", {})
    return report | {
        "evaluations": labels,
        "compare": {one: other for one, other in report.get("compare", {}).items() if {one, other} <= set(labels)},
        "controls": [label for label in report.get("controls", ()) if label in labels],
        "checkpoints": {label: c for label, c in checkpoints.items() if label in labels and c not in gone},
        "gallery": None if gallery and gallery["features"] in gone else gallery,
    }


def _next(stages: Stages, replaced: str, gone: set[str]) -> set[str]:
    """What can go next, with those that measure it."""
    for name in sorted(_ancestors(stages, {replaced, *gone}) - {replaced} - gone):
        readers = _readers(stages, name) - {replaced} - gone
        if not readers:
            return {name}
        if stages[name].MAKES == "checkpoint" and all(_only_measures(stages, reader) for reader in readers):
            measuring = {reader for reader in _with_readers(stages, readers) if not _is_report(stages, reader)}
            return {name, *measuring}
    return set()


def _only_measures(stages: Stages, name: str) -> bool:
    """True for a report, and for what is embedded or evaluated and then read by nothing else."""
    if _is_report(stages, name):
        return True
    measures = isinstance(stages[name], EmbedSpec | EvaluateSpec)
    return measures and all(_only_measures(stages, reader) for reader in _readers(stages, name))


def _is_report(stages: Stages, name: str) -> bool:
    return isinstance(stages[name], ReportSpec)


def _parents(stage: StageSpec) -> set[str]:
    return {parent for parent, _ in stage.roles().values()}


def _readers(stages: Stages, name: str) -> set[str]:
    return {other for other, stage in stages.items() if name in _parents(stage)}


def _ancestors(stages: Stages, names: set[str]) -> set[str]:
    found = set(names)
    for name in reversed(checks.order(stages)):  # children first, so that one pass reaches everything
        found |= _parents(stages[name]) if name in found else set()
    return found


def _with_readers(stages: Stages, names: Iterable[str]) -> set[str]:
    found = set(names)
    for name in checks.order(stages):
        found |= {name} if _parents(stages[name]) & found else set()
    return found
