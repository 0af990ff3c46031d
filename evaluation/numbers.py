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


def number(value: float) -> str:
    """A number without a unit, in three digits: 0.412, 12.3."""
    return f"{value:.3g}".replace("-", MINUS) if abs(value) < 1000 else count(value)


def measured(value: float | None, unit: str) -> str:
    """A value of a metric in its unit; a dash where it has no meaning."""
    if value is None:
        return "–"
    if unit == "points":
        return difference(value, unit)
    return {"fraction": percent, "rank": rank}.get(unit, number)(value)


def interval(low: float | None, high: float | None, unit: str) -> str:
    """A 95 % interval without repeating the unit: 61.7-64.8."""
    if low is None or high is None:
        return "no interval"
    if unit == "points":
        return difference_interval(low, high, unit)
    if unit != "fraction":
        write = rank if unit == "rank" else number
        return f"{write(low)}{' to ' if low < 0 else '–'}{write(high)}"
    digits = 1 if 100 * high >= 1 else 2
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def difference(value: float | None, unit: str) -> str:
    """A signed difference: +3.1 points, +2 ranks, +0.12."""
    if value is None:
        return "–"
    if unit in ("fraction", "points"):
        return f"{100 * value:+.1f}".replace("-", MINUS)
    if unit == "rank":
        return f"{value:+,.0f}".replace("-", MINUS)
    return f"{value:+.3g}".replace("-", MINUS)


def difference_interval(low: float | None, high: float | None, unit: str) -> str:
    """The interval of a difference, both ends signed."""
    return "no interval" if low is None else f"{difference(low, unit)} to {difference(high, unit)}"


def probability(p: float | None) -> str:
    """A p value: 0.03, < 0.001."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


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
