"""What a report draws of the models: robustness and few-shot curves, reliability, OOD scores, both modalities, factors.

A part is empty where no evaluation has its task.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.plots import models
from evaluation.plots.style import SERIES
from evaluation.results import Results, Row, interval_of, key_of
from evaluation.words import direction, metric_label, words

Section = dict[str, Any]
Where = tuple[str, str, str]  # set, split, task
_SEVERITY = re.compile(r"(.+)@(\d+)")
_SHOTS = re.compile(r"top1_at_(\d+)")
_FACTOR = re.compile(r"(.+?)=(.+)_(top1|gap)")


class Models(NamedTuple):
    """The labels of a report in order, each with its place in the legend."""

    numbers: dict[str, int]
    controls: frozenset[str]

    @property
    def legend(self) -> list[Section]:
        """Label, place among the colours and whether it is a control."""
        return [
            {"label": label, "colour": number % len(SERIES) + 1, "control": label in self.controls}
            for label, number in self.numbers.items()
        ]


def models_of(labels: Sequence[str], controls: Sequence[str]) -> Models:
    """Numbers by label; controls do not use up the colours of the others."""
    own, grey = [one for one in labels if one not in controls], [one for one in labels if one in controls]
    places = {label: number for group in (own, grey) for number, label in enumerate(group)}
    return Models({label: places[label] for label in labels}, frozenset(controls))


def tasks(results: Results, kind: str) -> list[Where]:
    """Set, split and task of every task of a kind that any label has."""
    rows = (row for own in results.rows.values() for row in own.values() if row["kind"] == kind)
    return list(dict.fromkeys((row["set"], row["split"], row["task"]) for row in rows))


def title(where: Where) -> str:
    """Where a number comes from, as words."""
    return " · ".join(map(words, where))


def robustness(results: Results, names: Models) -> list[Section]:
    """Per task: top-1 over severities, for all kinds of damage together and for each kind."""
    found = []
    for where in tasks(results, "robustness"):
        kinds = _by_kind(results, where)
        clean = {label: results.rows[label].get((*where, "clean_top1")) for label in names.numbers}
        panels = [
            {"name": words(kind), "plot": _severity_curves(kind, own, clean, names, small=True)}
            for kind, own in kinds.items()
        ]
        if len(kinds) > 1:
            panels = [{"name": "all kinds", "plot": _all_kinds(results, kinds, clean, names)}, *panels]
        if panels:
            found.append({"where": title(where), "panels": panels})
    return found


def _by_kind(results: Results, where: Where) -> dict[str, dict[str, dict[int, Row]]]:
    """Kind of damage -> label -> severity -> entry."""
    kinds: dict[str, dict[str, dict[int, Row]]] = {}
    for label, row in _rows(results, where):
        severity = _SEVERITY.fullmatch(row["metric"])
        if severity:
            kinds.setdefault(severity[1], {}).setdefault(label, {})[int(severity[2])] = row
    return kinds


def _severity_curves(
    kind: str, own: Mapping[str, Mapping[int, Row]], clean: Mapping[str, Row | None], names: Models, small: bool
) -> Any:
    series = []
    for label, severities in own.items():
        start = clean.get(label)
        points = ({0: start} if start else {}) | dict(sorted(severities.items()))
        series.append(_series(label, names, points))
    places = sorted({int(x) for one in series for x in one.x})
    chance = next(row["chance"] for severities in own.values() for row in severities.values())
    description = f"Top-1 over the severity of {words(kind)}, by model"
    return models.curves(
        series, "severity (0: clean)", description, {x: str(x) for x in places}, chance, small=small
    )  # fmt: skip


def _all_kinds(
    results: Results, kinds: Mapping[str, Mapping[str, Mapping[int, Row]]], clean: Mapping[str, Row | None],
    names: Models,
) -> Any:  # fmt: skip
    """Mean over the kinds at each severity that all of them have."""
    labels = list(dict.fromkeys(label for own in kinds.values() for label in own))
    means: dict[str, dict[int, Row]] = {}
    for label in labels:
        own = [kinds[kind][label] for kind in kinds if label in kinds[kind]]
        for severity in sorted(set.intersection(*(set(one) for one in own))):
            rows = [one[severity] for one in own]
            means.setdefault(label, {})[severity] = _mean_row(results, label, rows)
    return _severity_curves("all kinds", means, clean, names, small=True)


def _mean_row(results: Results, label: str, rows: Sequence[Row]) -> Row:
    value = float(np.mean([row["value"] for row in rows]))
    draws_R = np.mean([results.draws(label, key_of(row)) for row in rows], axis=0)
    low, high = interval_of(draws_R)
    return rows[0] | {"value": value, "low": value if low is None else low, "high": value if high is None else high}


def few_shot(results: Results, names: Models) -> list[Section]:
    """Per task: top-1 over the pairs a class that a head was fitted on, beside zero-shot."""
    found = []
    for where in tasks(results, "probe"):
        points: dict[str, dict[int, Row]] = {}
        for label, row in _rows(results, where):
            shots = _SHOTS.fullmatch(row["metric"])
            if shots:
                points.setdefault(label, {})[int(shots[1])] = row
        if any(len(own) > 1 for own in points.values()):
            found.append({"where": title(where), "plot": _shot_curves(where, points, results, names)})
    return found


def _shot_curves(where: Where, points: Mapping[str, dict[int, Row]], results: Results, names: Models) -> Any:
    # shots double from one to the next: log2 sets them evenly apart
    series = [
        _series(label, names, {float(np.log2(k)): row for k, row in sorted(own.items())})
        for label, own in points.items()
    ]
    shots = sorted({k for own in points.values() for k in own})
    chance = next(row["chance"] for own in points.values() for row in own.values())
    plain = {label: _zero_shot(results, label, where) for label in points}
    lines = {f"zero-shot, {label}": value for label, value in plain.items() if value is not None}
    references = lines if len(points) == 1 else {}
    description = f"Top-1 of {title(where)} over shots a class, by model"
    ticks = {float(np.log2(k)): str(k) for k in shots}
    return models.curves(series, "pairs a class", description, ticks, chance, references)


def _zero_shot(results: Results, label: str, where: Where) -> float | None:
    for row in results.entries[label]:
        if (row["set"], row["split"], row["task"], row["baseline"], row["metric"]) == (*where, "zero_shot", "top1"):
            return float(row["value"])
    return None


def _series(label: str, names: Models, points: Mapping[Any, Row]) -> models.Series:
    columns = ([float(row[name]) for row in points.values()] for name in ("value", "low", "high"))
    return models.Series(label, names.numbers[label], label in names.controls, [float(x) for x in points], *columns)


def reliability(results: Results, names: Models) -> list[Section]:
    """Per task: a reliability diagram a model, before and after the fitted temperature, with its ECE."""
    found = []
    for where in tasks(results, "calibration"):
        figures = []
        for label, extra in _extras(results, where, names):
            bins, after = extra.get("bins"), extra.get("bins_scaled") or []
            if bins:
                rows = {row["metric"]: row for own, row in _rows(results, where) if own == label}
                figures.append({
                    "label": label,
                    "plot": models.reliability(bins, f"Reliability of {label}, {title(where)}", after),
                    "rows": [rows[name] for name in ("ece", "ece_scaled") if name in rows],
                    "chosen": next(iter(rows.values()))["chosen"] if rows else {},
                    "expected": (extra.get("expected_ece") or {}).get("ece"),
                })  # fmt: skip
        if figures:
            found.append({"where": title(where), "figures": figures})
    return found


def out_of_distribution(results: Results, names: Models) -> list[Section]:
    """Per task and other set: a histogram of each model's main score of its own and the others' pictures."""
    found = []
    for where in tasks(results, "out_of_distribution"):
        for label, extra in _extras(results, where, names):
            if label in names.controls:
                continue
            mains = [row["metric"] for own, row in _rows(results, where) if own == label]
            histograms = extra.get("histograms") or {}
            shown = next((one for metric in mains for one in histograms if metric.endswith(f"_auroc_{one}")), None)
            for score in [shown] if shown else []:
                own = histograms[score]
                plot = models.histograms(
                    own["edges"], own["in"], own["out"], f"Scores of {score}, {label}, {title(where)}"
                )
                where_name = f"{title(where)}{' · ' + words(extra['direction']) if extra['direction'] else ''}"
                found.append({"where": where_name, "label": label, "score": metric_label(score), "plot": plot})
    return found


def modality_gap(results: Results, names: Models) -> list[Section]:
    """Per task: pictures and captions in the plane of their first two principal components, a model a panel."""
    found = []
    for where in tasks(results, "geometry"):
        figures = []
        for label, extra in _extras(results, where, names):
            points = extra.get("projection")
            if points:
                rows = [row for own, row in _rows(results, where) if own == label]
                plot = models.modalities(points["images"], points["texts"], f"Pictures and captions of {label}")
                figures.append({"label": label, "plot": plot, "rows": rows})
        if figures:
            found.append({"where": title(where), "figures": figures})
    return found


def factors(results: Results) -> list[Section]:
    """Per task and field: top-1 of each value with its interval, and its gap to all other values, by model."""
    found = []
    for where in tasks(results, "visual_factors"):
        fields: dict[str, dict[str, dict[str, dict[str, Row]]]] = {}
        for label, row in _rows(results, where):
            factor = _FACTOR.fullmatch(row["metric"])
            if factor:
                fields.setdefault(factor[1], {}).setdefault(factor[2], {}).setdefault(label, {})[factor[3]] = row
        for field, values in fields.items():
            counts = _factor_counts(results, where, field)
            found.append({"where": title(where), "field": field, "values": values, "counts": counts})
    return found


def _factor_counts(results: Results, where: Where, field: str) -> dict[str, int]:
    for extras in results.extras.values():
        for extra in extras.get("/".join(where), {}).values():
            table = extra.get("factors", {}).get(field)
            if table:
                return {value: own["n"] for value, own in table.items()}
    return {}


def chosen(results: Results) -> list[Section]:
    """Every hyper-parameter that was chosen, by task and label, with the split that chose it."""
    found = []
    for label, entries in results.entries.items():
        for row in {row["file"]: row for row in entries if row["chosen"]}.values():
            own = {name: value for name, value in row["chosen"].items() if name != "chosen_on"}
            where = title((row["set"], row["split"], row["task"]))
            beside = words(row["baseline"]) or (direction(row["direction"]) if row["direction"] else "")
            on = row["chosen"].get("chosen_on", "")
            found.append({"where": where, "label": label, "beside": beside, "values": own, "on": on})
    return sorted(found, key=lambda one: one["where"])


def _rows(results: Results, where: Where) -> Iterator[tuple[str, Row]]:
    for label, own in results.rows.items():
        for row in own.values():
            if (row["set"], row["split"], row["task"]) == where:
                yield label, row


def _extras(results: Results, where: Where, names: Models) -> Iterator[tuple[str, Section]]:
    for label in names.numbers:
        for way, extra in results.extras[label].get("/".join(where), {}).items():
            yield label, {**extra, "direction": way}
