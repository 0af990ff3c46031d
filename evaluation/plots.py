"""Plots as inline SVG that follow the page: its fonts, its colours, light or dark.

matplotlib draws in marker colours that no one sees; they become the page's CSS variables afterwards.
"""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

INK, MUTED, RULE, ACCENT, QUIET = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", QUIET: "--quiet"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "clipworks", "font.size": 9, "text.color": INK,
    "axes.labelcolor": MUTED, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.edgecolor": RULE, "xtick.color": RULE, "ytick.color": RULE,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": RULE, "grid.linewidth": 0.6, "axes.linewidth": 0.8, "xtick.major.size": 3, "ytick.major.size": 0,
    "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip
_SMOOTHED_POINTS = 40


def loss_curve(lines: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Loss over pairs seen, phases one after another and marked; faint as logged, strong as a running mean."""
    seen, starts = _continuous(lines)
    loss = np.array([float(line["loss"]) for line in lines])
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(4.4, 2.35)
        axes.plot(seen, loss, color=QUIET, linewidth=0.9)
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            axes.plot(seen[start:end], _smoothed(loss[start:end]), color=ACCENT)
        _mark_phases(axes, [(seen[start], str(lines[start].get("phase", ""))) for start in starts])
        axes.set_xlabel("pairs seen")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.02)
        return _svg(figure, f"Loss of {title} over pairs seen")


def entry_histogram(edges: Sequence[float], before: Sequence[int], after: Sequence[int]) -> Markup:
    """How many metadata entries match how many pairs, before and after balancing."""
    names = [_bin_name(low, high) for low, high in pairwise(edges)]
    first = next((i for i, (b, a) in enumerate(zip(before, after, strict=True)) if edges[i] > 0 and (b or a)), 0)
    place = np.arange(len(names) - first)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(5.4, 2.5)
        axes.bar(place - 0.2, before[first:], 0.38, color=QUIET, label="before")
        axes.bar(place + 0.2, after[first:], 0.38, color=ACCENT, label="after")
        axes.set_xticks(place, names[first:], rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlabel("pairs an entry matches")
        axes.set_ylabel("entries")
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(frameon=False, loc="upper right", labelcolor=MUTED)
        return _svg(figure, "Entries by the pairs they match, before and after balancing")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _continuous(lines: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[int]]:
    """Pairs seen over all phases (each may start at 0 again), and the line every phase starts at."""
    seen, starts, offset, last = np.zeros(len(lines)), [0], 0.0, 0.0
    for number, line in enumerate(lines):
        own = float(line["samples_seen"])
        if number and line.get("phase") != lines[number - 1].get("phase"):
            starts.append(number)
            offset += last if own < last else 0.0
        seen[number], last = offset + own, own
    return seen, starts


def _smoothed(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
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


def _svg(figure: Figure, description: str) -> Markup:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, f"var({variable})")
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", text, count=1)
    safe = Markup.escape(description)
    # the text comes from matplotlib alone, which escapes labels
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{safe}" ', 1))  # noqa: S704
