"""The page of a sweep: who won, what was tried, which values go with which result; a picture beside it."""

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data import storage
from data.place import Place
from data.spec import canonical_json
from pipelines.sweeps.board import Board, Trial
from pipelines.sweeps.result import PAGE, WINNER, WINNER_PLACE, labels, shown, why_ended
from pipelines.sweeps.space import Space
from pipelines.sweeps.spec import Dimension
from pipelines.sweeps.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEMPLATE = "page.html.j2"
_STYLES = Path(__file__).parents[2] / "evaluation" / "templates"
# of the picture, which is read on white: the page's own light colours
_PAPER = {"INK": "#1d2126", "MUTED": "#666d75", "RULE": "#dfdcd4", "ACCENT": "#1d6a86", "QUIET": "#a9aeb3",
          "BAD": "#b0452b"}  # fmt: skip
PICTURE = "parallel.png"


class Axis(NamedTuple):
    """One vertical axis: where a value stands on it (0 to 1), and its ticks."""

    title: str
    place: Callable[[Any], float]
    ticks: list[tuple[float, str]]


def write(study: Study, name: str, board: Board, folder: str, place: Place) -> None:
    """Write the page and the picture into the sweep's folder."""
    storage.write_bytes(storage.join(folder, PICTURE), picture(study, board))
    storage.write_bytes(storage.join(folder, PAGE), render(study, name, board, folder, place).encode())


def render(study: Study, name: str, board: Board, folder: str, place: Place) -> str:
    """The page; whatever comes from data is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, _STYLES]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"shown": shown, "count": "{:,}".format, "why": why_ended}
    best, base = board.best(), board.trials[0]
    known = board.best_known() is not None
    return environment.get_template(_TEMPLATE).render(
        name=name, study=study, board=board, best=best, base=base, objective=study.sweep.objective,
        names=labels(list(study.sweep.space)), ranked=board.ranked(),
        winner=storage.join(folder, WINNER), place_file=storage.join(folder, WINNER_PLACE),
        parallel=_parallel_svg(study, board) if known else None, so_far=_so_far_svg(study, board) if best else None,
        curves=_curves_svg(study, board) if any(len(trial.curve) > 1 for trial in board.trials) else None,
        scheduler=study.sweep.scheduler, share=study.sweep.share(place),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ parallel coordinates


def axes_of(study: Study, board: Board) -> list[Axis]:
    """An axis a searched field, and the objective last, its best end at the top."""
    names = labels(list(study.sweep.space))
    found = [_field_axis(names[path], path, study.sweep.space, board) for path in names]
    values = [trial.value for trial in board.trials if _is_known(trial)]
    low, high = min(map(float, values)), max(map(float, values))  # type: ignore[arg-type]
    top, bottom = (low, high) if study.sweep.objective.mode == "min" else (high, low)

    def place(value: Any) -> float:
        return 0.5 if top == bottom else (float(value) - bottom) / (top - bottom)

    ticks = [(place(value), shown(float(value))) for value in dict.fromkeys((bottom, (top + bottom) / 2, top))]
    return [*found, Axis(study.sweep.objective.metric, place, ticks)]


def _is_known(trial: Trial) -> bool:
    return trial.value is not None and math.isfinite(trial.value)


def _field_axis(title: str, path: str, space: Space, board: Board) -> Axis:
    dimension, values = space[path], [trial.values[path] for trial in board.trials]
    if dimension.is_range and all(isinstance(value, int | float) for value in values):
        return _number_axis(title, dimension, [float(value) for value in values])
    listed = {canonical_json(value): value for value in [*dimension.values, *values]}
    order = list(listed)
    step = 1 / max(1, len(order) - 1)

    def place(value: Any) -> float:
        return order.index(canonical_json(value)) * step if len(order) > 1 else 0.5

    return Axis(title, place, [(place(value), shown(value)[:18]) for value in listed.values()])


def _number_axis(title: str, dimension: Dimension, values: list[float]) -> Axis:
    """A range's axis; the recipe's own value may lie outside of it."""
    low, high = min([*values, dimension.ends[0]]), max([*values, dimension.ends[1]])
    is_log = dimension.log_uniform is not None and low > 0
    scale: Callable[[float], float] = math.log if is_log else float

    def place(value: Any) -> float:
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    middle = math.sqrt(low * high) if is_log else (low + high) / 2
    return Axis(title, place, [(place(value), f"{value:.3g}") for value in (low, middle, high)])


def _draw_parallel(plot: "Axes", study: Study, board: Board, colours: Mapping[str, str]) -> None:
    """A line a trial from axis to axis; the winner on top, stopped ones dashed, the recipe's own dotted."""
    axes = axes_of(study, board)
    paths, best = list(study.sweep.space), board.best()
    for trial in sorted(filter(_is_known, board.trials), key=lambda trial: trial is best):
        heights = [axis.place(trial.values[path]) for axis, path in zip(axes, paths, strict=False)]
        is_best, is_whole = trial is best, trial.state == "finished"
        plot.plot(
            range(len(axes)), [*heights, axes[-1].place(trial.value)],
            color=colours["ACCENT"] if is_best else colours["MUTED"] if is_whole else colours["QUIET"],
            linewidth=2.6 if is_best else 1.2, linestyle=":" if trial.number == 0 else "-" if is_whole else (0, (5, 3)),
            alpha=1.0 if is_best else 0.8, marker="o", markersize=4.5 if is_best else 2.5, clip_on=False,
        )  # fmt: skip
    for number, axis in enumerate(axes):
        plot.axvline(number, color=colours["RULE"], linewidth=1, zorder=0)
        is_last = number == len(axes) - 1
        for height, text in axis.ticks:
            plot.annotate(
                text, (number, height), (7, 0) if is_last else (-6, -7), textcoords="offset points", va="center",
                ha="left" if is_last else "right", fontsize=8, color=colours["MUTED"],
            )  # fmt: skip
        plot.annotate(
            axis.title, (number, 1), (0, 16), textcoords="offset points", ha="center", fontsize=9, color=colours["INK"]
        )
    plot.set_xlim(-0.45, len(axes) - 0.55)
    plot.set_ylim(-0.04, 1.04)
    plot.set_axis_off()


def _width(study: Study) -> float:
    return max(5.0, 2.1 * (len(study.sweep.space) + 1))


def _parallel_svg(study: Study, board: Board) -> str:
    from evaluation.plots import style

    with style.styled():
        figure, plot = style.figure_of(_width(study), 3.6)
        _draw_parallel(plot, study, board, {name: getattr(style, name) for name in _PAPER})
        return style.to_svg(figure, "Every trial's values and its result, a line a trial")


def picture(study: Study, board: Board) -> bytes:
    """The parallel coordinates as PNG, for where a page cannot go; blank where no trial said anything."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_width(study), 4.0), layout="constrained", dpi=150)
    plot = figure.add_subplot()
    if board.best_known() is not None:
        _draw_parallel(plot, study, board, _PAPER)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


# -------------------------------------------------------------------------------------------------------------- curves


def _so_far_svg(study: Study, board: Board) -> str:
    """Results in the order in which trials ended, and the best until then."""
    from evaluation.plots import style

    ended = sorted((trial for trial in board.trials if _is_known(trial)), key=lambda trial: trial.place)
    whole = [trial for trial in ended if trial.state == "finished"]
    better = min if study.sweep.objective.mode == "min" else max
    best = [better(float(t.value or 0) for t in whole[: number + 1]) for number in range(len(whole))]
    with style.styled():
        figure, plot = style.figure_of(4.4, 2.6)
        plot.plot([t.place for t in whole], best, drawstyle="steps-post", color=style.ACCENT)
        for trial in ended:
            look: dict[str, Any] = (
                {"color": style.ACCENT} if trial.state == "finished" else {"color": style.QUIET, "fillstyle": "none"}
            )
            plot.plot(trial.place, float(trial.value or 0), "o", markersize=4.5, **look)
        _label(plot, "trials ended", study)
        return style.to_svg(figure, "Best result so far over the trials that had ended")


def _curves_svg(study: Study, board: Board) -> str:
    """Every trial's losses on the way."""
    from evaluation.plots import style

    best = board.best()
    with style.styled():
        figure, plot = style.figure_of(4.4, 2.6)
        for trial in sorted(board.trials, key=lambda trial: trial is best):
            points = sorted((at, value) for at, value in trial.curve.items() if math.isfinite(value))
            if points:
                colour = style.ACCENT if trial is best else style.MUTED if trial.state == "finished" else style.QUIET
                plot.plot(
                    *zip(*points, strict=True), color=colour, linewidth=2.2 if trial is best else 1.0,
                    linestyle=":" if trial.number == 0 else "-", marker="o", markersize=2.2,
                )  # fmt: skip
        _label(plot, "pairs seen", study)
        return style.to_svg(figure, "Each trial's objective over pairs seen")


def _label(plot: "Axes", x: str, study: Study) -> None:
    from matplotlib.ticker import MaxNLocator

    plot.set_xlabel(x)
    plot.set_ylabel(study.sweep.objective.metric)
    plot.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    plot.yaxis.set_major_locator(MaxNLocator(5))
