"""What a RayJob, its pods and their events say, in words: pure functions of what the API server returned."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Values = dict[str, Any]
RUNS = frozenset({"RUNNING", "SUCCEEDED", "FAILED", "STOPPED"})  # of jobStatus: the stage's own process has begun
_OVER = frozenset({"Complete", "Failed", "ValidationFailed"})  # of jobDeploymentStatus
_QUIET = frozenset({"ContainerCreating", "PodInitializing"})  # what every pod says on its way
_STUCK = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
)
_KILLED_FOR_MEMORY = 137


class State(NamedTuple):
    """Where a RayJob stands. All are empty until KubeRay has seen it, and in answers that are behind."""

    deployment: str
    job: str
    cluster: str
    reason: str
    message: str
    is_suspended: bool

    @property
    def is_over(self) -> bool:
        """KubeRay does nothing more with it."""
        return self.deployment in _OVER

    @property
    def claims_success(self) -> bool:
        """The stage's process ended well, says Ray."""
        return self.deployment == "Complete" and self.job == "SUCCEEDED"


def state_of(rayjob: Values) -> State:
    """Read a RayJob."""
    status, spec = rayjob.get("status") or {}, rayjob.get("spec") or {}
    deployment = status.get("jobDeploymentStatus", "")
    return State(
        deployment, status.get("jobStatus", ""), status.get("rayClusterName", ""), status.get("reason", ""),
        status.get("message", ""),
        bool(spec.get("suspend")) or deployment in ("Suspended", "Suspending"),
    )  # fmt: skip


def name_of(thing: Values) -> str:
    """Name of an object."""
    return str(thing["metadata"]["name"])


def is_head(pod: Values) -> bool:
    """True for the pod that leads."""
    return bool(pod["metadata"].get("labels", {}).get("ray.io/node-type") == "head")


def is_ready(pod: Values) -> bool:
    """True when it says so."""
    conditions = pod.get("status", {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def head_starts(pods: Iterable[Values]) -> set[tuple[str, int]]:
    """Every start of a head that is seen here: a new pod, or a container that was started again."""
    heads = (pod for pod in pods if is_head(pod))
    return {(pod["metadata"]["uid"], one.get("restartCount", 0)) for pod in heads for one in _containers(pod)}


def _containers(pod: Values) -> list[Values]:
    """State of the containers that are not there to wait only."""
    found: list[Values] = pod.get("status", {}).get("containerStatuses") or []
    return found


def waiting_reason(pod: Values) -> str | None:
    """Why a pod does not run yet, e.g. `Unschedulable: 0/3 nodes are available`; None where all is as it should be."""
    status = pod.get("status", {})
    for one in status.get("conditions") or []:
        if one["type"] == "PodScheduled" and one["status"] == "False":
            return _said(one.get("reason", "Unschedulable"), one.get("message"))
    for one in [*(status.get("initContainerStatuses") or []), *_containers(pod)]:
        waiting = (one.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in _QUIET:
            return _said(waiting.get("reason", "waiting"), waiting.get("message"))
    return None


def is_stuck(pod: Values) -> bool:
    """True where only a change of the image's name, of a secret or of a registry would help."""
    return (waiting_reason(pod) or "").partition(":")[0] in _STUCK


def end_reason(pod: Values) -> str | None:
    """How a pod or its last container ended against its will, e.g. `OOMKilled (exit code 137)`."""
    status = pod.get("status", {})
    if status.get("reason"):  # Evicted, NodeLost, DeadlineExceeded, Preempting
        return _said(status["reason"], status.get("message"))
    for condition in status.get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return _said(condition.get("reason", "disrupted"), condition.get("message"))
    for one in _containers(pod):
        for state in (one.get("state") or {}, one.get("lastState") or {}):
            ended = state.get("terminated")
            if ended and ended.get("exitCode"):
                return f"{ended.get('reason', 'Error')} (exit code {ended['exitCode']})"
    return None


def has_restarted(pod: Values) -> bool:
    """True where the log that tells most is that of the container before."""
    return any(one.get("restartCount", 0) for one in _containers(pod))


def memory_hint(pod: Values) -> str:
    """What to change for a pod that was killed for memory, else nothing."""
    reason = end_reason(pod) or ""
    if not reason.startswith("OOMKilled") and f"exit code {_KILLED_FOR_MEMORY}" not in reason:
        return ""
    return "; give ray.head more memory" if is_head(pod) else "; give ray.worker more memory"


def summary(state: State, pods: list[Values], desired: int, queue: str | None) -> str:
    """One line for the log; the same line as long as nothing has changed."""
    if state.is_suspended:
        return f"waits in queue {queue}" if queue else "is suspended"
    if state.job == "RUNNING" or state.is_over:
        return "runs"
    if state.deployment == "Retrying":
        return "its Ray cluster was lost; a new one is made"
    if state.deployment == "Running" and pods and all(map(is_ready, pods)):
        return "all pods run; KubeRay submits the stage"
    reasons = [f"{name_of(pod)}: {reason}" for pod in pods if (reason := waiting_reason(pod))]
    ready = sum(map(is_ready, pods))
    return "; ".join([f"{ready} of {desired} pods run", *sorted(reasons)[:3]])


def why_waiting(pods: list[Values], events: list[Values], names: Iterable[str]) -> Iterator[str]:
    """What keeps a RayJob from running: of its pods, then warnings about the objects that these names begin."""
    for pod in pods:
        if reason := waiting_reason(pod) or end_reason(pod):
            yield f"{name_of(pod)}: {reason}"
    prefixes = tuple(name for name in names if name)
    warnings = [event for event in events if event.get("type") == "Warning"]
    for event in sorted(warnings, key=_time_of, reverse=True):
        about = event.get("involvedObject", {}).get("name", "")
        if about.startswith(prefixes):
            yield f"{about}: {_said(event.get('reason', ''), event.get('message'))}"


def _time_of(event: Values) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _said(reason: str, message: str | None) -> str:
    text = " ".join((message or "").split())[:300]
    return f"{reason}: {text}" if text else reason
