"""The failure of a stage that ran in other pods, as the exception its task raises: what, where, and the last lines."""

import time
from collections.abc import Iterator
from typing import Any

from components.failure import Failure
from components.kube_api import KubeApi
from components.rayjob_state import end_reason, has_restarted, is_head, memory_hint, name_of
from data import errors
from data.errors import BackendError, UserError
from data.output import clean

_MOST_PODS, _MOST_LINES = 8, 40
_SHOWN_LINES = 25


class StageFailed(RuntimeError):  # noqa: N818 - what happened
    """A stage failed in another pod; `failure` holds all that is known of it."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


def as_error(failure: Failure, pods: list[dict[str, Any]], api: KubeApi) -> Exception:
    """The exception for what the stage itself left: a user's mistake stays the same one line."""
    if failure.user_error:
        kind = getattr(errors, failure.error, UserError)
        is_known = isinstance(kind, type) and issubclass(kind, UserError)
        error: Exception = (kind if is_known else UserError)(failure.message)
        error.__dict__["failure"] = failure
        return error
    whole = failure.model_copy(update={"last_lines": {**last_lines(pods, api), **failure.last_lines}})
    tail = "\n".join(failure.traceback.splitlines()[-_SHOWN_LINES:])
    return StageFailed(f"{failure.stage} failed in {failure.where}: {failure.error}\n{tail}", whole)


def lost(stage: str, why: str, pods: list[dict[str, Any]], api: KubeApi) -> StageFailed:
    """The exception for a stage that ended without a word: what became of its pods, and what they wrote last."""
    ended = [pod for pod in _by_interest(pods) if end_reason(pod)]
    told = [f"pod {name_of(pod)}: {end_reason(pod)}{memory_hint(pod)}" for pod in ended[:3]]
    message = "; ".join([why, *told])
    lines = last_lines(pods, api)
    failure = Failure(
        stage=stage, error=StageFailed.__name__, message=message, user_error=False,
        where=f"pod {name_of(ended[0])}" if ended else None, last_lines=lines, time=time.time(),
    )  # fmt: skip
    shown = next(iter(lines.items()), None)
    tail = f"\nthe last lines of {shown[0]}:\n" + "\n".join(shown[1][-_SHOWN_LINES:]) if shown else ""
    return StageFailed(message + tail, failure)


def last_lines(pods: list[dict[str, Any]], api: KubeApi) -> dict[str, list[str]]:
    """Pod -> end of its output, those that ended badly first; pods that are gone or silent are left out."""
    return dict(_last_lines(pods, api))


def _last_lines(pods: list[dict[str, Any]], api: KubeApi) -> Iterator[tuple[str, list[str]]]:
    for pod in _by_interest(pods)[:_MOST_PODS]:
        try:
            lines = api.log(name_of(pod), _MOST_LINES, previous=True) if has_restarted(pod) else []
            lines = lines or api.log(name_of(pod), _MOST_LINES)
        except BackendError as error:  # what is known of the failure must come out without the logs too
            yield name_of(pod), [f"(its log cannot be read: {error})"]
            return
        if cleaned := clean(lines, _MOST_LINES):
            yield name_of(pod), cleaned


def _by_interest(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that ended badly, then the head, then the others by name."""
    return sorted(pods, key=lambda pod: (end_reason(pod) is None, not is_head(pod), name_of(pod)))
