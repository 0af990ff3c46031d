"""Histograms as inline SVG of a few elements: no plotting package, no clock, no ids, so equal numbers are equal bytes.

Colours and type come from the page's style sheet, by class.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 8.0, 22.0  # margins, in units of which the text is 10 high
_LETTER = 5.8
_LEAST_GAP = 11.0  # between two labels of the vertical axis


class Size(NamedTuple):
    """Width and height of a plot in the units of its text; the page scales it."""

    width: float = 420.0
    height: float = 150.0

    @property
    def base(self) -> float:
        """The y of a count of 0."""
        return self.height - _BOTTOM

    @property
    def inner(self) -> float:
        """Width of all bins."""
        return self.width - _LEFT - _RIGHT


WIDE = Size(800.0, 190.0)


def histogram(
    label: str,
    edges: Sequence[float],
    series: Sequence[tuple[str, Sequence[int]]],
    *,
    names: Sequence[str] | None = None,
    marks: Sequence[float] = (),
    is_log: bool = False,
    size: Size = Size(),  # noqa: B008 - frozen
) -> Markup:
    """Bars of one or two series (class, counts) over bins drawn equally wide.

    `names` label the bins; without them the edges are labelled. `marks` are values at which a dashed line stands.
    """
    heights = _Heights(max((count for _, counts in series for count in counts), default=0), is_log, size)
    step = size.inner / max(1, len(edges) - 1)
    parts = [*_grid(heights, size), *_columns(series, step, heights), *_labels(edges, names, step, size)]
    for x in (_LEFT + step * _position(edges, mark) for mark in marks):
        for kind in ("halo", "mark"):
            line = Markup('<line class="{0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>')
            parts.append(line.format(kind, _n(x), _n(_TOP), _n(size.base)))
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _n(size.width), _n(size.height), label, Markup("").join(parts)
    )


def bin_names(edges: Sequence[float]) -> list[str]:
    """Bins of whole numbers as people say them: 1, 2-3, 4-7."""
    return [f"{low:,.0f}" if high - low <= 1 else f"{low:,.0f}–{high - 1:,.0f}" for low, high in pairwise(edges)]


def short(value: float) -> str:
    """A number on an axis: 0.25, 40, 1.2K, and the end of bins that have none."""
    if math.isinf(value):
        return "∞"
    for unit, size in (("M", 1e6), ("K", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


class _Heights:
    """Counts as places from the base line up."""

    def __init__(self, most: int, is_log: bool, size: Size) -> None:
        self.most, self.is_log, self.base = max(1, most), is_log, size.base
        self.ticks = self._log_ticks() if is_log else self._even_ticks()
        self._top = self._scaled(max(self.most, self.ticks[-1]))

    def at(self, count: float) -> float:
        """The y of a count."""
        return self.base - (self.base - _TOP) * self._scaled(count) / self._top

    def _scaled(self, count: float) -> float:
        return math.log10(1 + count) if self.is_log else count

    def _log_ticks(self) -> list[float]:
        powers = range(math.floor(math.log10(self.most)) + 1)
        return [0.0, *(10.0**power for power in powers if (powers[-1] - power) % (1 + len(powers) // 5) == 0)]

    def _even_ticks(self) -> list[float]:
        size = 10.0 ** math.floor(math.log10(self.most))
        step = max(1.0, next(size * part for part in (0.25, 0.5, 1, 2.5) if self.most / (size * part) <= 4))
        return [step * number for number in range(math.ceil(self.most / step) + 1)]


def _n(value: float) -> str:
    """A coordinate: one place is a tenth of what can be seen."""
    return f"{value:.1f}".removesuffix(".0")


def _grid(heights: _Heights, size: Size) -> Iterator[Markup]:
    last = math.inf
    for tick in heights.ticks:
        y = heights.at(tick)
        if last - y < _LEAST_GAP:
            continue
        last = y
        kind = "grid" if tick else "base"
        line = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        yield line.format(kind, _n(_LEFT), _n(size.width - _RIGHT), _n(y), _n(y))
        yield Markup('<text class="y" x="{}" y="{}">{}</text>').format(_n(_LEFT - 5), _n(y + 3.4), short(tick))


def _columns(series: Sequence[tuple[str, Sequence[int]]], step: float, heights: _Heights) -> Iterator[Markup]:
    gap = min(step * 0.16, 3)
    width = (step - gap) / max(1, len(series))
    for number, (kind, counts) in enumerate(series):
        for place, count in enumerate(counts):
            if count:
                x, y = _LEFT + place * step + gap / 2 + number * width, min(heights.at(count), heights.base - 1)
                box = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
                yield box.format(kind, _n(x), _n(y), _n(width), _n(heights.base - y), f"{count:,}")


def _labels(edges: Sequence[float], names: Sequence[str] | None, step: float, size: Size) -> Iterator[Markup]:
    texts = names if names is not None else [short(edge) for edge in edges]
    middle = step / 2 if names is not None else 0
    every = max(1, math.ceil((2 + max(map(len, texts), default=0)) * _LETTER / step))
    for number, text in enumerate(texts):
        if number % every == 0:
            x = min(_LEFT + number * step + middle, size.width - _RIGHT - 4)
            yield Markup('<text class="x" x="{}" y="{}">{}</text>').format(_n(x), _n(size.base + 14), text)


def _position(edges: Sequence[float], value: float) -> float:
    """Where a value stands among the edges, in bins from the left; what lies outside stands at the border."""
    if value <= edges[0]:
        return 0.0
    for number, (low, high) in enumerate(pairwise(edges)):
        if value <= high:
            return number + (value - low) / (high - low)
    return float(len(edges) - 1)
