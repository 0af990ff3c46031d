"""A page over many runs: table, headline numbers, losses, what the recipes have otherwise, sweeps. Plain values in.

Who calls it has read the runs (they are above this package); here they are only drawn and written down.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from evaluation.axis import Axis, axis_over
from evaluation.numbers import interval, measured
from evaluation.plots import overlay
from evaluation.plots.style import SERIES
from evaluation.report import environment

_MOST_DOTS = 40
_MOST_FIELDS = 40
_MOST_COLUMNS = 8  # of a parallel view: more than a screen can hold
_MISSING = object()


class RunRow(NamedTuple):
    """One run. `links`: title -> relative address. `number`: evaluation of its headline, None without one."""

    name: str
    state: str
    note: str
    started: float
    when: str
    seconds: float | None
    took: str
    recipe: str
    group: str | None
    stages: str
    number: Mapping[str, Any] | None
    fields: Mapping[str, Any]
    links: Mapping[str, str]


class Training(NamedTuple):
    """Logs of one stage: label -> lines. A label names all runs that share the artifact."""

    stage: str
    logs: Mapping[str, Sequence[Mapping[str, Any]]]


def render(
    title: str, place: str, runs: Sequence[RunRow], unreadable: Sequence[tuple[str, str]], trainings: Iterable[Training]
) -> str:
    """The page as HTML; whatever comes from a run is escaped."""
    fields, left_out = varying(runs)
    page = {
        "title": title, "place": place, "runs": runs, "unreadable": unreadable, "headlines": headlines(runs),
        "losses": [_loss(one) for one in trainings], "fields": fields, "fields_left_out": left_out,
        "sweeps": sweeps(runs), "has_groups": any(run.group for run in runs),
        "linked": [run for run in runs if run.links], "states": sorted({run.state for run in runs}),
    }  # fmt: skip
    return environment().get_template("runs.html.j2").render(page)


class Dots(NamedTuple):
    """Runs with the same headline metric, best first."""

    metric: str
    unit: str
    better: str
    axis: Axis
    rows: list[tuple[RunRow, Mapping[str, Any]]]
    left_out: int


def headlines(runs: Sequence[RunRow]) -> list[Dots]:
    """Dot plots of headline numbers, one for each metric that at least one run has."""
    grouped: dict[tuple[str, str, str], list[tuple[RunRow, Mapping[str, Any]]]] = {}
    for run in runs:
        if run.number is not None and run.number["value"] is not None:
            key = (str(run.number["metric"]), str(run.number["unit"]), str(run.number["better"]))
            grouped.setdefault(key, []).append((run, run.number))
    found = []
    for (metric, unit, better), rows in grouped.items():
        rows.sort(key=lambda pair: pair[1]["value"], reverse=better != "lower")
        shown = rows[:_MOST_DOTS]
        bounds = [number[name] for _, number in shown for name in ("low", "high", "value", "chance")]
        axis = axis_over(float(bound) for bound in bounds if bound is not None)
        found.append(Dots(metric, unit, better, axis, shown, len(rows) - len(shown)))
    # what was measured with an interval before losses, what many runs have before what few have
    return sorted(found, key=lambda dots: (dots.rows[0][1]["low"] is None, -len(dots.rows)))


def _loss(training: Training) -> dict[str, Any]:
    labels = list(training.logs)
    coloured = labels[: len(SERIES)]
    curves = [
        overlay.Curve(label, coloured.index(label) if label in coloured else None, lines)
        for label, lines in training.logs.items()
    ]
    legend = [{"label": label, "colour": number + 1} for number, label in enumerate(coloured)]
    return {
        "stage": training.stage, "plot": overlay.loss_curves(curves, training.stage), "legend": legend,
        "grey": len(labels) - len(coloured),
    }  # fmt: skip


def varying(runs: Sequence[RunRow]) -> tuple[dict[str, list[Any]], int]:
    """(field -> value of every run, None where it has no such field; how many more fields vary).

    A field that some runs lack because they lack its whole stage varies too.
    """
    paths = list(dict.fromkeys(path for run in runs for path in run.fields))
    found: dict[str, list[Any]] = {}
    for path in paths:
        values = [run.fields.get(path, _MISSING) for run in runs]
        if any(value != values[0] or type(value) is not type(values[0]) for value in values[1:]):
            found[path] = [None if value is _MISSING else value for value in values]
    return dict(list(found.items())[:_MOST_FIELDS]), max(0, len(found) - _MOST_FIELDS)


def sweeps(runs: Sequence[RunRow]) -> list[dict[str, Any]]:
    """A parallel view for each group with at least two trials that have a number."""
    groups: dict[str, list[RunRow]] = {}
    for run in runs:
        if run.group and run.number is not None and run.number["value"] is not None:
            groups.setdefault(run.group, []).append(run)
    return [_sweep(name, trials) for name, trials in groups.items() if len(trials) > 1]


def _sweep(name: str, trials: list[RunRow]) -> dict[str, Any]:
    numbers = [run.number for run in trials if run.number is not None]
    values = [float(number["value"]) for number in numbers]
    lower = numbers[0]["better"] == "lower"
    best = (min if lower else max)(range(len(trials)), key=lambda trial: values[trial])
    settings, _ = varying(trials)
    shown = {path: own for path, own in settings.items() if not any(isinstance(one, list | dict) for one in own)}
    columns = [overlay.Column(path.split(".")[-1], own) for path, own in list(shown.items())[: _MOST_COLUMNS - 1]]
    unit, metric = str(numbers[0]["unit"]), str(numbers[0]["metric"])
    scale = 100 if unit == "fraction" else 1
    result = overlay.Column(f"{metric.split(' ')[-1]}{' (%)' if scale > 1 else ''}", [scale * one for one in values])
    plot: Markup | None = None
    if columns:
        plot = overlay.parallel([*columns, result], best, f"Trials of {name} across settings to {metric}")
    return {
        "name": name, "trials": len(trials), "metric": metric, "best": trials[best], "plot": plot,
        "value": measured(values[best], unit), "lower": lower,
        "interval": interval(numbers[best]["low"], numbers[best]["high"], unit),
        "paths": list(shown)[: _MOST_COLUMNS - 1],
    }  # fmt: skip
