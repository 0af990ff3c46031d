"""What a model is good at: an average per axis, of named metrics of one unit that every model has.

Legend: R resamples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.comparison import holm, wald_test
from evaluation.results import Key, Results, Row, interval_of, key_of, main_metrics, verdict_of
from evaluation.rows import Doubles

_AXIS_OF = {
    "zero_shot": "zero-shot accuracy", "probe": "probes", "retrieval": "retrieval",
    "image_retrieval": "image retrieval", "robustness": "robustness",
    "natural_shift": "robustness", "visual_factors": "visual factors", "caption_selection": "composition",
    "paired_selection": "composition", "association": "composition", "concept_association": "concept association",
    "calibration": "calibration", "out_of_distribution": "out of distribution", "geometry": "geometry",
    "dense_probe": "dense",
}  # fmt: skip


class Mark(NamedTuple):
    """A model's place on an axis; against what it is compared with, where it is."""

    value: float
    low: float | None
    high: float | None
    against: str = ""
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_corrected: float | None = None
    verdict: str = ""


class AxisMean(NamedTuple):
    """One axis: the mean of `metrics` per label. `left_out`: metrics of another unit, or that some label has not."""

    name: str
    unit: str
    better: str
    chance: float | None
    metrics: list[Key]
    left_out: list[Key]
    marks: dict[str, Mark]


def axes(results: Results, labels: Sequence[str], compare: Mapping[str, str]) -> list[AxisMean]:
    """Averages per axis over the main metric of every set, split, task and direction."""
    mains = main_metrics(_once([row for label in labels for row in results.rows[label].values()]))
    groups: dict[str, list[Row]] = {}
    for row in mains:
        groups.setdefault(_AXIS_OF.get(str(row["kind"]), str(row["kind"])), []).append(row)
    order = [name for name in dict.fromkeys(_AXIS_OF.values()) if name in groups]
    found = [_axis(name, groups[name], results, labels) for name in [*order, *(groups.keys() - set(order))]]
    return _compared([axis for axis in found if axis.metrics], results, compare)


def _once(rows: Sequence[Row]) -> list[Row]:
    return list({key_of(row): row for row in reversed(rows)}.values())[::-1]


def _axis(name: str, rows: list[Row], results: Results, labels: Sequence[str]) -> AxisMean:
    kinds = Counter((row["unit"], row["better"]) for row in rows)
    unit, better = max(kinds, key=lambda kind: (kinds[kind], kind[0] == "fraction"))
    # geometry's numbers have no unit in common: only those of one name are averaged
    same_name = rows[0]["metric"] if unit != "fraction" else None
    fits = [
        row for row in rows
        if (row["unit"], row["better"]) == (unit, better) and same_name in (None, row["metric"])
        and all(key_of(row) in results.rows[label] for label in labels)
    ]  # fmt: skip
    keys = [key_of(row) for row in fits]
    chances = [row["chance"] for row in fits]
    chance = float(np.mean(chances)) if chances and None not in chances else None
    left = [key_of(row) for row in rows if key_of(row) not in keys]
    marks = {label: _mark(results, label, keys) for label in labels} if keys else {}
    return AxisMean(name, unit, better, chance, keys, left, marks)


def _mark(results: Results, label: str, keys: list[Key]) -> Mark:
    value = float(np.mean([results.rows[label][key]["value"] for key in keys]))
    if len(keys) == 1:
        row = results.rows[label][keys[0]]
        return Mark(value, row["low"], row["high"])
    low, high = interval_of(_mean_draws(results, label, keys))
    return Mark(value, low, high)


def _mean_draws(results: Results, label: str, keys: list[Key]) -> Doubles:
    return np.asarray(np.mean([results.draws(label, key) for key in keys], axis=0))


def _compared(found: list[AxisMean], results: Results, compare: Mapping[str, str]) -> list[AxisMean]:
    """With paired differences; their p values are corrected over all axes and comparisons together."""
    tests: list[tuple[AxisMean, str, Mark, float]] = []
    for axis in found:
        for label, against in compare.items():
            both = label in axis.marks and against in axis.marks
            if both and all(results.comparable(label, against, key) for key in axis.metrics):
                draws_R = _mean_draws(results, label, axis.metrics) - _mean_draws(results, against, axis.metrics)
                difference = axis.marks[label].value - axis.marks[against].value
                test = wald_test(difference, draws_R)
                if test:
                    low, high = interval_of(draws_R)
                    mark = axis.marks[label]._replace(
                        against=against, difference=difference, difference_low=low, difference_high=high
                    )
                    tests.append((axis, label, mark, test.p))
    for (axis, label, mark, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        verdict = verdict_of(mark.difference_low, mark.difference_high, axis.better, p)
        axis.marks[label] = mark._replace(p_corrected=p, verdict=verdict)
    return found
