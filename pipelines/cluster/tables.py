"""Runs as tables and JSON, for `clipworks status`: one run stage by stage, or all of a root."""

import time
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.errors import UserError
from data.lines import duration
from pipelines.cluster.follow import age, pods_of
from pipelines.cluster.kfp_api import KfpApi, KfpError
from pipelines.cluster.pods import UnreachableError
from pipelines.cluster.spec import Cluster
from pipelines.cluster.status import Known, Row, ask_kfp, is_lost, rows, settle
from pipelines.runs import RunRecord, read_run, run_names

_STYLES = {"failed": "red", "running": "bold", "finished": "green"}


class Seen(NamedTuple):
    """A run, looked at: its settled record, its stages, and what could not be asked."""

    record: RunRecord
    rows: list[Row]
    notes: tuple[str, ...]


def look_at(root: str, record: RunRecord, cluster: Cluster | None) -> Seen:
    """Look at one run, from all sides."""
    known = ask(record, cluster)
    record = settle(root, record, known.kfp)
    return Seen(record, rows(root, record, known), known.notes)


def look_at_all(root: str, cluster: Cluster | None) -> tuple[list[RunRecord], list[str]]:
    """Every run of a root, oldest first, and what could not be read or asked; KFP is asked about those that run."""
    records, notes = [], []
    for name in run_names(root):
        try:
            record = read_run(root, name)
        except UserError as error:
            notes.append(str(error))
            continue
        known = ask(record, cluster, with_pods=False)
        notes += [note for note in known.notes if note not in notes]
        records.append(settle(root, record, known.kfp))
    return sorted(records, key=lambda record: record.started), notes


def ask(record: RunRecord, cluster: Cluster | None, with_pods: bool = True) -> Known:
    """What KFP and Kubernetes say of a run that goes on; a token goes to no address that comes out of a record."""
    if record.submission is None or record.state not in ("running", "failed"):
        return Known()
    if record.state == "failed":
        return _why_failed(record, cluster)
    if cluster is None:
        return Known(notes=(f"KFP was not asked: add --on with the file of {record.submission.cluster['name']!r}",))
    try:
        kfp = ask_kfp(KfpApi(cluster.kfp), record)
        return Known(kfp, pods_of(record, cluster) if with_pods and not kfp.has_ended else ())
    except KfpError as error:
        return Known(notes=(str(error),))
    except UnreachableError as error:
        return Known(kfp, notes=(f"pods not looked at: {error}",))


def _why_failed(record: RunRecord, cluster: Cluster | None) -> Known:
    """What KFP still knows of a run that failed; that it knows nothing any more is no news."""
    try:
        return Known(ask_kfp(KfpApi(cluster.kfp), record)) if cluster else Known()
    except KfpError:
        return Known()


def as_json(seen: Seen) -> dict[str, Any]:
    """One run as plain values."""
    record = seen.record
    stages = [row._asdict() for row in seen.rows]
    return {"run": record.name, "state": _state(record), "stages": stages, "notes": list(seen.notes)}


def all_as_json(found: tuple[list[RunRecord], list[str]]) -> dict[str, Any]:
    """All runs as plain values."""
    names = ("name", "started", "ended", "failed_stage")
    runs = [{**{name: getattr(record, name) for name in names}, "state": _state(record)} for record in found[0]]
    return {"runs": runs, "notes": found[1]}


def show(seen: Seen, console: Console) -> None:
    """Print one run."""
    record, submission = seen.record, seen.record.submission
    where = f" on {submission.cluster['name']}" if submission else ""
    page = f", KFP run {submission.run_id}" if submission else ""
    _say(f"{record.name}: {_state(record)}{where}, {age(record)}{page}", console)
    table = _table("stage", "state", "time", "")
    for row in seen.rows:
        took = "-" if row.seconds is None else duration(row.seconds)
        table.add_row(row.stage, Text(row.state, _STYLES.get(row.state, "")), took, Text(row.detail))
    console.print(table, markup=False, highlight=False)
    for note in seen.notes:
        _say(note, console)


def show_all(root: str, found: tuple[list[RunRecord], list[str]], console: Console) -> None:
    """Print all runs, newest last."""
    table = _table("run", "state", "started", "for", "where", "recipe")
    for record in found[0]:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.started))
        where = record.submission.cluster["name"] if record.submission else "one machine"
        table.add_row(record.name, _state(record), began, age(record), where, record.recipe["name"])
    console.print(table if found[0] else f"no runs below {root}", markup=False, highlight=False)
    for note in found[1]:
        _say(note, console)


def _state(record: RunRecord) -> str:
    return "lost" if is_lost(record) else record.state


def _say(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
