"""Follows one RayJob until its stage is done: what it says, how long it waits, how often its head was lost.

An answer of the API server may be late, empty or older than the one before, so no single one decides: what the root
holds does, and a status that says the end must say so for a while.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from components.failure import Failure
from components.kube_api import KubeApi
from components.rayjob import JOB
from components.rayjob_failure import StageFailed, as_error, lost
from components.rayjob_state import RUNS, State, head_starts, is_stuck, name_of, state_of, summary, why_waiting
from components.stage import Task
from data import storage
from data.artifacts import find_fingerprint
from data.errors import BackendError, StorageError
from data.events import Events
from data.lines import EventTail, Lines
from data.place import RayJob
from data.spec import digest

_POLL_SECONDS = 3.0  # KubeRay itself looks so often
_SETTLE_POLLS = 4  # a status that says the end may be seen before what the stage wrote last
_STUCK_SECONDS = 300.0  # a name or a secret that is wrong now is rarely right later
_ROOT_SECONDS = 900.0  # a bucket that is away
T = TypeVar("T")


class Stage(NamedTuple):
    """The stage to run, and what it will be."""

    task: Task
    fingerprint: str

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.task.name

    @property
    def root(self) -> str:
        """Where the artifact goes."""
        return storage.normalise(self.task.place.root)

    @property
    def rayjob(self) -> RayJob:
        """How its RayJob is made."""
        assert self.task.place.rayjob
        return self.task.place.rayjob

    def made(self) -> str | None:
        """The artifact's URI, if it is there."""
        found = find_fingerprint(self.root, self.fingerprint)
        return found.uri if found else None

    def likeness(self) -> str:
        """What two RayJobs have in common when a task may wait for the other's: the artifact and how it is made."""
        return digest({"fingerprint": self.fingerprint, "place": self.task.place.model_dump(mode="json")})

    def task_uri(self) -> str:
        """Where the process inside finds what to do: the same place for the same task, so that a retry may write it."""
        name = f"{self.name}-{digest(self.task.model_dump(mode='json'))[:12]}.json"
        return storage.join(self.root, ".tasks", name)

    def failure_uri(self, rayjob: str) -> str:
        """Where the process inside a RayJob leaves why it failed."""
        return storage.join(self.root, ".tasks", f"{rayjob}.failure.json")


class Voice:
    """The task's log, and the stage's events: what the launcher says goes to both, what the stage says to the log."""

    def __init__(self, stage: str, events: Events, say: Callable[[str], None]) -> None:
        assert events.uri
        self._stage, self._events, self._lines = stage, events, Lines(say)
        self._tail = EventTail(events.uri, since=0.0)  # not by time: clocks of pods differ
        deque(self._tail.read(), maxlen=0)  # what is there is of earlier runs

    def tell(self, text: str) -> None:
        """Say something."""
        self._lines.show({"event": "message", "stage": self._stage, "message": text})
        self._emit("message", message=text)

    def failed(self, error: str, message: str) -> None:
        """Say that the stage failed, for one that could not say it itself."""
        self._emit("failed", error=error, message=message)

    def forward(self) -> set[str]:
        """Write what the stage said since the last call; return the kinds of events that were among it."""
        new = [event for event in self._tail.read() if event.get("by") != "launcher"]
        for event in new:
            self._lines.show(event)
        return {str(event["event"]) for event in new}

    def _emit(self, event: str, **fields: Any) -> None:
        self._events.emit(event, **fields, by="launcher")
        self._events.flush()


class Watch:
    """One RayJob, from its first status to the artifact or to the reason why there is none."""

    def __init__(self, stage: Stage, name: str, api: KubeApi, voice: Voice) -> None:
        self._stage, self._name, self._api, self._voice = stage, name, api, voice
        self._line = self._cluster = ""
        self._heads: dict[str, int] = {}
        self._waited = self._stuck = 0.0
        self._has_started = self._may_be_over = False
        self._polls_over = 0
        self._root_is_away = 0.0  # since when
        self._pods: dict[str, dict[str, Any]] = {}  # as last seen: a lost cluster takes its own along
        self._last_poll = time.monotonic()

    def until_done(self) -> str | None:
        """The artifact's URI, or None when the RayJob is gone without one.

        Raises:
            UserError: as the stage raised it; pods that do not start.
            StageFailed: all else.
        """
        while True:
            rayjob = self._api.get(self._name)
            if rayjob is None:
                return self._made()
            state, pods = state_of(rayjob), self._api.pods(f"{JOB}={self._name}")
            self._pods |= {name_of(pod): pod for pod in pods}
            said = self._of_root(self._voice.forward)
            self._may_be_over |= bool((said or set()) & {"finished", "reused", "failed"})
            if uri := self._outcome(state):
                return uri
            self._count(state, pods)
            self._show(state, pods)
            self._give_up_waiting(state, pods)
            time.sleep(_POLL_SECONDS)

    def _outcome(self, state: State) -> str | None:
        """The artifact's URI if it is there; raise what the stage left, or what KubeRay says when that is final."""
        if not (self._may_be_over or state.is_over or state.job in ("FAILED", "STOPPED", "SUCCEEDED")):
            return None
        if uri := self._made():
            return uri
        if failure := self._of_root(self._left_failure):
            raise as_error(failure, list(self._pods.values()), self._api)
        if state.deployment == "ValidationFailed":
            raise BackendError(f"KubeRay refuses RayJob {self._name}: {state.message}; it needs KubeRay 1.7 or later")
        self._polls_over = self._polls_over + 1 if state.is_over else 0
        if self._polls_over > _SETTLE_POLLS:
            raise self._lost(_verdict(self._name, state))
        return None

    def _made(self) -> str | None:
        return self._of_root(self._stage.made)

    def _left_failure(self) -> Failure | None:
        uri = self._stage.failure_uri(self._name)
        return Failure.model_validate(storage.read_json(uri)) if storage.exists(uri) else None

    def _of_root(self, read: Callable[[], T | None]) -> T | None:
        """What the root says, or None while it cannot be read: the stage, which reads it too, may outlive that."""
        try:
            found = read()
        except StorageError as error:
            self._root_is_away = self._root_is_away or time.monotonic()
            if time.monotonic() - self._root_is_away > _ROOT_SECONDS:
                raise
            self._tell_once(f"cannot read the root, trying again ({error})")
            return None
        self._root_is_away = 0.0
        return found

    def _count(self, state: State, pods: list[dict[str, Any]]) -> None:
        """Keep the clocks: only time in which pods could have started counts, and a new cluster begins anew."""
        now, before = time.monotonic(), self._last_poll
        self._last_poll = now
        if state.cluster and state.cluster != self._cluster:
            self._cluster, self._has_started, self._waited = state.cluster, False, 0.0
        self._has_started |= state.job in RUNS
        is_waiting = not self._has_started and not state.is_suspended and not state.is_over
        self._waited += now - before if is_waiting else 0.0
        self._stuck = self._stuck + now - before if is_waiting and any(map(is_stuck, pods)) else 0.0
        for uid, restarts in head_starts(pods):
            self._heads[uid] = max(restarts, self._heads.get(uid, 0))

    def _show(self, state: State, pods: list[dict[str, Any]]) -> None:
        is_behind = self._has_started and not state.job and not state.is_suspended and state.deployment != "Retrying"
        if not is_behind and not state.is_over:
            self._tell_once(summary(state, pods, self._stage.task.pods + 1, self._stage.rayjob.queue))

    def _tell_once(self, line: str) -> None:
        if line != self._line:
            self._line = line
            self._voice.tell(line)

    def _give_up_waiting(self, state: State, pods: list[dict[str, Any]]) -> None:
        """Raise where more of the same is of no use."""
        rayjob = self._stage.rayjob
        losses = sum(restarts + 1 for restarts in self._heads.values()) - 1
        if losses > rayjob.restarts:
            raise self._lost(
                f"RayJob {self._name}: its head was lost {losses} times; ray.restarts allows {rayjob.restarts}"
            )
        if self._waited <= rayjob.start_seconds and self._stuck <= _STUCK_SECONDS:
            return
        names = (self._name, f"rayjob-{self._name}", state.cluster)
        reasons = list(why_waiting(pods, self._api.events(), names))[:3]
        if not reasons and state.deployment == "Running":
            reasons = ["KubeRay cannot submit it: may the operator reach port 8265 of the head? (network policy)"]
        raise BackendError(
            f"RayJob {self._name}: did not start within {min(self._waited, rayjob.start_seconds):.0f} s: "
            f"{'; '.join(reasons) or 'no pods were made'}; change `ray` of the cluster file, or raise ray.start_seconds"
        )

    def _lost(self, why: str) -> StageFailed:
        self._of_root(self._voice.forward)
        error = lost(self._stage.name, why, list(self._pods.values()), self._api)
        self._voice.failed(type(error).__name__, error.failure.message)
        return error


def _verdict(name: str, state: State) -> str:
    """What KubeRay says of a RayJob that is over without an artifact and without a word from the stage."""
    if state.claims_success:
        return f"RayJob {name}: Ray reports success, but the root has no artifact"
    if state.job == "STOPPED":
        return f"RayJob {name}: its Ray job was stopped by somebody"
    first = (state.message.strip().splitlines() or ["no reason was given"])[0]
    return f"RayJob {name}: {state.reason or state.job or state.deployment}: {first[:300]}"
