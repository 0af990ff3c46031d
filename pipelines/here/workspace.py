"""Where a run on this machine keeps its logs: beside the artifacts, or in the user's cache if those are in a bucket."""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from data import storage
from data.errors import RecipeError, StorageError
from data.spec import digest
from pipelines.here.evidence import ENDING_FILE
from pipelines.runs import NAME

RAY_LOGS = "ray"  # folder in a run's logs: the end of what Ray's workers wrote


class Workspace(NamedTuple):
    """Local folders and files of one run."""

    base: Path
    run: str

    @property
    def logs(self) -> Path:
        """Folder of this run's logs."""
        return self.base / ".logs" / self.run

    @property
    def log(self) -> Path:
        """What kfp and the stages wrote to their output."""
        return self.logs / "kfp.log"

    @property
    def job(self) -> Path:
        """What the child process is to do."""
        return self.logs / "job.json"

    @property
    def failure(self) -> Path:
        """Appears when a stage fails."""
        return self.logs / "failure.json"

    @property
    def ray(self) -> Path:
        """Appears when the run's Ray is up."""
        return self.logs / "ray.json"

    @property
    def kfp(self) -> Path:
        """kfp's pipeline root: small strings only."""
        return self.base / ".kfp" / self.run

    @property
    def wandb(self) -> Path:
        """Folder of W&B's offline runs."""
        return self.base / "wandb"


def open_workspace(root: str, run: str | None, recipe_name: str) -> Workspace:
    """Make the folders of a run.

    Raises:
        StorageError: they cannot be written.
        RecipeError: the run's name cannot be a file name.
    """
    name = run or f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not NAME.fullmatch(name):
        raise RecipeError(f"--name {name!r}: use at most 80 letters, digits, `.`, `_` and `-`, a letter or digit first")
    workspace = Workspace(base_of(root), name)
    try:
        workspace.logs.mkdir(parents=True, exist_ok=True)
        for leftover in (workspace.failure, workspace.ray, workspace.logs / ENDING_FILE):
            leftover.unlink(missing_ok=True)
        shutil.rmtree(workspace.logs / RAY_LOGS, ignore_errors=True)
        workspace.log.write_text("")
    except OSError as error:
        raise StorageError(f"{root}: cannot write here: {error.strerror}; choose another --root") from error
    return workspace


def log_path(root: str, run: str) -> Path:
    """Where a run on this machine writes its log."""
    return Workspace(base_of(root), run).log


def wandb_folder(root: str) -> Path:
    """Where runs of this root on this machine write their W&B runs."""
    return Workspace(base_of(root), "").wandb


def base_of(root: str) -> Path:
    """Local folder for the logs of runs below a root."""
    if storage.is_local(root):
        return Path(storage.normalise(root))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "clipworks" / digest(storage.normalise(root))[:12]
