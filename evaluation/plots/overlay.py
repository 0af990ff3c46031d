"""Plots over many runs: their losses in one frame, and the trials of a sweep as lines across their settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from evaluation.plots.runs import continuous, smoothed
from evaluation.plots.style import ACCENT, INK, MUTED, QUIET, RULE, SERIES, figure_of, styled, to_svg

_POINTS = 400
_LOG_RATIO = 20.0  # between the largest and smallest setting, above which their logarithms are drawn
_MOST_NAMES = 6


class Curve(NamedTuple):
    """One training log. `number`: its place in the legend; None for one of many, drawn grey."""

    label: str
    number: int | None
    lines: Sequence[Mapping[str, Any]]


class Column(NamedTuple):
    """One setting, or the result, of all trials; None where a trial has none."""

    name: str
    values: Sequence[Any]


def loss_curves(curves: Sequence[Curve], title: str) -> Markup:
    """Running means of the loss over pairs seen, phases one after another."""
    with styled():
        figure, axes = figure_of(4.6, 2.6)
        for curve in sorted(curves, key=lambda curve: curve.number is not None):
            seen, _ = continuous(curve.lines)
            loss = smoothed(np.array([float(line["loss"]) for line in curve.lines]))
            step = max(1, len(seen) // _POINTS)
            colour = QUIET if curve.number is None else SERIES[curve.number % len(SERIES)]
            few = "o" if len(seen) < 3 else None
            axes.plot(seen[::step], loss[::step], color=colour, marker=few, markersize=3,
                      linewidth=0.8 if curve.number is None else 1.6)  # fmt: skip
        axes.set(xlabel="pairs seen", ylabel="loss")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.02)
        return to_svg(figure, f"Loss of {title} over pairs seen, by run")


def parallel(columns: Sequence[Column], best: int | None, description: str) -> Markup:
    """A line a trial across its settings to its result in the last column; the best one strong."""
    with styled():
        figure, axes = figure_of(max(4.6, 1.35 * len(columns)), 3.0)
        scales = [_Scale(column.values) for column in columns]
        count = len(columns[0].values)
        for trial in sorted(range(count), key=lambda trial: trial == best):
            at = [scale.at(column.values[trial]) for scale, column in zip(scales, columns, strict=True)]
            colour, width = (ACCENT, 2.2) if trial == best else (QUIET, 0.9)
            axes.plot(range(len(at)), at, color=colour, linewidth=width, marker="o", markersize=3)
        for number, (scale, column) in enumerate(zip(scales, columns, strict=True)):
            _draw_column(axes, number, scale, column.name, is_result=number == len(columns) - 1)
        axes.set(xlim=(-0.35, len(columns) - 0.45), ylim=(-0.06, 1.06))
        axes.axis("off")
        return to_svg(figure, description)


def _draw_column(axes: Axes, number: int, scale: "_Scale", name: str, is_result: bool) -> None:
    axes.axvline(number, color=RULE, linewidth=0.8, zorder=0)
    for place, text in scale.ticks:
        axes.annotate(text, (number, place), xytext=(4, 0), textcoords="offset points", fontsize=7.5, color=MUTED,
                      va="center")  # fmt: skip
    axes.annotate(name, (number, 1.06), xytext=(0, 5), textcoords="offset points", fontsize=8, ha="center", va="bottom",
                  color=INK if is_result else MUTED)  # fmt: skip


class _Scale:
    """Where the values of a column lie between 0 and 1: numbers by size, anything else by name."""

    def __init__(self, values: Sequence[Any]) -> None:
        known = [value for value in values if value is not None]
        self._is_number = bool(known) and all(
            isinstance(one, int | float) and not isinstance(one, bool) for one in known
        )
        if self._is_number:
            numbers = [float(value) for value in known]
            low, high = min(numbers), max(numbers)
            self._is_log = low > 0 and high / low > _LOG_RATIO
            self._low, self._high = self._of(low), self._of(high)
            middle = (self._low + self._high) / 2
            marks = [low, math.exp(middle) if self._is_log else middle, high] if high > low else [low]
            self.ticks = [(self.at(value), f"{value:.3g}") for value in marks]
        else:
            self._names = sorted({str(value) for value in known})
            self.ticks = [(self.at(name), name[:14]) for name in self._names[:_MOST_NAMES]]

    def _of(self, value: float) -> float:
        return math.log(value) if self._is_log else value

    def at(self, value: Any) -> float:
        """Height of a value; NaN, which breaks the line, for none."""
        if value is None:
            return math.nan
        if not self._is_number:
            return (self._names.index(str(value)) + 0.5) / len(self._names)
        spread = self._high - self._low
        return (self._of(float(value)) - self._low) / spread if spread else 0.5
