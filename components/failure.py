"""What a failed stage leaves for whoever watches the run: plain values, written where the watcher looks."""

import os
import time
import traceback
from pathlib import Path

from pydantic import Field

from components.resources import Resources, look
from data import storage
from data.errors import StorageError, UserError, facts_of, output_of
from data.output import redacted
from data.spec import Spec

FAILURE_FILE = "CLIPWORKS_FAILURE_FILE"  # local file for a run on this machine, whose root may be what failed


class Failure(Spec):
    """Why a stage failed."""

    stage: str
    error: str = Field(description="type of the exception")
    message: str
    user_error: bool = Field(description="something the user can put right: exit code 2")
    traceback: str = ""
    where: str | None = Field(default=None, description="pod or process, e.g. `rank 3` or `pod x-worker-1`")
    last_lines: dict[str, list[str]] = Field(default_factory=dict, description="rank or pod -> end of its output")
    facts: dict[str, str] = Field(
        default_factory=dict, description="rank, shard, uid, phase, step: what the error named"
    )
    resources: Resources | None = Field(default=None, description="of the process that failed, when it did")
    time: float = Field(default=0.0, description="seconds since 1970")


def failure_of(stage: str, error: BaseException, root: str | None = None) -> Failure:
    """What an exception says, and what its process had left; `root` is where its artifacts go."""
    carried = getattr(error, "failure", None)  # of a stage that failed in another pod, which knows more
    if isinstance(carried, Failure):
        return carried
    facts = facts_of(error)
    return Failure(
        stage=stage, error=type(error).__name__, message=redacted(str(error)), user_error=isinstance(error, UserError),
        traceback=redacted("".join(traceback.format_exception(error))),
        where=f"rank {facts['rank']}" if "rank" in facts else None,
        last_lines=output_of(error), facts=facts, resources=_resources(root or "."), time=time.time(),
    )  # fmt: skip


def _resources(root: str) -> Resources | None:
    try:
        return look(root)
    except OSError:  # a machine that cannot be looked at must not hide what failed first
        return None


def failure_uri(root: str, run: str, stage: str) -> str:
    """Where a stage of a run leaves its failure."""
    return storage.join(storage.normalise(root), ".runs", run, "failures", f"{stage}.json")


def leave(failure: Failure, root: str, run: str) -> None:
    """Write the failure where the watcher looks; a root that cannot be written must not hide what failed first."""
    text = failure.model_dump_json()
    local = os.environ.get(FAILURE_FILE)
    if local is not None:
        temporary = Path(f"{local}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(local)
    if run:
        try:
            storage.write_bytes(failure_uri(root, run, failure.stage), text.encode())
        except StorageError:
            if local is None:
                raise
