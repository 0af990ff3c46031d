"""How runs are written on a terminal: the list, one run whole, and what differs between two."""

import shlex
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from data import storage
from evaluation.numbers import interval, measured
from pipelines.planning.plan import counts_text, duration
from pipelines.review.listing import STAGE_STATES, Number, Seen
from pipelines.runs import Unreadable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MOST_CELL = 60
_STATE_STYLE = {"failed": "red", "lost": "red", "lost?": "yellow", "running": "cyan", "cancelled": "yellow"}


def show_list(runs: list[Seen], unreadable: list[Unreadable], console: "Console", root: str) -> None:
    """A line a run, newest first; what cannot be read comes last, with the reason."""
    if not runs and not unreadable:
        say(console, f"no runs below {root}")
        return
    table = table_of("run", "state", "started", "took", "recipe", "stages", "headline", "95 % interval", "of")
    for seen in runs:
        number, note = seen.number, f" ({seen.state.note})" if seen.state.note else ""
        style = _STATE_STYLE.get(seen.state.name, "")
        table.add_row(
            seen.record.name, f"[{style}]{seen.state.name}[/]" if style else seen.state.name,
            when(seen.record.started), duration(seen.seconds) if seen.seconds is not None else "-",
            str(seen.record.recipe.get("name", "?")), stages_text(seen) + note,
            value_text(number), interval_text(number), headline_text(number),
        )  # fmt: skip
    for one in unreadable:
        table.add_row(one.name, "[red]unreadable[/]", "", "", "", "", "", "", "")
    console.print(table)
    for one in unreadable:
        say(console, f"{one.name}: unreadable: {one.reason}")


def stages_text(seen: Seen) -> str:
    """`7 made, 16 reused, 1 failed`."""
    states = list(seen.stages.values())
    counted = [(states.count(name), name) for name in STAGE_STATES]
    failed = f": {seen.record.failed_stage}" if seen.record.failed_stage else ""
    return ", ".join(f"{count} {name}{failed if name == 'failed' else ''}" for count, name in counted if count)


def headline_text(number: Number | None) -> str:
    """What a headline number is of."""
    return "" if number is None else ": ".join(filter(None, (number.label, number.metric)))


def value_text(number: Number | None) -> str:
    """A headline's value in its unit."""
    return measured(number.value, number.unit) if number else ""


def interval_text(number: Number | None) -> str:
    """A headline's interval; nothing for a number that has none."""
    return interval(number.low, number.high, number.unit) if number and number.low is not None else ""


def show_run(seen: Seen, files: dict[str, str], console: "Console") -> None:
    """Everything of one run."""
    record = seen.record
    note = f" ({seen.state.note})" if seen.state.note else ""
    took = f", {duration(seen.seconds)}" if seen.seconds is not None else ""
    facts = {
        "run": record.name,
        "recipe": f"{record.recipe.get('name')}: {record.recipe.get('title')}",
        "state": f"{seen.state.name}{note}",
        "started": f"{when(record.started)}{took}",
        "command": shlex.join(record.command),
        "group": record.group,
        "root": seen.root,
        "on": _where(seen),
        "image": record.image,
        "code": f"{record.code} (not reproducible from the image alone)" if record.code else None,
        "commit": record.versions.get("commit"),
        "versions": ", ".join(f"{name} {it}" for name, it in record.versions.items() if name != "commit"),
    }
    for name, value in facts.items():
        if value:
            say(console, f"{name:<10} {value}")
    console.print()
    console.print(_stage_table(seen))
    for stage, report in seen.of_kind("report").items():
        console.print()
        _show_headline(stage, report.record.metrics.get("headline"), console)
    console.print()
    for name, place in files.items():
        say(console, f"{name:<12} {place}")


def _where(seen: Seen) -> str:
    record, place = seen.record, seen.record.place
    if record.submission:
        return f"{record.submission.cluster.get('name', 'cluster')}, KFP run {record.submission.run_id}"
    counts = {"data_workers": "data workers", "train_workers": "training workers", "gpus_per_worker": "GPUs each"}
    words = [f"{place[name]} {text}" for name, text in counts.items() if name in place]
    return "this machine: " + ", ".join(words)


def _stage_table(seen: Seen) -> "Table":
    table = table_of("stage", "", "artifact", "time", "holds")
    for name, state in seen.stages.items():
        stage, artifact = seen.record.stages[name], seen.artifact(name)
        seconds = seconds_of(seen.root, stage.artifact)
        counts = counts_text(artifact.record.counts, most=3) if artifact else ""
        table.add_row(name, state, stage.artifact or "?", "-" if seconds is None else duration(seconds), counts)
    return table


def seconds_of(root: str, artifact: str | None) -> float | None:
    """How long it took to make an artifact, where that is known."""
    uri = storage.join(root, ".events", f"{artifact}.timing.json")
    return float(storage.read_json(uri)["seconds"]) if artifact and storage.exists(uri) else None


def _show_headline(stage: str, headline: dict[str, Any] | None, console: "Console") -> None:
    if not headline:
        return
    title = " ".join(str(headline[part]) for part in ("set", "split", "task", "metric"))
    table = table_of(f"{stage}: {title}", "", "95 % interval", "n", "chance")
    for row in headline["rows"]:
        chance = measured(row["chance"], row["unit"])
        table.add_row(
            f"{row['label']} (control)" if row["control"] else row["label"], measured(row["value"], row["unit"]),
            interval(row["low"], row["high"], row["unit"]), f"{row['n']:,}", chance,
        )  # fmt: skip
    console.print(table)


def when(seconds: float) -> str:
    """A moment in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def short(value: Any) -> str:
    """A value of a recipe in few characters."""
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CELL else f"{text[: _MOST_CELL - 3]}..."


def table_of(*headings: str, right: Iterable[str] = ()) -> "Table":
    """A table without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading in right else "left")
    return table


def say(console: "Console", text: str) -> None:
    """A line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
