"""What is known of a run: a small record in the root it ran in, written when it starts and again when it ends.

`.runs/<run>/run.json`; beside it what a failed stage left (`failures/<stage>.json`, see components/failure.py).
"""

import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from data import storage
from data.errors import RecipeError, StorageError, nearest
from data.spec import Spec

State = Literal["running", "finished", "failed", "cancelled"]
_READERS = 16  # a record in a bucket is two round trips: hundreds of runs are read side by side
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class StageOfRun(Spec):
    """One stage of a run: what it makes, and whether that was there before."""

    fingerprint: str | None
    artifact: str | None = Field(description="folder below the root")
    reused: bool


class Submission(Spec):
    """Where the run was handed in."""

    cluster: dict[str, Any]
    run_id: str
    experiment_id: str | None = None
    tasks: dict[str, str] = Field(default_factory=dict, description="KFP's name of a task -> stage, of those handed in")
    submitted: float | None = Field(default=None, description="seconds since 1970; a retry is handed in again")


class RunRecord(Spec):
    """One run. Holds no secret; hosts and paths are in `place` and `submission` only."""

    name: str
    state: State
    started: float = Field(description="seconds since 1970")
    ended: float | None = None
    command: tuple[str, ...] = Field(description="what the user typed")
    recipe: dict[str, Any]
    place: dict[str, Any]
    stages: dict[str, StageOfRun]
    versions: dict[str, str] = Field(description="of the packages here, and `commit` of clipworks where it is known")
    image: str | None = Field(default=None, description="container image, for runs in containers")
    code: str | None = Field(default=None, description="archive used in place of the image's packages")
    submission: Submission | None = None
    group: str | None = Field(default=None, description="the sweep it belongs to")
    failed_stage: str | None = None
    process: str | None = Field(default=None, description="who runs it (pipelines/here/liveness.py); None: not known")

    def ended_as(self, state: State, failed_stage: str | None = None) -> "RunRecord":
        """The record of the run that ended now."""
        return self.model_copy(update={"state": state, "ended": time.time(), "failed_stage": failed_stage})


class Unreadable(NamedTuple):
    """A folder among the runs whose record cannot be read."""

    name: str
    reason: str


def run_folder(root: str, run: str) -> str:
    """Folder of a run's record."""
    return storage.join(storage.normalise(root), ".runs", run)


def write_run(root: str, record: RunRecord) -> None:
    """Write a run's record, atomically."""
    text = record.model_dump_json(indent=1) + "\n"  # in its own order: that of a recipe's phases is part of it
    storage.write_bytes(storage.join(run_folder(root, record.name), "run.json"), text.encode())


def run_names(root: str) -> list[str]:
    """Names of the runs below a root, in the order of their names."""
    folder = storage.join(storage.normalise(root), ".runs")
    return [name for name in storage.list_folders(folder) if storage.exists(storage.join(folder, name, "run.json"))]


def read_run(root: str, run: str) -> RunRecord:
    """Read a run's record.

    Raises:
        RecipeError: there is no such run, or its record cannot be read.
    """
    uri = storage.join(run_folder(root, run), "run.json")
    if not NAME.fullmatch(run) or not storage.exists(uri):
        known = run_names(root)
        hint = nearest(run, known) or f"; runs are {', '.join(known) or 'none'}"
        raise RecipeError(f"run {run!r}: no such run below {root}{hint}")
    try:
        return RunRecord.model_validate(storage.read_json(uri))
    except ValidationError as error:
        raise RecipeError(f"{uri}: not a readable run record; remove {storage.parent_of(uri)}") from error


def read_runs(root: str) -> list[RunRecord]:
    """Every run below a root that can be read, oldest first."""
    return scan_runs(root)[0]


def scan_runs(root: str) -> tuple[list[RunRecord], list[Unreadable]]:
    """Every run below a root, oldest first, and the records that are broken or of another make, with the reason."""
    folder = storage.join(storage.normalise(root), ".runs")
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda name: _look(folder, name), storage.list_folders(folder)))
    records = sorted((one for one in found if isinstance(one, RunRecord)), key=lambda record: record.started)
    return records, [one for one in found if isinstance(one, Unreadable)]


def _look(folder: str, name: str) -> RunRecord | Unreadable | None:
    """The record in a folder; None where there is none, e.g. only what a failed stage left."""
    uri = storage.join(folder, name, "run.json")
    try:
        if not storage.exists(uri):
            return None
        record = RunRecord.model_validate(storage.read_json(uri))
    except ValidationError as error:
        return Unreadable(name, _first_problem(error))
    except StorageError as error:
        return Unreadable(name, str(error))
    return record if record.name == name else Unreadable(name, f"says that it is run {record.name!r}")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'run.json'}: {first['msg'].lower()}"


def versions() -> dict[str, str]:
    """Versions of what runs here."""
    from data.artifacts import package_versions

    return {**package_versions(), **_commit()}


def _commit() -> Mapping[str, str]:
    """The commit of a checkout, with a mark where files differ from it; nothing for an installed package."""
    import subprocess
    from pathlib import Path

    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return {}
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.stdout.strip() + ("+changed" if changed.stdout.strip() else "")}
