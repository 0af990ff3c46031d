"""What the Kubernetes API tells of a run's pods, where this machine can ask it: reasons, logs, RayJobs left behind.

Best effort by design: who may submit to KFP need not have a kubeconfig. What could not be asked is said, not hidden.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from components.rayjob import GROUP, PLURAL, RUN, STAGE, VERSION, label_value
from data.errors import BackendError
from pipelines.cluster.spec import Cluster

_TIMEOUTS = (3.0, 20.0)  # to connect, to answer
_KFP_RUN = "pipeline/runid"
_RAYJOBS = {"group": GROUP, "version": VERSION, "plural": PLURAL}


class PodState(NamedTuple):
    """One pod of a run."""

    namespace: str
    name: str
    stage: str
    container: str
    phase: str
    reason: str
    made: datetime


class Pods:
    """The pods of one cluster: tasks in KFP's namespace, RayJobs in ours."""

    def __init__(self, cluster: Cluster, client: Any) -> None:
        self.namespace = cluster.namespace
        self._namespaces = dict.fromkeys((cluster.task_namespace(), cluster.namespace))
        self._client = client

    def of(self, run: str, run_id: str) -> list[PodState]:
        """Pods of this submission of a run, oldest first: those of its tasks and of its RayJobs.

        A namespace that may not be read is left out, unless that leaves nothing.
        """
        from kubernetes.client import ApiException, CoreV1Api

        found, refused = [], []
        for namespace in self._namespaces:
            try:
                answer = CoreV1Api(self._client).list_namespaced_pod(
                    namespace, label_selector=f"{RUN}={label_value(run)}", _request_timeout=_TIMEOUTS
                )
            except ApiException as error:
                refused.append(error)
            else:
                found += [pod for pod in answer.items if pod.metadata.labels.get(_KFP_RUN, run_id) == run_id]
        if refused and not found:
            raise refused[0]
        return sorted(map(_state, found), key=lambda pod: (pod.made, pod.name))

    def log(self, pod: PodState) -> str:
        """What a pod's main container wrote so far."""
        from kubernetes.client import CoreV1Api

        answer = CoreV1Api(self._client).read_namespaced_pod_log(
            pod.name, pod.namespace, container=pod.container, _preload_content=False, _request_timeout=_TIMEOUTS
        )
        return bytes(answer.data).decode("utf-8", "replace")

    def delete_rayjobs(self, run: str) -> list[str]:
        """Delete the RayJobs of a run, with all that they own; return their names."""
        from kubernetes.client import ApiException, CustomObjectsApi

        api = CustomObjectsApi(self._client)
        where = {**_RAYJOBS, "namespace": self.namespace, "_request_timeout": _TIMEOUTS}
        found = api.list_namespaced_custom_object(**where, label_selector=f"{RUN}={label_value(run)}")
        names = [str(item["metadata"]["name"]) for item in found["items"]]
        for name in names:
            try:
                api.delete_namespaced_custom_object(**where, name=name, propagation_policy="Foreground")
            except ApiException as error:
                if error.status != 404:  # its launcher was faster
                    raise
        return names


class UnreachableError(BackendError):
    """The Kubernetes API cannot be asked from here; the message is the reason."""


def reach(cluster: Cluster) -> Pods:
    """The pods of a cluster, if this machine has a kubeconfig for it, or is a pod of it.

    Raises:
        UnreachableError: there is none, or it cannot be read.
    """
    from kubernetes import config
    from kubernetes.client import ApiClient, Configuration

    settings = Configuration()
    path = os.environ.get("KUBECONFIG")  # the client reads it when it is imported
    try:
        config.load_kube_config(path, context=cluster.kube_context, client_configuration=settings)
    except Exception as error:  # noqa: BLE001 - a damaged file raises yaml's, its own, KeyError ...
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            raise UnreachableError(f"no usable kubeconfig ({_line(error)})") from error
    settings.retries = False
    return Pods(cluster, ApiClient(settings))


def asking(do: Any, *arguments: Any) -> Any:
    """Call a method of `Pods`; what the client raises becomes `UnreachableError` with one line."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return do(*arguments)
    except ApiException as error:
        raise UnreachableError(f"the Kubernetes API answers {error.status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise UnreachableError(f"the Kubernetes API does not answer ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _state(pod: Any) -> PodState:
    labels, names = pod.metadata.labels or {}, [container.name for container in pod.spec.containers]
    container = "main" if "main" in names else names[0]
    return PodState(
        pod.metadata.namespace, pod.metadata.name, labels.get(STAGE, ""), container, pod.status.phase or "Unknown",
        next(_reasons(pod.status), ""), pod.metadata.creation_timestamp,
    )  # fmt: skip


def _reasons(status: Any) -> Iterator[str]:
    """Why a pod waits or died, what says most first."""
    for one in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
        for state in (one.state, one.last_state):
            if state and state.waiting and state.waiting.reason not in (None, "PodInitializing", "ContainerCreating"):
                yield _told(state.waiting.reason, state.waiting.message)
            if state and state.terminated and state.terminated.exit_code:
                yield _told(f"{state.terminated.reason} (exit {state.terminated.exit_code})", state.terminated.message)
    if status.reason:
        yield _told(status.reason, status.message)
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield _told(condition.reason, condition.message)


def _told(reason: str | None, message: str | None) -> str:
    return " ".join(f"{reason or ''}: {message or ''}".strip(": ").split())[:200]
