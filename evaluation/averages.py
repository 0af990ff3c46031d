"""Averages of a suite's main numbers, as DataComp and CLIP_benchmark give them, with an interval.

Every number counts the same, however many samples are behind it. Sets are resampled apart from each other, so that the
interval is that of a mean of independent numbers. Legend: N numbers, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import EvaluationError
from evaluation.results import Key, Results
from evaluation.rows import Doubles

_TAIL = 0.025
Number = Sequence[Key]


def averages(results: Results, wanted: Mapping[str, Sequence[Number]]) -> list[dict[str, Any]]:
    """Per name and label: value, low, high over the numbers that the label has, and how many of all they are.

    A label that lacks a number has another average than one that has it: `n` and `of` say so.

    Raises:
        EvaluationError: an average would mix units, or numbers that are better high with others that are better low.
    """
    for name, numbers in wanted.items():
        _require_alike(name, results, [key for number in numbers for key in number])
    return [
        {"average": name, "label": label, "of": len(numbers), **_average(results, label, numbers)}
        for name, numbers in wanted.items() for label in results.rows
    ]  # fmt: skip


def _require_alike(name: str, results: Results, keys: Sequence[Key]) -> None:
    found: dict[tuple[str, str], Key] = {}
    for rows in results.rows.values():
        found |= {(rows[key]["unit"], rows[key]["better"]): key for key in keys if key in rows}
    if len(found) > 1:
        kinds = " and ".join(f"{'/'.join(key)} ({unit}, {better})" for (unit, better), key in sorted(found.items()))
        raise EvaluationError(f"averages.{name}: {kinds}: give unlike numbers averages of their own")


def _average(results: Results, label: str, numbers: Sequence[Number]) -> dict[str, Any]:
    rows = results.rows[label]
    known = [number for number in numbers if all(key in rows for key in number)]
    if not known:
        return {"n": 0, "value": None, "low": None, "high": None, "chance": None}
    values_N = [np.mean([rows[key]["value"] for key in number]) for number in known]
    chances_N = [rows[key]["chance"] for number in known for key in number]
    low, high = _interval(_draws(results, label, known))
    means = [np.mean([rows[key]["chance"] for key in number]) for number in known] if None not in chances_N else []
    return {
        "n": len(known),
        "value": float(np.mean(values_N)),
        "low": low,
        "high": high,
        "chance": float(np.mean(means)) if means else None,
    }


def _draws(results: Results, label: str, numbers: Sequence[Number]) -> Doubles:
    """The average of every resample (R,); each number a roll apart, because equally many clusters meet equal draws."""
    own = [np.mean([results.draws(label, key) for key in number], axis=0) for number in numbers]
    return np.asarray(np.mean([np.roll(draws_R, at) for at, draws_R in enumerate(own)], axis=0))


def _interval(draws_R: Doubles) -> tuple[float | None, float | None]:
    if not np.isfinite(draws_R).any():
        return None, None  # a set of one cluster has no interval, so neither has the average
    low, high = np.nanquantile(draws_R, (_TAIL, 1 - _TAIL))
    return float(low), float(high)
