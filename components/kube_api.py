"""What the launcher asks of Kubernetes, as plain values, patient with an API server that is away for a while.

Rights it needs, in the RayJobs' namespace only: `create`, `get`, `delete` on `rayjobs.ray.io`; `list` on `pods` and
`events`, `get` on `pods/log`. Nothing on secrets: a RayJob names them, and KubeRay's pods read them.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from components.rayjob import GROUP, PLURAL, VERSION
from data.errors import BackendError

Values = dict[str, Any]
_PATIENCE_SECONDS = 900.0  # an API server that is upgraded, or its load balancer
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 30.0
_ANSWER_SECONDS = (10.0, 60.0)  # to connect, to answer
_PASSES = frozenset({408, 410, 429, 500, 502, 503, 504})
_NOT_ALLOWED = frozenset({401, 403})
_NOT_FOUND, _CONFLICT = 404, 409


class AlreadyExists(Exception):  # noqa: N818 - an answer, not a mistake
    """There is a RayJob of this name."""


class KubeApi:
    """RayJobs, pods, their logs and events of one namespace."""

    def __init__(self, namespace: str, say: Callable[[str], None]) -> None:
        """`say` gets a line when the API server does not answer, and when it does again."""
        from kubernetes import client

        self._namespace, self._say = namespace, say
        self.patience_seconds = _PATIENCE_SECONDS
        api = client.ApiClient(configuration())
        self._objects, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def create(self, manifest: Values) -> Values:
        """Make a RayJob.

        Raises:
            AlreadyExists: there is one of this name, perhaps of an earlier try of this very call.
            BackendError: Kubernetes refuses it.
        """
        call = partial(self._objects.create_namespaced_custom_object, *self._where(), manifest)
        made: Values = self._patient("create rayjobs", call)
        return made

    def get(self, name: str) -> Values | None:
        """A RayJob, or None where there is none."""
        call = partial(self._objects.get_namespaced_custom_object, *self._where(), name)
        found: Values | None = self._found("get rayjobs", call)
        return found

    def delete(self, name: str) -> None:
        """Remove a RayJob with all that belongs to it; one that is gone is fine."""
        call = partial(self._objects.delete_namespaced_custom_object, *self._where(), name)
        # foreground: it is gone only when its cluster's pods are
        self._found("delete rayjobs", partial(call, propagation_policy="Foreground"))

    def pods(self, label: str) -> list[Values]:
        """The pods with a label `key=value`."""
        call = partial(self._core.list_namespaced_pod, self._namespace, label_selector=label, _preload_content=False)
        items: list[Values] = json.loads(self._patient("list pods", call).data)["items"]
        return items

    def events(self) -> list[Values]:
        """Events of the namespace."""
        call = partial(self._core.list_namespaced_event, self._namespace, _preload_content=False)
        items: list[Values] = json.loads(self._patient("list events", call).data)["items"]
        return items

    def log(self, pod: str, lines: int, previous: bool = False) -> list[str]:
        """The last lines that a pod's first container wrote, or its predecessor; none where there is no log."""
        call = partial(
            self._core.read_namespaced_pod_log, pod, self._namespace, tail_lines=lines, previous=previous,
            limit_bytes=256_000, _preload_content=False,
        )  # fmt: skip
        found = self._found("get pods/log", call, absent=frozenset({_NOT_FOUND, 400}))  # 400: it never started
        return [] if found is None else found.data.decode("utf-8", "replace").splitlines()

    def _where(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self._namespace, PLURAL

    def _found(self, doing: str, call: Callable[..., Any], absent: frozenset[int] = frozenset({_NOT_FOUND})) -> Any:
        """The answer, or None where there is no such object."""
        return self._patient(doing, call, absent)

    def _patient(self, doing: str, call: Callable[..., Any], absent: frozenset[int] = frozenset()) -> Any:
        """Call until an answer comes; give up after `_PATIENCE_SECONDS` without one."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        began, wait, is_away = time.monotonic(), _FIRST_WAIT_SECONDS, False
        while True:
            try:
                answer = call(_request_timeout=_ANSWER_SECONDS)
            except ApiException as error:
                if error.status in absent:
                    return None
                refusal = self._refusal(doing, error)
                if refusal:
                    raise refusal from error
                why, wait = f"HTTP {error.status}", max(wait, _retry_after(error))
            except HTTPError as error:  # no connection, or one that broke
                why = type(error).__name__
            else:
                if is_away:
                    self._say("Kubernetes answers again")
                return answer
            if time.monotonic() - began > self.patience_seconds:
                waited = f"{why} for {self.patience_seconds:.0f} s"
                raise BackendError(f"Kubernetes: cannot {doing}: {waited}; look at its API server")
            if not is_away:
                self._say(f"Kubernetes does not answer ({why}); asking again")
            is_away = True
            time.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)

    def _refusal(self, doing: str, error: Any) -> Exception | None:
        """What an answer that will not change means; None for one that may."""
        said = _message(error)
        where = f"Kubernetes: cannot {doing} in namespace {self._namespace!r}"
        if error.status == _CONFLICT:
            return AlreadyExists(said)
        if error.status in _NOT_ALLOWED:
            return BackendError(f"{where}: {said}; apply k8s/base, or name another service_account in the cluster file")
        if error.status == _NOT_FOUND:
            return BackendError(f"{where}: {said}; install KubeRay 1.7 or later and create the namespace")
        if error.status in _PASSES:
            return None
        return BackendError(f"{where}: {said}; look at `ray` of the cluster file")


def configuration() -> Any:
    """How to reach Kubernetes: as a pod does, else as kubectl does.

    Raises:
        BackendError: neither is to be had.
    """
    from kubernetes import client, config

    found = client.Configuration()
    try:
        config.load_incluster_config(found)
    except config.ConfigException:
        try:
            # named here: the client reads the variable only when it is imported
            config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=found)
        except config.ConfigException as error:
            raise BackendError(
                f"Kubernetes: no service account and no kubeconfig here ({error}); set KUBECONFIG"
            ) from error
    found.retries = False  # urllib3's own would hide how long the server is away
    return found


def _message(error: Any) -> str:
    """What the API server says, in one line; its answer is JSON, a proxy's in between is anything."""
    try:
        said = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        said = f"HTTP {error.status} {error.reason}"
    return " ".join(said.split())[:500]


def _retry_after(error: Any) -> float:
    value = (error.headers or {}).get("Retry-After", "")
    return min(float(value), _LONGEST_WAIT_SECONDS) if str(value).isdigit() else 0.0
