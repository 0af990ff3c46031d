"""How numbers are written for people: as many digits as they deserve, and always the same way."""

from typing import Any

MINUS = "\u2212"


def percent(fraction: float) -> str:
    """A share in percent: 63.2 %, 0.28 %, 0.03 %."""
    value = 100 * fraction
    digits = 1 if abs(value) >= 1 or value == 0 else 2
    return f"{value:.{digits}f} %".replace("-", MINUS)


def rank(value: float) -> str:
    """A rank: 3, 1,204."""
    return count(value)


def count(value: float) -> str:
    """A count with thousands apart: 24,223."""
    return f"{value:,.0f}".replace("-", MINUS)


def measured(value: float, unit: str) -> str:
    """A value of a metric in its unit."""
    return percent(value) if unit == "fraction" else rank(value)


def interval(low: float, high: float, unit: str) -> str:
    """A 95 % interval without repeating the unit: 61.7-64.8."""
    if unit != "fraction":
        return f"{rank(low)}–{rank(high)}"
    digits = 1 if 100 * high >= 1 else 2
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def difference(value: float, unit: str) -> str:
    """A signed difference: +3.1 points, or +2 ranks."""
    if unit == "fraction":
        return f"{100 * value:+.1f}".replace("-", MINUS)
    return f"{value:+,.0f}".replace("-", MINUS)


def difference_interval(low: float, high: float, unit: str) -> str:
    """The interval of a difference, both ends signed."""
    return f"{difference(low, unit)} to {difference(high, unit)}"


def size(value: float) -> str:
    """A large count in three digits: 8.42 M."""
    for unit in ("", " K", " M", " B"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def short(value: Any) -> str:
    """Any value of a record in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else count(value)
    if isinstance(value, list | tuple):
        return ", ".join(short(item) for item in value)
    return str(value)
