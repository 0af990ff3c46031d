"""What a user can put right: one small tree of errors, each one line that names the thing, the value and the fix.

Everything in this tree ends a command with exit code 2 and no traceback. Anything else is a defect of ours and keeps
its traceback.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar


class UserError(Exception):
    """Bad input, a wrong setting or a missing thing that the user can put right."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, an override or a place file is wrong."""


class StorageError(UserError):
    """A path or bucket cannot be read or written."""


class ShardError(UserError):
    """Pairs or shards are missing, torn or not what they claim to be."""


class ArtifactError(UserError):
    """An artifact is missing, incomplete, of another kind or damaged."""


class BusyError(ArtifactError):
    """Another process is making this artifact now."""


class ModelError(UserError):
    """A tower, checkpoint, surgery or objective does not fit."""


class EvaluationError(UserError):
    """An evaluation or a report would be wrong: leaked pairs, unknown classes, metrics or labels, useless features."""


class BackendError(UserError):
    """A caption rewriter, a package or a service is not available."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, else an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


Raised = TypeVar("Raised", bound=BaseException)
_FACTS, _OUTPUT = "clipworks_facts", "clipworks_output"


def located(error: Raised, **facts: object) -> Raised:
    """Say where an error happened (rank, shard, uid, phase, step); what was said nearer to it stands. Returns it.

    The facts travel with the exception, also through pickle; `facts_of` reads them for the page of a failed stage.
    """
    said = {name: str(value) for name, value in facts.items() if value is not None}
    setattr(error, _FACTS, {**said, **getattr(error, _FACTS, {})})
    return error


@contextmanager
def locating(**facts: object) -> Iterator[None]:
    """Say of every error of the block where it happened."""
    try:
        yield
    except Exception as error:
        located(error, **facts)
        raise


def facts_of(error: BaseException) -> dict[str, str]:
    """Where an error happened, as far as it, its causes or the exception that Ray wrapped say."""
    found: dict[str, str] = {}
    for one in _with_causes(error):
        own: Mapping[str, str] = getattr(one, _FACTS, {})
        found = {**own, **found}
    return found


def with_output(error: Raised, lines: Mapping[str, list[str]]) -> Raised:
    """Attach the last lines that processes wrote (`rank 3` -> lines) for the page of a failed stage. Returns it."""
    setattr(error, _OUTPUT, dict(lines))
    return error


def output_of(error: BaseException) -> dict[str, list[str]]:
    """The lines that were attached to an error or to one of its causes."""
    return next((dict(getattr(one, _OUTPUT)) for one in _with_causes(error) if hasattr(one, _OUTPUT)), {})


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, and what Ray wrapped, each once."""
    seen: set[int] = set()
    queue: list[object] = [error]
    while queue:
        one = queue.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            queue += [one.__cause__, one.__context__, getattr(one, "cause", None)]
