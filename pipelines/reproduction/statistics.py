"""What seeds say together: paired differences with t intervals, verdicts in words, rankings. Plain numbers in and out.

Two arms with the same seed began from the same weights and saw the same pairs in the same order as far as they can, so
that differences are paired by seed. Legend: S seeds.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from pipelines.methods.method import Expectation

Verdict = Literal["holds", "not shown", "contradicted"]
HOLDS: Verdict = "holds"
NOT_SHOWN: Verdict = "not shown"
CONTRADICTED: Verdict = "contradicted"
_CONFIDENCE = 0.95


class Spread(NamedTuple):
    """A mean over seeds and its 95 % t interval; no interval below two seeds, no mean without one."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def spread_of(values_S: Sequence[float | None]) -> Spread:
    """Mean and 95 % interval of what is known, by Student's t with n - 1 degrees of freedom."""
    from scipy.stats import t

    known = [value for value in values_S if value is not None]
    if not known:
        return Spread(None, None, None, 0)
    n, mean = len(known), math.fsum(known) / len(known)
    if n < 2:
        return Spread(mean, None, None, n)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    half = float(t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return Spread(mean, mean - half, mean + half, n)


def differences_of(left_S: Sequence[float | None], right_S: Sequence[float | None]) -> tuple[float | None, ...]:
    """Left minus right, seed by seed; None where one of the two is not known."""
    pairs = zip(left_S, right_S, strict=True)
    return tuple(None if left is None or right is None else left - right for left, right in pairs)


def verdict_of(spread: Spread, expect: Expectation, margin: float | None = None) -> Verdict:
    """Whether the whole interval lies where it is expected, wholly elsewhere, or neither.

    `equal` expects it between -margin and +margin: that two arms are alike is shown, never assumed.
    """
    low, high = spread.low, spread.high
    if low is None or high is None:
        return NOT_SHOWN
    if expect == "equal":
        assert margin is not None, "the experiment is checked before it runs"
        inside, outside = -margin <= low and high <= margin, low > margin or high < -margin
    else:
        inside, outside = (low > 0, high < 0) if expect == "above" else (high < 0, low > 0)
    return HOLDS if inside else CONTRADICTED if outside else NOT_SHOWN


def count_expected(differences_S: Sequence[float | None], expect: Expectation, margin: float | None = None) -> int:
    """Number of seeds whose difference is as expected; a difference of zero has no direction."""
    is_expected: dict[Expectation, Callable[[float], bool]] = {
        "above": lambda value: value > 0,
        "below": lambda value: value < 0,
        "equal": lambda value: abs(value) <= (margin or 0.0),
    }
    return sum(is_expected[expect](value) for value in differences_S if value is not None)


def kendall_tau(values: Sequence[float]) -> float:
    """Kendall's tau-a of values against the order from the highest to the lowest; ties count for neither side."""
    pairs = list(combinations(values, 2))
    return sum((first > second) - (first < second) for first, second in pairs) / len(pairs)
