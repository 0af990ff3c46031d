"""Averages of main numbers: hand-computed values, what is missing, and an interval of independent sets."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from data.errors import EvaluationError
from evaluation.averages import averages
from evaluation.results import Key, Results


def key(set_name: str, metric: str = "top1") -> Key:
    return set_name, "test", "zero_shot", metric


def kind(of: Key) -> dict[str, str]:
    """Unit and direction of a metric by its name."""
    return {"unit": "points", "better": "lower"} if of[3] == "drop" else {"unit": "fraction", "better": "higher"}


def results(values: dict[str, dict[Key, float]], draws: dict[Key, Any], chance: float | None = 0.1) -> Results:
    """Results of hand-made numbers; every label meets the same draws."""
    rows = {
        label: {k: {"value": v, "chance": chance, **kind(k)} for k, v in own.items()} for label, own in values.items()
    }
    made = SimpleNamespace(rows=rows, draws=lambda label, wanted: np.asarray(draws[wanted], np.float64))
    return cast(Results, made)


def test_every_set_counts_once_whatever_its_metrics() -> None:
    numbers = {key("a"): 0.5, key("b", "i2t"): 0.1, key("b", "t2i"): 0.3}
    found = averages(results({"m": numbers}, {k: [v, v] for k, v in numbers.items()}),
                     {"all": ((key("a"),), (key("b", "i2t"), key("b", "t2i")))})  # fmt: skip
    assert len(found) == 1
    assert found[0]["value"] == pytest.approx((0.5 + 0.2) / 2)
    assert (found[0]["n"], found[0]["of"], found[0]["chance"]) == (2, 2, pytest.approx(0.1))


def test_a_label_that_lacks_a_number_says_so() -> None:
    both = {key("a"): 0.5, key("b"): 0.1}
    found = averages(results({"one": both, "two": {key("a"): 0.5}, "none": {}}, {k: [v] * 3 for k, v in both.items()}),
                     {"all": ((key("a"),), (key("b"),))})  # fmt: skip
    assert [(row["label"], row["n"], row["of"], row["value"]) for row in found] == [
        ("one", 2, 2, pytest.approx(0.3)), ("two", 1, 2, 0.5), ("none", 0, 2, None),
    ]  # fmt: skip


def test_the_interval_is_that_of_independent_sets() -> None:
    """Equal draws of two sets are no evidence that the sets move together: their mean has 1/2 of the variance."""
    draws = np.random.default_rng(0).normal(0.5, 0.1, 4000)
    numbers = {key("a"): 0.5, key("b"): 0.5}
    (row,) = averages(results({"m": numbers}, dict.fromkeys(numbers, draws)), {"all": ((key("a"),), (key("b"),))})
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(2), rel=0.06)


def test_a_set_without_an_interval_leaves_the_average_without_one() -> None:
    numbers = {key("a"): 0.5, key("b"): 0.1}
    draws = {key("a"): [0.4, 0.6], key("b"): [np.nan, np.nan]}
    (row,) = averages(results({"m": numbers}, draws, None), {"all": ((key("a"),), (key("b"),))})
    assert (row["value"], row["low"], row["high"], row["chance"]) == (pytest.approx(0.3), None, None, None)


def test_unlike_numbers_have_no_average() -> None:
    numbers = {key("a"): 0.5, key("b", "drop"): 0.1}
    made = results({"m": numbers}, {k: [v] * 3 for k, v in numbers.items()})
    with pytest.raises(EvaluationError, match=r"averages\.all: a/test/zero_shot/top1 \(fraction, higher\) and b/test"):
        averages(made, {"all": ((key("a"),), (key("b", "drop"),))})
