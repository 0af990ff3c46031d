"""The end of a run on this machine whose stage failed: what the terminal shows, and the page that is left."""

import shlex
from collections.abc import Sequence
from typing import NoReturn

from components.failure import Failure
from data.errors import StorageError, UserError
from data.events import read_events
from pipelines.failures.postmortem import Case, leave_page
from pipelines.here.evidence import Ending, verdict
from pipelines.here.workspace import Workspace
from pipelines.planning.plan import StagePlan
from pipelines.runs import RunRecord

_LOG_LINES = 25


class StageError(UserError):
    """A stage failed; the message is all there is to say, the exit code tells whose fault it is."""

    def __init__(self, message: str, exit_code: int, stage: str | None = None) -> None:
        super().__init__(message)
        self.exit_code, self.stage = exit_code, stage


def fail(
    workspace: Workspace, record: RunRecord, plans: Sequence[StagePlan], code: int, ending: Ending, again: list[str]
) -> NoReturn:
    """Leave the page of the stage that failed, and raise StageError with what failed, where to look, how to go on."""
    found, root = workspace.failure, str(record.place["root"])
    failure = Failure.model_validate_json(found.read_text()) if found.exists() else None
    stage = failure.stage if failure else begun_stage(root, record, plans)
    hints = f"log: {workspace.log}\ncontinue: {shlex.join(again)}"
    if stage is not None:
        ended = record.ended_as("failed", stage)
        case = Case(root, ended, stage, failure, ending, workspace.log, shlex.join(again))
        hints = (
            f"log: {workspace.log}\n{leave_page(case, workspace.logs / 'postmortem')}\ncontinue: {shlex.join(again)}"
        )
    if failure is None:
        _without_a_word(workspace, code, ending, stage, hints)
    if failure.user_error:
        raise StageError(f"stage {failure.stage}: {failure.message}\n{hints}", 2, failure.stage)
    tail = "\n".join(failure.traceback.splitlines()[-_LOG_LINES:])
    raise StageError(f"stage {failure.stage} failed: {failure.error}\n{tail}\n{hints}", 1, failure.stage)


def _without_a_word(workspace: Workspace, code: int, ending: Ending, stage: str | None, hints: str) -> NoReturn:
    tail = "\n".join(workspace.log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    said, evidence = verdict(ending)
    if stage is None or ending.exit_code is None:
        raise StageError(f"the run ended without a word (exit {code}); the end of its log:\n{tail}\n{hints}", 1, stage)
    why = "".join(f"\n{line}" for line in evidence)
    raise StageError(f"stage {stage} {said}{why}\n{hints}", 1, stage)


def begun_stage(root: str, record: RunRecord, plans: Sequence[StagePlan]) -> str | None:
    """The stage that was begun since the run started and never ended: that of a process that was killed."""
    for plan in plans:
        if plan.artifact is not None:
            continue
        try:
            events = read_events(plan.events_uri(root))
        except StorageError:  # the place itself is lost: then nobody can say which it was
            return None
        kinds = [event["event"] for event in events if event["time"] >= round(record.started, 3)]
        if "started" in kinds and not {"finished", "failed", "reused"} & set(kinds[kinds.index("started") :]):
            return plan.name
    return None
