"""Where a value lies on a drawn axis, in percent of its width: the page's dot-and-interval plots are plain HTML."""

import math
from collections.abc import Iterable
from typing import NamedTuple

_STEPS = (1, 2, 2.5, 5, 10)


class Axis(NamedTuple):
    """A linear axis with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Place of a value in percent of the width, held inside the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 3)


def axis_over(values: Iterable[float], intervals: int = 5) -> Axis:
    """An axis that holds 0 and all values, with about so many intervals between round ticks."""
    values = [0.0, *values]
    low, high = min(values), max(values)
    step = _round_step((high - low or 1.0) / intervals)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return Axis(first * step, last * step, tuple(round(number * step, 12) for number in range(first, last + 1)))


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(step for step in _STEPS if step * power >= rough * 0.999)
