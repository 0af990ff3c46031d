"""The Kubeflow Pipelines API, as far as a run needs it: the v2beta1 REST of `kfp.Client`, with answers for people.

Not `kfp.Client` itself: it prints links, reads and writes `~/.config/kfp`, shows five tracebacks before it says that
nobody answers, and takes a login page for an empty run. What is posted is the same (a test compares the two).
"""

import http.client
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from data.errors import BackendError
from pipelines.cluster.spec import Kfp

_SECONDS = 30.0  # for one answer
_GET_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_EQUALS = 1  # KFP's filter operation
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # a port-forward is never behind the proxy
_LONGEST = 300  # characters of a server's words
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class KfpError(BackendError):
    """KFP cannot be asked, or refuses; `status` is the HTTP status, 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_passing(self) -> bool:
        """The same question may be answered in a moment."""
        return self.status in (0, 408, 429, 500, 502, 503, 504)


class Task(NamedTuple):
    """One node of a KFP run, as its API tells it."""

    name: str
    state: str
    pod: str
    children: tuple[str, ...]
    error: str


class KfpRun(NamedTuple):
    """A run, as KFP sees it now."""

    run_id: str
    state: str
    error: str
    tasks: tuple[Task, ...]

    @property
    def has_ended(self) -> bool:
        """KFP does no more for it."""
        return self.state in ENDED


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect leads to a login page, and would take the token along to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""
        return


class KfpApi:
    """Asks one endpoint. The token goes into the Authorization header and nowhere else."""

    def __init__(self, kfp: Kfp) -> None:
        self.kfp, self.endpoint = kfp, kfp.endpoint.rstrip("/")
        self._headers = {"Accept": "application/json"}
        self._secrets = [secret for secret in (kfp.token(), kfp.cookie()) if secret]
        if token := kfp.token():
            self._headers["Authorization"] = f"Bearer {token}"
        if value := kfp.cookie():
            self._headers["Cookie"] = value
        host = urllib.parse.urlsplit(self.endpoint).hostname
        proxies = [urllib.request.ProxyHandler({})] if host in _LOCAL_HOSTS else []
        self._opener = urllib.request.build_opener(
            *proxies, _NoRedirects(), urllib.request.HTTPSHandler(context=self._tls())
        )

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.kfp.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise KfpError(
                f"kfp.ca_file: {self.kfp.ca_file}: cannot read certificates ({error}); give a PEM file"
            ) from error

    def experiment(self, name: str) -> str:
        """Id of the experiment of this name, which is made if there is none."""
        predicate = {"operation": _EQUALS, "key": "display_name", "stringValue": name}
        query = {"filter": json.dumps({"predicates": [predicate]}), **self._profile()}
        found = self._get("experiments", query).get("experiments") or []
        made = found[0] if found else self._post("experiments", {"display_name": name, **self._profile()})
        return self._word(made, "experiment_id")

    def create_run(self, name: str, experiment_id: str, pipeline: Mapping[str, Any], service_account: str) -> str:
        """Hand in a compiled pipeline under its own defaults; return the run's id."""
        run = {
            "display_name": name, "experiment_id": experiment_id, "pipeline_spec": dict(pipeline),
            "runtime_config": {"parameters": {}}, "service_account": service_account,
        }  # fmt: skip
        return self._word(self._post("runs", run), "run_id")

    def run(self, run_id: str) -> KfpRun:
        """What KFP says of a run now."""
        told = self._get(f"runs/{urllib.parse.quote(run_id)}")
        state = told.get("state") or "PENDING"
        details = (told.get("run_details") or {}).get("task_details") or []
        return KfpRun(self._word(told, "run_id"), state, _message(told), tuple(map(_task, details)))

    def terminate(self, run_id: str) -> None:
        """Ask KFP to end a run."""
        self._post(f"runs/{urllib.parse.quote(run_id)}:terminate", {})

    def log(self, run_id: str, pod: str) -> str | None:
        """What a pod wrote so far; None where KFP cannot tell (the pod is gone and no archive is kept, or no right)."""
        path = f"{self.endpoint}/apis/v1alpha1/runs/{urllib.parse.quote(run_id)}/nodes/{urllib.parse.quote(pod)}/log"
        try:
            content, kind = self._ask(path)
        except KfpError:
            return None
        return None if "html" in kind else content.decode("utf-8", "replace")

    def page(self, run_id: str) -> str:
        """Address of a run in KFP's own pages."""
        return f"{self.endpoint}/#/runs/details/{run_id}"

    def _profile(self) -> dict[str, str]:
        return {"namespace": self.kfp.profile} if self.kfp.profile else {}

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Ask for something; a hiccup is asked again, because asking changes nothing."""
        words = f"?{urllib.parse.urlencode(query)}" if query else ""
        for attempt in range(1, _GET_ATTEMPTS + 1):
            try:
                return self._json(self._url(path) + words)
            except KfpError as error:
                if attempt == _GET_ATTEMPTS or error.status not in (429, 502, 503, 504):
                    raise
                time.sleep(_PAUSE_SECONDS * attempt)
        raise AssertionError

    def _post(self, path: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a change, once: a second request might make a second run."""
        return self._json(self._url(path), json.dumps(value).encode())

    def _url(self, path: str) -> str:
        return f"{self.endpoint}/apis/v2beta1/{path}"

    def _json(self, url: str, body: bytes | None = None) -> dict[str, Any]:
        content, kind = self._ask(url, body)
        try:
            value = json.loads(content or b"{}")
        except ValueError as error:
            raise KfpError(self._no_api(f"answers with {_kind_of(content, kind)}"), 200) from error
        if not isinstance(value, dict):
            raise KfpError(self._no_api("answers with something else than KFP's API"), 200)
        return value

    def _ask(self, url: str, body: bytes | None = None) -> tuple[bytes, str]:
        """Content and content type; the URL is http(s), by the pattern of `Kfp.endpoint`."""
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        request = urllib.request.Request(url, body, headers)  # noqa: S310
        try:
            with self._opener.open(request, timeout=_SECONDS) as answer:
                return answer.read(), str(answer.headers.get("Content-Type", ""))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None  # its own text holds the request
        except (urllib.error.URLError, TimeoutError, http.client.HTTPException, OSError) as error:
            raise KfpError(self._unreached(getattr(error, "reason", None) or error)) from None

    def _unreached(self, reason: Any) -> str:
        """Nobody answered."""
        fix = "start the port-forward, or correct kfp.endpoint"
        if isinstance(reason, ssl.SSLCertVerificationError):
            return f"{self.endpoint}: {reason.verify_message}; name the cluster's certificates in kfp.ca_file"
        if isinstance(reason, ssl.SSLError):
            return f"{self.endpoint}: speaks no TLS that we know ({reason.reason}); is it http://?"
        if isinstance(reason, TimeoutError) or "timed out" in str(reason):
            return f"{self.endpoint}: KFP gave no answer in {_SECONDS:.0f} s; {fix}"
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return f"{self.endpoint}: no KFP answers there ({told.lower()}); {fix}"

    def _refused(self, error: urllib.error.HTTPError) -> KfpError:
        """An HTTP status that is no answer, in one line."""
        status, content = error.code, error.read(100_000)
        told, kind = self._clean(_server_words(content)), str(error.headers.get("Content-Type", ""))
        if status in (301, 302, 303, 307, 308):
            where = urllib.parse.urlsplit(error.headers.get("Location", ""))
            return KfpError(self._no_api(f"sends on to {where.scheme}://{where.netloc}{where.path}"), status)
        if status in (401, 403):
            return KfpError(f"{self.endpoint}: {self._unauthorised(status)}{told and f' ({told})'}", status)
        if status == 404 and not told:
            return KfpError(self._no_api(f"has nothing there (404, {_kind_of(content, kind)})"), status)
        what = "KFP knows no such thing" if status == 404 else f"KFP refuses this ({status})"
        if status >= 500:
            what = f"KFP fails with {status}"
        return KfpError(f"{self.endpoint}: {what}: {told or 'without a reason'}", status)

    def _unauthorised(self, status: int) -> str:
        variable = self.kfp.token_variable
        if status == 401:
            fix = f"renew the token in {variable}" if self.kfp.token() else f"put a bearer token into {variable}"
            return f"KFP asks who you are (401); {fix}"
        return f"KFP does not allow this (403); check kfp.profile ({self.kfp.profile or 'none'}) and your rights there"

    def _no_api(self, what: str) -> str:
        signed = "your session in it may have ended" if self._secrets else f"it may ask for {self.kfp.token_variable}"
        return f"{self.endpoint}: {what}, not KFP's API; check kfp.endpoint (often .../pipeline), {signed}"

    def _clean(self, text: str) -> str:
        """A server's words on one line, without what we signed in with."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        line = " ".join(text.split())
        return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."

    def _word(self, value: Mapping[str, Any], name: str) -> str:
        if not isinstance(value.get(name), str) or not value[name]:
            raise KfpError(self._no_api(f"gives no {name}"), 200)
        return str(value[name])


def _kind_of(content: bytes, kind: str) -> str:
    is_page = "html" in kind or content.lstrip()[:1] == b"<"
    return "a web page" if is_page else (kind.partition(";")[0] or "no JSON")


def _server_words(content: bytes) -> str:
    """The message of KFP's error JSON; nothing of a page."""
    try:
        value = json.loads(content)
    except ValueError:
        return ""
    if not isinstance(value, dict):
        return ""
    return str(value.get("error_message") or value.get("message") or value.get("error") or "")


def _message(value: Mapping[str, Any]) -> str:
    error = value.get("error") or {}
    return " ".join(str(error.get("message", "") if isinstance(error, dict) else error).split())[:_LONGEST]


def _task(detail: Mapping[str, Any]) -> Task:
    pods = [str(pod["name"]) for pod in detail.get("pods") or [] if pod.get("name")]
    children = [child.get("pod_name") or child.get("task_id") for child in detail.get("child_tasks") or []]
    return Task(
        str(detail.get("display_name") or ""), str(detail.get("state") or "PENDING"),
        str(detail.get("pod_name") or (pods[-1] if pods else "")), tuple(filter(None, children)), _message(detail),
    )  # fmt: skip


def executors(run: KfpRun, key: str) -> Iterator[Task]:
    """The nodes of a task that are pods of its own work: one an attempt, in order.

    KFP 2 makes of a task `embed-2` a node of that name, with a node `executor` below it (`executor(0)`, `executor(1)`
    where it is retried), and next to it `embed-2-driver`. Children are named by node ids, which share their last part
    with the pod's name; below an executor follow the tasks that wait for it.
    """
    by_id = {task.pod.rpartition("-")[2]: task for task in run.tasks if task.pod}
    queue = [task for task in run.tasks if task.name == key]
    while queue:
        task = queue.pop(0)
        below = [by_id.get(child.rpartition("-")[2]) for child in task.children]
        inner = [child for child in below if child and child.name.startswith("executor")]
        queue += inner
        if not inner and task.pod and (task.name.startswith("executor") or not task.children):
            yield task
