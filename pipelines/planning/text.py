"""A plan and its estimate as a table, as lines, and as plain rows for JSON."""

from typing import TYPE_CHECKING, Any

from pipelines.planning.cost import RunEstimate, StageEstimate, Sum
from pipelines.planning.plan import duration

if TYPE_CHECKING:
    from rich.console import Console

_HEADINGS = ("stage", "kind", "do", "artifact", "pairs", "time")
_COSTS = ("GPU h", "CPU h", "reads", "writes")


def show_plan(estimate: RunEstimate, console: "Console") -> None:
    """Print the table, what each estimate rests on, and the sums."""
    from rich.table import Table

    prices = estimate.prices
    headings = (*_HEADINGS, *_COSTS, prices.currency) if prices else (*_HEADINGS, *_COSTS[2:])
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number > 3 else "left", overflow="fold")
    for stage in estimate.stages:
        table.add_row(*_cells(stage, bool(prices)))
    console.print(table)
    for line in (*_bases(estimate), *sums(estimate)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bases(estimate: RunEstimate) -> list[str]:
    """What the time of each stage that runs rests on; stages of which the same is said share a line."""
    names: dict[str, list[str]] = {}
    lines = []
    for stage in estimate.stages:
        if stage.plan.problem:
            lines.append(f"stages.{stage.plan.name}: {stage.plan.problem}")
        elif stage.runs:
            about = "roughly, " if stage.time.is_rough and stage.time.seconds is not None else ""
            names.setdefault(about + stage.time.basis, []).append(stage.plan.name)
    return lines + [f"{', '.join(stages)}: {basis}" for basis, stages in names.items()]


def _cells(stage: StageEstimate, has_prices: bool) -> list[str]:
    plan, pairs = stage.plan, stage.plan.pairs
    cells = [plan.name, plan.kind, "run" if stage.runs else "reuse", plan.artifact_name or "?"]
    cells += ["?" if pairs is None else f"{pairs:,}"]
    if not stage.runs:
        return cells + ["-"] * (6 if has_prices else 3)
    cells += [duration(stage.time.seconds)]
    if has_prices:
        cells += [number_text(stage.gpu_hours), number_text(stage.cpu_hours)]
    cells += [size_text(stage.bytes_read), size_text(stage.bytes_written)]
    return cells + ([number_text(stage.money)] if has_prices else [])


def sums(estimate: RunEstimate) -> list[str]:
    """The last lines: time, and on a cluster hours, money and bytes."""
    lines = [f"time: {_least(estimate.elapsed, duration)}, from {estimate.basis}"]
    if estimate.prices:
        gpu, cpu = estimate.total("gpu_hours"), estimate.total("cpu_hours")
        lines += [
            f"hours: {_least(gpu, number_text)} GPU, {_least(cpu, number_text)} CPU, as their pods ask for; "
            "queues and the start of pods come on top",
            f"money: {_least(estimate.total('money'), number_text)} {estimate.prices.currency}{_unpriced(estimate)}",
        ]
    read, written = estimate.total("bytes_read"), estimate.total("bytes_written")
    return [*lines, f"bytes: {_least(read, size_text)} read, {_least(written, size_text)} written"]


def _unpriced(estimate: RunEstimate) -> str:
    """What has no price in the cluster file although the run uses it."""
    assert estimate.prices
    uses = {
        "gpu_hour": any(s.gpus for s in estimate.stages if s.runs),
        "cpu_hour": any(s.runs for s in estimate.stages),
    }
    lacking = [name for name, used in uses.items() if used and name not in estimate.prices.model_fields_set]
    return f"; the cluster file's prices lack {' and '.join(lacking)} (0: it is free)" if lacking else ""


def _least(total: Sum, text: Any) -> str:
    if total.value is None or (not total.value and not total.is_whole):
        return "?"
    return str(text(total.value)) if total.is_whole else f"at least {text(total.value)}"


def number_text(value: float | None) -> str:
    """Hours or money, `?` where they are not known."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value >= 0.005 or not value else "<0.01"


def size_text(size: float | None) -> str:
    """Bytes in a person's units (powers of ten, as prices are)."""
    if size is None:
        return "?"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def as_json(estimate: RunEstimate) -> dict[str, Any]:
    """Rows and sums as plain values; null is what is not known."""
    prices = estimate.prices
    totals = {name: estimate.total(name) for name in ("gpu_hours", "cpu_hours", "bytes_read", "bytes_written", "money")}
    if prices is None:
        del totals["money"]
    return {
        "stages": [_row(stage) for stage in estimate.stages],
        "total": {
            "seconds": {**estimate.elapsed._asdict(), "basis": estimate.basis},
            **{name: total._asdict() for name, total in totals.items()},
        },
        "currency": prices.currency if prices else None,
    }


def _row(stage: StageEstimate) -> dict[str, Any]:
    plan = stage.plan
    return {
        "stage": plan.name,
        "kind": plan.kind,
        "do": "run" if stage.runs else "reuse",
        "fingerprint": plan.fingerprint,
        "artifact": plan.artifact_name,
        "pairs": plan.pairs,
        "seconds": stage.time.seconds,
        "basis": stage.time.basis,
        "is_rough": stage.time.is_rough,
        "gpu_hours": stage.gpu_hours,
        "cpu_hours": stage.cpu_hours,
        "money": stage.money,
        "bytes_read": stage.bytes_read,
        "bytes_written": stage.bytes_written,
        "problem": plan.problem,
    }
