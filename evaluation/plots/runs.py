"""Plots of what a run did: losses, and metadata entries before and after balancing."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from evaluation.plots.style import ACCENT, MUTED, QUIET, RULE, figure_of, styled, to_svg

_SMOOTHED_POINTS = 40


def loss_curve(lines: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Loss over pairs seen, phases one after another and marked; faint as logged, strong as a running mean."""
    seen, starts = continuous(lines)
    loss = np.array([float(line["loss"]) for line in lines])
    with styled():
        figure, axes = figure_of(4.4, 2.35)
        axes.plot(seen, loss, color=QUIET, linewidth=0.9)
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            axes.plot(seen[start:end], smoothed(loss[start:end]), color=ACCENT)
        _mark_phases(axes, [(seen[start], str(lines[start].get("phase", ""))) for start in starts])
        axes.set_xlabel("pairs seen")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.02)
        return to_svg(figure, f"Loss of {title} over pairs seen")


def entry_histogram(edges: Sequence[float], before: Sequence[int], after: Sequence[int]) -> Markup:
    """How many metadata entries match how many pairs, before and after balancing."""
    names = [_bin_name(low, high) for low, high in pairwise(edges)]
    first = next((i for i, (b, a) in enumerate(zip(before, after, strict=True)) if edges[i] > 0 and (b or a)), 0)
    place = np.arange(len(names) - first)
    with styled():
        figure, axes = figure_of(5.4, 2.5)
        axes.bar(place - 0.2, before[first:], 0.38, color=QUIET, label="before")
        axes.bar(place + 0.2, after[first:], 0.38, color=ACCENT, label="after")
        axes.set_xticks(place, names[first:], rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlabel("pairs an entry matches")
        axes.set_ylabel("entries")
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(frameon=False, loc="upper right", labelcolor=MUTED)
        return to_svg(figure, "Entries by the pairs they match, before and after balancing")


def continuous(lines: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[int]]:
    """Pairs seen over all phases (each may start at 0 again), and the line every phase starts at."""
    seen, starts, offset, last = np.zeros(len(lines)), [0], 0.0, 0.0
    for number, line in enumerate(lines):
        own = float(line["samples_seen"])
        if number and line.get("phase") != lines[number - 1].get("phase"):
            starts.append(number)
            offset += last if own <= last else 0.0
        seen[number], last = offset + own, own
    return seen, starts


def smoothed(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Centred running mean over about 1/40 of the points, shorter at the ends."""
    half = len(values) // _SMOOTHED_POINTS
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


def _mark_phases(axes: Axes, phases: Sequence[tuple[float, str]]) -> None:
    if len(phases) < 2:
        return
    for start, name in phases:
        axes.axvline(start, color=RULE, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.annotate(
            name, (start, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
            fontsize=7.5, color=MUTED, va="bottom", rotation=0 if len(phases) < 6 else 30,
        )  # fmt: skip


def _bin_name(low: float, high: float) -> str:
    return f"{low:,.0f}" if high - low <= 1 else f"{low:,.0f}–{high - 1:,.0f}"
