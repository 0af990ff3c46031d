"""Draws stages from their events: live bars on a terminal, plain lines without one. The only place that draws."""

from collections.abc import Mapping
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.text import Text

from data.lines import ENDED, EventTail, Lines, ending_text, metrics_text, progress_text, unseen

__all__ = ["EventTail", "LiveBars", "PlainLines", "Renderer", "make_renderer", "progress_text", "unseen"]


class Renderer(Protocol):
    """Shows one event at a time."""

    def show(self, event: Mapping[str, Any]) -> None:
        """Show an event."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class PlainLines(Lines):
    """Lines on a console that is no terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class _Columns(ProgressColumn):
    """Amount, rate and time left; the stage's own words behind."""

    def render(self, task: Any) -> Text:
        return Text(f"{task.fields['text']}  {task.fields['note']}".rstrip(), overflow="ellipsis", no_wrap=True)


class LiveBars:
    """A bar a stage, for a terminal."""

    def __init__(self, console: Console) -> None:
        name, mark = TextColumn("{task.description:<18}"), TextColumn("{task.fields[mark]}")
        self._progress = Progress(mark, name, BarColumn(24), _Columns(), console=console, refresh_per_second=5)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Move a bar."""
        stage, kind = event["stage"], event["event"]
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None, mark="·", text="", note="")
        task = self._tasks[stage]
        if kind == "progress":
            note = {"note": event["message"]} if event.get("message") else {}
            self._progress.update(
                task, completed=event["done"], total=event.get("total"), text=progress_text(event), mark="▸", **note
            )
        elif kind == "metrics":
            self._progress.update(task, note=metrics_text(event["values"]))
        elif kind == "message":
            self._progress.update(task, note=event["message"])
        elif kind in ENDED:
            mark = "[red]✗[/]" if kind == "failed" else "[green]✓[/]"
            done: dict[str, Any] = {} if kind == "failed" else {"total": 1, "completed": 1}
            self._progress.update(task, mark=mark, text=ending_text(event), note="", **done)


def make_renderer(console: Console) -> Renderer:
    """Bars where they can be drawn, lines elsewhere."""
    return LiveBars(console) if console.is_terminal and not console.is_dumb_terminal else PlainLines(console)
