"""Every number in tables: models down, metrics across; baselines and chance beside, marks where models differ."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.results import HELPED, HURT, Difference, Key, Results, Row
from evaluation.words import words

_MOST_COLUMNS = 8
_DETAIL = re.compile(r"(?!.*R@).+@\d+|.+=.+_(top1|gap)")  # a point of a curve, a value of a factor: shown as a plot


Place = tuple[str, str, str, str]  # set, split, task, direction


class Line(NamedTuple):
    """A model, a baseline beside one, or a baseline that is the same for all. `kind`: model, control or baseline."""

    label: str
    beside: str
    kind: str
    cells: dict[str, Row]
    marks: dict[str, str]


class Table(NamedTuple):
    """Metrics of one set, split, task and direction. `wide`: more metrics than fit, so they go down instead."""

    set: str
    split: str
    task: str
    direction: str
    metrics: list[str]
    lines: list[Line]
    any: Row
    wide: bool
    detail: bool


def tables(
    results: Results, labels: Sequence[str], controls: Sequence[str], differences: Sequence[Difference]
) -> list[Table]:
    """One table per set, split, task and direction, and one of its details where it has many."""
    marks = {(item.label, item.key): mark_of(item) for item in differences}
    groups: dict[Place, None] = {}
    for label in labels:
        groups |= {_place(row): None for row in results.entries[label] if not row["baseline"]}
    found = []
    for place in groups:
        lines = _lines(results, place, labels, controls, marks)
        metrics = list(dict.fromkeys(name for line in lines if not line.beside for name in line.cells))
        details = [name for name in metrics if _DETAIL.fullmatch(name)]
        plain = [name for name in metrics if name not in details]
        any_row = next(iter(lines[0].cells.values()))
        found += [
            Table(*place, own, _having(lines, own), any_row, len(own) > _MOST_COLUMNS, is_detail)
            for own, is_detail in ((plain, False), (details, True)) if own
        ]  # fmt: skip
    return found


def mark_of(item: Difference) -> str:
    """▲ better and ▼ worse after correction for many tests, △ and ▽ by the interval alone, else nothing."""
    return _mark(item.low, item.high, item.better, item.verdict)


def mark_of_axis(mark: Mapping[str, Any], better: str) -> str:
    """The same for a mean of several metrics (`profile.Mark` as a mapping)."""
    return _mark(mark["difference_low"], mark["difference_high"], better, mark["verdict"])


def _mark(low: float | None, high: float | None, better: str, verdict: str) -> str:
    if low is None or high is None or low <= 0 <= high or better == "neither":
        return ""
    if verdict in (HELPED, HURT):
        return "▲" if verdict == HELPED else "▼"
    return "△" if (low > 0) == (better == "higher") else "▽"


def _place(row: Row) -> Place:
    return row["set"], row["split"], row["task"], row["direction"]


def _lines(
    results: Results, place: Place, labels: Sequence[str], controls: Sequence[str],
    marks: Mapping[tuple[str, Key], str],
) -> list[Line]:  # fmt: skip
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for label in labels:
        for row in results.entries[label]:
            if _place(row) == place:
                cells.setdefault((label, row["baseline"]), {})[row["metric"]] = row
    shared, set_split_task = _shared(cells), place[:3]
    lines = []
    for label in sorted({label for label, _ in cells}, key=lambda one: (one in controls, list(labels).index(one))):
        kind = "control" if label in controls else "model"
        for (owner, baseline), found in cells.items():
            if owner == label and baseline not in shared:
                own_marks = {name: marks.get((label, (*set_split_task, name)), "") for name in found}
                lines.append(
                    Line(label, words(baseline), "baseline" if baseline else kind, found, {} if baseline else own_marks)
                )
    lines += [Line(words(name), words(name), "baseline", _of_any(cells, name), {}) for name in shared]
    return sorted(lines, key=lambda line: line.label == line.beside)


def _shared(cells: Mapping[tuple[str, str], dict[str, Row]]) -> list[str]:
    """Baselines that say the same beside every model: they read no model."""
    values: dict[str, list[Any]] = {}
    for (_, baseline), found in cells.items():
        if baseline:
            values.setdefault(baseline, []).append([(name, row["value"]) for name, row in found.items()])
    return [baseline for baseline, seen in values.items() if len(seen) > 1 and all(one == seen[0] for one in seen)]


def _of_any(cells: Mapping[tuple[str, str], dict[str, Row]], baseline: str) -> dict[str, Row]:
    return next(found for (_, own), found in cells.items() if own == baseline)


def _having(lines: Sequence[Line], metrics: Sequence[str]) -> list[Line]:
    return [line for line in lines if line.cells.keys() & set(metrics)]
