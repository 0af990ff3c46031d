"""What a user can put right: one small tree of errors, each one line that names the thing, the value and the fix.

Everything in this tree ends a command with exit code 2 and no traceback. Anything else is a defect of ours and keeps
its traceback.
"""

import difflib
from collections.abc import Iterable


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
