"""What is known of a run: a small record in the root it ran in, written when it starts and again when it ends.

`.runs/<run>/run.json`; beside it what a failed stage left (`failures/<stage>.json`, see components/failure.py).
"""

import re
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from data import storage
from data.errors import RecipeError, nearest
from data.spec import Spec

State = Literal["running", "finished", "failed", "cancelled"]
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

    def ended_as(self, state: State, failed_stage: str | None = None) -> "RunRecord":
        """The record of the run that ended now."""
        return self.model_copy(update={"state": state, "ended": time.time(), "failed_stage": failed_stage})


def run_folder(root: str, run: str) -> str:
    """Folder of a run's record."""
    return storage.join(storage.normalise(root), ".runs", run)


def write_run(root: str, record: RunRecord) -> None:
    """Write a run's record, atomically."""
    storage.write_json(storage.join(run_folder(root, record.name), "run.json"), record.model_dump(mode="json"))


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
    """Every run below a root, oldest first."""
    return sorted((read_run(root, name) for name in run_names(root)), key=lambda record: record.started)


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
