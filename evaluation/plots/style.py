"""How every plot looks: inline SVG that follows the page, its fonts, its colours, light or dark.

matplotlib draws in marker colours that no one sees; they become the page's CSS variables afterwards.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, QUIET, BAD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", QUIET: "--quiet", BAD: "--bad"}
SERIES = tuple(f"#0{number}0a0a" for number in range(1, 9))
_VARIABLES |= {marker: f"--s{number}" for number, marker in enumerate(SERIES, 1)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "clipworks", "font.size": 9, "text.color": INK,
    "axes.labelcolor": MUTED, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.edgecolor": RULE, "xtick.color": RULE, "ytick.color": RULE,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": RULE, "grid.linewidth": 0.6, "axes.linewidth": 0.8, "xtick.major.size": 3, "ytick.major.size": 0,
    "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the page's style."""
    with mpl.rc_context(_STYLE):
        yield


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one plot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, description: str) -> Markup:
    """The figure as SVG that takes its colours from the page; `description` is read aloud."""
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
