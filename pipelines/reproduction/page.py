"""A card as one self-contained page: what was claimed, what was measured, every seed as a dot."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.lines import duration
from evaluation import numbers
from evaluation.axis import Axis, axis_over
from pipelines.methods.method import Method
from pipelines.reproduction.card import Card, ComparisonOfCard, MeasureOfCard
from pipelines.reproduction.judgement import expectation_text, plus_minus
from pipelines.reproduction.statistics import CONTRADICTED, HOLDS

_TEMPLATE = "card.html.j2"
_STYLES = Path(__file__).parents[2] / "evaluation" / "templates"
_BEYOND = 0.6  # of the dots' range: an interval that reaches further is cut at the edge, or two seeds hide the dots
_LEAST_RANGE = 0.02  # of the largest value: below, equal arms would look far apart


class Strip(NamedTuple):
    """One row of a dot plot, in percent of its width. `tone`: method, parent, control or start."""

    dots: list[float]
    mean: float | None
    span: tuple[float, float] | None
    tone: str


def render(method: Method, card: Card) -> str:
    """The page; whatever comes from a method or a card is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, _STYLES]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"measured": numbers.measured, "size": numbers.size, "count": numbers.count}
    environment.globals |= {
        "interval": numbers.interval, "difference_interval": numbers.difference_interval, "tick": _tick,
        "plus_minus": plus_minus, "expectation": expectation_text, "duration": duration,
    }  # fmt: skip
    return environment.get_template(_TEMPLATE).render(
        method=method, card=card, plots={name: plot(card, one) for name, one in card.measures.items()},
        changes=[change(card, one) for one in card.comparisons],
        costs=cost_rows(card), tones={HOLDS: "good", CONTRADICTED: "bad"},
    )  # fmt: skip


def plot(card: Card, measure: MeasureOfCard) -> dict[str, Any]:
    """Axis and rows of a measure: an arm a row, a seed a dot."""
    axis = axis_around(value for own in measure.values.values() for value in own if value is not None)
    rows = {
        arm: _strip(axis, own, measure.means[arm], card.arms[arm].role) for arm, own in measure.values.items()
    }  # fmt: skip
    chance = measure.chance if measure.chance is not None and axis.low <= measure.chance <= axis.high else None
    ticks = [axis.at(tick) for tick in axis.ticks]
    return {"axis": axis, "ticks": ticks, "rows": rows, "chance": None if chance is None else axis.at(chance)}


def change(card: Card, comparison: ComparisonOfCard) -> dict[str, Any]:
    """A comparison's seeds around zero, and the band in which `equal` expects them."""
    known = [abs(value) for value in (*comparison.differences, comparison.margin) if value is not None]
    span = 1.25 * max([*known, 1e-12])
    axis = Axis(-span, span, (0.0,))
    band = (axis.at(-comparison.margin), axis.at(comparison.margin)) if comparison.margin is not None else None
    strip = _strip(axis, comparison.differences, comparison, card.arms[comparison.left].role)
    return {"strip": strip, "band": band, "unit": card.measures[comparison.measure].unit}


def _strip(axis: Axis, values: Iterable[float | None], mean: Any, tone: str) -> Strip:
    dots = [axis.at(value) for value in values if value is not None]
    span = None if mean.low is None else (axis.at(mean.low), axis.at(mean.high))
    return Strip(dots, None if mean.mean is None else axis.at(mean.mean), span, tone)


def axis_around(values: Iterable[float]) -> Axis:
    """An axis around these values, with room for intervals; it holds zero only where that is near."""
    known = list(values) or [0.0]
    low, high = min(known), max(known)
    room = _BEYOND * max(high - low, _LEAST_RANGE * max(abs(low), abs(high), 1e-9))
    ticks = axis_over([high - low + 2 * room]).ticks
    step = ticks[1] - ticks[0]
    first, last = math.ceil((low - room) / step), math.floor((high + room) / step)
    return Axis(low - room, high + room, tuple(round(number * step, 12) for number in range(first, last + 1)))


def _tick(value: float, unit: str) -> str:
    text = f"{100 * value:.4g} %" if unit == "fraction" else f"{value:,.4g}"
    return text.replace("-", numbers.MINUS)


def cost_rows(card: Card) -> Mapping[str, list[str]]:
    """Title of a cost -> what every arm has of it, in words; costs that no arm knows are left out."""
    written = {
        "parameters": ("parameters", numbers.size), "active for one pair": ("active_parameters", numbers.size),
        "forward FLOPs a pair": ("forward_flops_per_pair", numbers.size),
        "pairs trained on": ("training_pairs", numbers.count), "training FLOPs": ("training_flops", numbers.size),
        "training pairs/s": ("training_pairs_per_second", numbers.number),
    }  # fmt: skip
    values = {
        title: [(write, getattr(arm.cost, field)) for arm in card.arms.values()]
        for title, (field, write) in written.items()
    }
    return {
        title: ["–" if value is None else write(value) for write, value in own]
        for title, own in values.items() if any(value is not None for _, value in own)
    }  # fmt: skip
