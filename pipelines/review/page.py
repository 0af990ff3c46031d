"""`clipworks runs report`: gathers what the page over many runs shows (evaluation/runs_page.py draws it)."""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data import storage
from data.artifacts import Artifact
from data.errors import RecipeError, nearest
from evaluation import runs_page
from pipelines.planning.plan import duration
from pipelines.review.listing import Seen, see
from pipelines.review.text import stages_text, when

_MOST_LOGS = 40  # a frame, newest first: more curves than that say nothing
_ABOUT = ("name", "title", "purpose", "hardware", "minutes", "expect")


def make_page(root: str, names: Sequence[str], group: str | None, title: str, output: str) -> tuple[str, int]:
    """(the page as HTML, how many runs it holds), of these runs, of a sweep's trials, or of all below the root.

    Raises:
        RecipeError: there is no such run.
    """
    runs, unreadable = see(root)
    chosen = _chosen(runs, names, group, root)
    rows = [_row(seen, output) for seen in chosen]
    broken = [] if names or group else [(one.name, one.reason) for one in unreadable]
    place = storage.name_of(storage.normalise(root))
    return runs_page.render(title, place, rows, broken, list(_trainings(chosen))), len(rows)


def _chosen(runs: list[Seen], names: Sequence[str], group: str | None, root: str) -> list[Seen]:
    known = {seen.record.name: seen for seen in runs}
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"; runs are {', '.join(list(known)[:12]) or 'none'}"
            raise RecipeError(f"run {name!r}: no such run below {root}{hint}")
    groups = {seen.record.group for seen in runs if seen.record.group}
    if group is not None and group not in groups:
        hint = nearest(group, groups) or f"; groups are {', '.join(sorted(groups)) or 'none'}"
        raise RecipeError(f"--group {group}: no such sweep below {root}{hint}")
    wanted = [seen for seen in runs if not names or seen.record.name in names]
    return [seen for seen in wanted if group in (None, seen.record.group)]


def _row(seen: Seen, output: str) -> runs_page.RunRow:
    record, seconds = seen.record, seen.seconds
    links = {stage: _link(report.at("report.html"), output) for stage, report in seen.of_kind("report").items()}
    return runs_page.RunRow(
        name=record.name, state=seen.state.name, note=seen.state.note, started=record.started,
        when=when(record.started), seconds=seconds, took="–" if seconds is None else duration(seconds),
        recipe=str(record.recipe.get("name", "?")), group=record.group, stages=stages_text(seen),
        number=seen.number._asdict() if seen.number else None, fields=dict(_leaves(record.recipe)), links=links,
    )  # fmt: skip


def _link(uri: str, output: str) -> str:
    """Address of a page from another: relative where both lie in one place, so that the folder can be moved."""
    here, there = storage.normalise(output), storage.normalise(uri)
    if storage.is_local(here) != storage.is_local(there):
        return there
    return posixpath.relpath(there, posixpath.dirname(here))


def _leaves(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a recipe that counts; lists as one value."""
    for name, value in recipe.items():
        if name not in _ABOUT:
            yield from _below(str(name), value)


def _below(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _below(f"{path}.{name}", inner)
    elif isinstance(value, list):
        yield path, json.dumps(value, ensure_ascii=False, sort_keys=True)  # one text for equal values
    else:
        yield path, value


def _trainings(runs: Sequence[Seen]) -> Iterator[runs_page.Training]:
    """The logs of each training stage, one a checkpoint."""
    stages = list(dict.fromkeys(name for seen in runs for name in seen.record.stages if seen.kind(name) == "train"))
    for stage in stages:
        checkpoints: dict[str, tuple[Artifact, list[str]]] = {}
        for seen in runs:
            artifact = seen.artifact(stage) if stage in seen.record.stages else None
            if artifact:
                checkpoints.setdefault(artifact.fingerprint, (artifact, []))[1].append(seen.record.name)
        logs = {_label(names): _log(artifact) for artifact, names in list(checkpoints.values())[:_MOST_LOGS]}
        kept = {label: lines for label, lines in logs.items() if lines}
        if kept:
            yield runs_page.Training(stage, kept)


def _label(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[-1]} and {len(names) - 1} more"


def _log(checkpoint: Artifact) -> list[dict[str, Any]]:
    uri = checkpoint.at("metrics.jsonl")
    if not storage.exists(uri):
        return []
    lines = (json.loads(line) for line in storage.read_bytes(uri).decode().splitlines() if line.strip())
    return [line for line in lines if "loss" in line and "samples_seen" in line]
