"""The page that a failed stage leaves: what failed, where, what it had written and done last, what was changed since it
last went well, and the one command that retries only it. As HTML and as text, in `<root>/.runs/<run>/postmortem/`.
"""

import re
import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.failure import Failure
from components.resources import look
from data import storage
from data.errors import StorageError
from data.events import read_events
from data.lines import duration, ending_text, metrics_text, progress_text
from data.output import clean, redacted, tail_lines
from pipelines.here.evidence import Ending, verdict
from pipelines.here.workspace import RAY_LOGS
from pipelines.recipe_diff import ABSENT, Difference, recipe_diff
from pipelines.runs import RunRecord, read_runs, run_folder, versions

_MOST_EVENTS = 15
_MOST_CHANGES = 40
_LOG_LINES = 60
_GB = 1e9
_STEP_END = re.compile(r"Task '[\w-]+' finished with status")
_FACT_ORDER = ("rank", "phase", "step", "doing", "shard", "uid")


class Case(NamedTuple):
    """A stage of a run that failed, and what is known of it."""

    root: str
    record: RunRecord
    stage: str
    failure: Failure | None
    ending: Ending
    log: Path | None  # on this machine
    again: str  # the command that goes on with the whole run
    notes: tuple[str, ...] = ()  # what was told by others: KFP, pods
    on: str | None = None  # the cluster file, for a run of a cluster


class PostMortem(NamedTuple):
    """All that the page shows, in words. Nothing in it is a secret."""

    title: str
    verdict: str
    about: list[tuple[str, str]]
    notes: list[str]
    traceback: list[str]
    outputs: dict[str, list[str]]
    events: list[str]
    resources: list[tuple[str, str]]
    compared: str
    changes: list[tuple[str, str, str]]
    version_changes: list[tuple[str, str, str]]
    versions: list[tuple[str, str]]
    place: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    log: str


def make_postmortem(case: Case) -> PostMortem:
    """Gather what there is to say. Parts that storage does not give are left out, and it is said why."""
    failure, record = case.failure, case.record
    events, why_no_events = _tried(lambda: read_events(_events_uri(case)), [])
    events = [event for event in events if event["time"] >= round(record.started, 3)]
    runs, why_no_runs = _tried(lambda: read_runs(case.root), [])
    before = last_good(record, runs)
    said, evidence = _verdict(case)
    ours = versions()
    return PostMortem(
        title=f"{case.stage} failed",
        verdict=redacted(said),
        about=_about(case, events),
        notes=[redacted(note) for note in (*evidence, *case.notes, *filter(None, (why_no_events, why_no_runs)))],
        traceback=clean((failure.traceback if failure else "").splitlines(), most=200),
        outputs=_outputs(case),
        events=[redacted(line) for line in _event_lines(events)],
        resources=_resources(case),
        compared=_compared(before, record),
        changes=_changes(before, record, case.stage),
        version_changes=_version_changes(before, record),
        versions=sorted((record.versions or ours).items()),
        place=[(name, redacted(_short(value))) for name, value in record.place.items() if value not in (None, [], {})],
        commands=_commands(case),
        log=str(case.log or f"clipworks logs {shlex.quote(record.name)} --stage {case.stage}{_on(case)}"),
    )


def last_good(record: RunRecord, runs: Iterable[RunRecord]) -> RunRecord | None:
    """The newest run of the same recipe that finished before this one began."""
    name = record.recipe.get("name")
    good = [
        one for one in runs
        if one.state == "finished" and one.recipe.get("name") == name and one.started < record.started
    ]  # fmt: skip
    return max(good, key=lambda one: one.started, default=None)


def _tried(read: Any, otherwise: Any) -> tuple[Any, str]:
    """What a read gives; where storage itself is what failed, the page says so and goes without."""
    try:
        return read(), ""
    except StorageError as error:
        return otherwise, str(error)


def _events_uri(case: Case) -> str:
    stage = case.record.stages.get(case.stage)
    return storage.join(storage.normalise(case.root), ".events", f"{stage.artifact if stage else case.stage}.jsonl")


def _verdict(case: Case) -> tuple[str, list[str]]:
    if case.failure is None:
        said, evidence = verdict(case.ending)
        return f"{case.stage} {said}", evidence
    killed = [f"{n} processes killed for memory during the run ({where})" for where, n in case.ending.killed.items()]
    first = next(iter(clean(case.failure.message.splitlines(), most=10_000)[:1]), "")
    return f"{case.failure.error}: {first}" if first else case.failure.error, killed


def _about(case: Case, events: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Stage, kind, where: what is named here is what to look at first."""
    record, stage = case.record, case.record.stages.get(case.stage)
    spec = record.recipe.get("stages", {}).get(case.stage, {})
    facts = dict(case.failure.facts) if case.failure else {}
    if case.failure and case.failure.where and not case.failure.where.startswith("rank "):
        facts["where"] = case.failure.where
    began = next((event["time"] for event in events if event["event"] == "started"), None)
    ended = (case.failure.time if case.failure else 0.0) or record.ended or time.time()
    rows = [
        ("stage", case.stage),
        ("kind", spec.get("kind", "?")),
        *((name, facts.pop(name)) for name in _FACT_ORDER if name in facts),
        *sorted(facts.items()),
        ("artifact to be", stage.artifact if stage else None),
        ("run", record.name),
        ("recipe", record.recipe.get("name")),
        ("root", case.root),
        ("failed", time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(ended))),
        ("after", duration(ended - began) if began is not None and ended >= began else None),
        ("image", record.image),
        ("code", record.code),
    ]
    return [(name, redacted(str(value))) for name, value in rows if value]


def _outputs(case: Case) -> dict[str, list[str]]:
    """Whose last lines there are: every rank or pod, and the log of the run."""
    found = {name: clean(lines) for name, lines in (case.failure.last_lines if case.failure else {}).items()}
    if case.log is not None:
        found |= _log_lines(case.log)
        if not (case.failure and case.failure.last_lines):
            found |= _ray_lines(case, case.log.parent / RAY_LOGS)
    return {name: lines for name, lines in found.items() if lines}


def _log_lines(log: Path) -> dict[str, list[str]]:
    """What the last step wrote, without kfp's own words around it; the end of the log where that is not to be told."""
    lines = tail_lines(log, most=100_000)
    begins = next((n for n in range(len(lines) - 1, -1, -1) if "Executing task '" in lines[n]), None)
    if begins is None:
        return {"log of the run": lines[-_LOG_LINES:]}
    header = next((n for n in range(begins, len(lines)) if lines[n].strip() == "}" and lines[n][:1] == "}"), begins)
    ends = next((n for n in range(header, len(lines)) if _STEP_END.search(lines[n]) or _is_top(lines, n)), len(lines))
    return {"output of the stage": lines[header + 1 : ends][-_LOG_LINES:]}


def _is_top(lines: Sequence[str], number: int) -> bool:
    """True where the traceback of the whole step begins, which the page has already."""
    return lines[number].startswith("Traceback (most") and '"<frozen runpy>"' in "".join(lines[number + 1 : number + 2])


def _ray_lines(case: Case, folder: Path) -> dict[str, list[str]]:
    """What Ray's workers wrote, under the rank that each of them was, where the ranks wrote down who they are."""
    ranks: dict[str, str] = {}
    for note in _tried(lambda: _rank_notes(case), [])[0]:
        ranks |= {Path(path).name: f"rank {note['rank']}" for path in note["output"]}
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*"), key=lambda path: (ranks.get(path.name, "~"), path.name)):
        name = ranks.get(path.name, f"Ray: {path.name}")
        found[name] = [*found.get(name, []), *tail_lines(path)]
    return found


def _rank_notes(case: Case) -> list[dict[str, Any]]:
    stage = case.record.stages.get(case.stage)
    state = storage.join(storage.normalise(case.root), ".partial", f"{stage.artifact if stage else case.stage}.state")
    names = [name for name, _ in storage.list_files(state) if name.startswith("rank-")]
    return [storage.read_json(storage.join(state, name)) for name in names]


def _event_lines(events: Sequence[dict[str, Any]]) -> list[str]:
    """The last events in words, each with the seconds before the last one."""
    last = events[-1]["time"] if events else 0.0
    shown = [(event, _event_text(event)) for event in events]
    return [f"{event['time'] - last:+8.1f} s  {text}" for event, text in shown if text][-_MOST_EVENTS:]


def _event_text(event: dict[str, Any]) -> str:
    kind = event["event"]
    if kind == "progress":
        return "  ".join(filter(None, [progress_text(event), event.get("message", "")]))
    if kind == "metrics":
        return f"step {event['step']}: {metrics_text(event['values'])}"
    if kind == "message":
        return str(event["message"])
    if kind == "failed":
        return f"failed: {event.get('error', '')}: {str(event.get('message', '')).partition(chr(10))[0]}"
    return "started" if kind == "started" else ending_text(event) if kind in ("finished", "reused") else ""


def _resources(case: Case) -> list[tuple[str, str]]:
    """What the failed process saw; of one that was killed, what this machine has now."""
    found, ending = case.failure.resources if case.failure else None, case.ending
    rows: list[tuple[str, str]] = []
    if found is None and case.on is None:
        found = look(case.root).model_copy(update={"process_peak_bytes": None, "children_peak_bytes": None})
        rows.append(("seen", "afterwards: the failed process did not say"))
    if found is not None:
        rows += [
            ("CPUs", str(found.cpus)),
            ("memory available", _size(found.memory_available_bytes)),
            ("memory limit of the container", _size(found.memory_limit_bytes)),
            ("most memory of the container", _size(found.memory_peak_bytes)),
            ("most memory of the failed process", _size(found.process_peak_bytes)),
            ("most memory of one of its children", _size(found.children_peak_bytes)),
            *((f"free in {folder}", _size(free)) for folder, free in found.free_disk_bytes.items()),
            *(("GPU", gpu) for gpu in found.gpus),
            *((f"killed for memory so far ({where})", str(count)) for where, count in found.oom_kills.items()),
        ]
    if ending.most:
        rows.append(("most memory of the run's processes", _size(ending.most_bytes)))
        rows += [(f"- {one.name} ({one.pid})", _size(one.resident_bytes)) for one in ending.most]
    return [(name, value) for name, value in rows if value]


def _size(size: int | None) -> str:
    return "" if not size else f"{size / _GB:.2f} GB"


def _compared(before: RunRecord | None, record: RunRecord) -> str:
    if before is None:
        return f"no earlier run of recipe {record.recipe.get('name')!r} finished below this root"
    return f"run {before.name}, of {time.strftime('%Y-%m-%d %H:%M', time.localtime(before.started))}"


def _changes(before: RunRecord | None, record: RunRecord, stage: str) -> list[tuple[str, str, str]]:
    """Recipe fields that differ from the last good run; those of the stage that failed first."""
    if before is None:
        return []
    differences = recipe_diff(before.recipe, record.recipe)
    own = f"stages.{stage}"
    first = sorted(differences, key=lambda one: not (one.path == own or one.path.startswith(f"{own}.")))
    return [(one.path, *_values(one)) for one in first[:_MOST_CHANGES]]


def _values(one: Difference) -> tuple[str, str]:
    return redacted(_short(one.old)), redacted(_short(one.new))


def _version_changes(before: RunRecord | None, record: RunRecord) -> list[tuple[str, str, str]]:
    if before is None:
        return []
    names = sorted({*before.versions, *record.versions})
    pairs = [(name, before.versions.get(name, ABSENT), record.versions.get(name, ABSENT)) for name in names]
    pairs += [
        ("image", before.image or ABSENT, record.image or ABSENT),
        ("code", before.code or ABSENT, record.code or ABSENT),
    ]
    return [(name, old, new) for name, old, new in pairs if old != new]


def _commands(case: Case) -> list[tuple[str, str]]:
    run, root = shlex.quote(case.record.name), shlex.quote(case.root)
    where = _on(case) or f" --root {root}"
    return [
        ("retry only this stage", f"clipworks retry {run} --stage {case.stage}{where}"),
        ("go on with the whole run", case.again),
    ]


def _on(case: Case) -> str:
    return f" --on {shlex.quote(case.on)}" if case.on else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:157] + "..."


def save(page: PostMortem, case: Case, fallback: Path | None) -> str:
    """Write the page as HTML and text; return where the HTML is. Where the root fails, it goes to `fallback`.

    Raises:
        StorageError: the root cannot be written, and there is no other place.
    """
    from pipelines.failures.page import as_html, as_text

    files = {f"{case.stage}.txt": as_text(page), f"{case.stage}.html": as_html(page)}
    folder = storage.join(run_folder(case.root, case.record.name), "postmortem")
    try:
        _write(folder, files)
    except StorageError as error:
        if fallback is None:
            raise
        folder = str(fallback)
        noted = page._replace(notes=[*page.notes, f"not written where it belongs: {redacted(str(error))}"])
        _write(folder, {f"{case.stage}.txt": as_text(noted), f"{case.stage}.html": as_html(noted)})
    return storage.join(folder, f"{case.stage}.html")


def _write(folder: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        storage.write_bytes(storage.join(folder, name), text.encode())


def leave_page(case: Case, fallback: Path | None = None) -> str:
    """Make and write the page; one line that says where it is, or why there is none: the failure itself comes first."""
    try:
        return f"post-mortem: {save(make_postmortem(case), case, fallback)}"
    except Exception as error:  # noqa: BLE001 - a page that fails must not hide what it was to explain
        return f"post-mortem: none ({type(error).__name__}: {redacted(str(error)).partition(chr(10))[0]})"


def leave_cluster_page(record: RunRecord, stage: str, failure: Failure | None, on: str, notes: Sequence[str]) -> str:
    """The same for a stage of a run on a cluster, from what it left itself and what KFP and its pods told."""
    again = f"clipworks retry {shlex.quote(record.name)} --on {shlex.quote(on)}"
    root = str(record.place["root"])
    return leave_page(Case(root, record, stage, failure, Ending(), None, again, tuple(notes), on))
