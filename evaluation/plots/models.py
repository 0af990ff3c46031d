"""Plots of what models can do: curves with intervals, reliability, histograms, and both modalities in the plane."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from evaluation.plots.style import ACCENT, BAD, MUTED, QUIET, RULE, SERIES, figure_of, styled, to_svg

_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


class Series(NamedTuple):
    """One model's curve with its 95 % intervals. `number`: place in the legend; controls are grey."""

    label: str
    number: int
    control: bool
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def colour_of(number: int, control: bool) -> str:
    """The marker colour of a model."""
    return QUIET if control else SERIES[number % len(SERIES)]


def curves(
    series: Sequence[Series], x_label: str, description: str, ticks: Mapping[float, str], chance: float | None = None,
    references: Mapping[str, float] | None = None, small: bool = False,
) -> Markup:  # fmt: skip
    """Shares over a few places on x: lines between them, bands of intervals. `references`: labels of level lines."""
    with styled():
        figure, axes = figure_of(*((2.5, 1.75) if small else (4.6, 2.6)))
        for one in series:
            colour, dash = colour_of(one.number, one.control), _DASHES[one.number // len(SERIES) % len(_DASHES)]
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(one.x, one.y, color=colour, linestyle=dash, marker="o", markersize=3 if small else 4)
        _level(axes, chance, "" if small else "chance", BAD)
        for name, value in (references or {}).items():
            _level(axes, value, name, MUTED)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel(x_label)
        axes.set_ylim(0, 1.02 * max(0.02, *(high for one in series for high in one.high)))
        axes.yaxis.set_major_locator(MaxNLocator(4 if small else 5))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.margins(x=0.04)
        return to_svg(figure, description)


def _level(axes: Axes, value: float | None, name: str, colour: str) -> None:
    if value is None:
        return
    axes.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.annotate(
        name, (1, value), xycoords=("axes fraction", "data"), xytext=(-1, 2), textcoords="offset points",
        fontsize=7, color=colour, ha="right", va="bottom",
    )  # fmt: skip


def reliability(bins: Sequence[Mapping[str, Any]], description: str, after: Sequence[Mapping[str, Any]] = ()) -> Markup:
    """Accuracy over confidence per bin, as large as the bin is full; its distance from the diagonal is its error.

    `after`: the bins with a fitted temperature.
    """
    with styled():
        figure, axes = figure_of(2.7, 2.55)
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1.2)
        for own, colour, filled in ((after, MUTED, False), (bins, ACCENT, True)):
            full = [one for one in own if one["count"]]
            if not full:
                continue
            x, y = ([float(one[name]) for one in full] for name in ("confidence", "accuracy"))
            total = sum(one["count"] for one in full)
            sizes = [14 + 150 * one["count"] / total for one in full]
            if filled:
                axes.vlines(x, x, y, color=colour, linewidth=1.0, alpha=0.5)
            axes.scatter(x, y, sizes, facecolor=colour if filled else "none", edgecolor=colour, linewidth=1.1, zorder=3)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy")
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        return to_svg(figure, description)


def histograms(edges: Sequence[float], inside: Sequence[float], outside: Sequence[float], description: str) -> Markup:
    """Shares of scores of the split's own pictures and of the others, over the same bins."""
    with styled():
        figure, axes = figure_of(3.0, 1.8)
        for counts, colour in ((inside, ACCENT), (outside, BAD)):
            shares = np.asarray(counts, np.float64) / max(1.0, float(np.sum(counts)))
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.3)
            axes.stairs(shares, edges, color=colour, linewidth=1.3)
        axes.set_xlabel("score: higher is more out of distribution")
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        return to_svg(figure, description)


def modalities(images: Sequence[Sequence[float]], texts: Sequence[Sequence[float]], description: str) -> Markup:
    """Pictures and captions in the plane; a faint line joins the two of a pair where both come in the same order."""
    with styled():
        figure, axes = figure_of(2.9, 2.6)
        left, right = np.asarray(images, np.float64), np.asarray(texts, np.float64)
        if left.shape == right.shape:
            axes.plot([left[:, 0], right[:, 0]], [left[:, 1], right[:, 1]], color=RULE, linewidth=0.5)
        axes.scatter(left[:, 0], left[:, 1], 9, color=ACCENT, linewidth=0)
        axes.scatter(right[:, 0], right[:, 1], 9, color=BAD, linewidth=0)
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        return to_svg(figure, description)
