"""Runs a stage as a KubeRay RayJob and waits for it, from the KFP task's pod.

Whether the stage is done is what the root says, not Kubernetes: a RayJob is only the way there. It is removed at the
end, whatever the end is, so that no GPU waits for a person; what is to be known of a failure is brought back before.

What of Kubernetes it may do is listed in kube_api.py; how the job is made and why so, in rayjob.py.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from components.failure import failure_uri
from components.kube_api import AlreadyExists, KubeApi
from components.rayjob import RUN, TASK, Job, Owner, job_name, manifest, workers_of
from components.rayjob_failure import lost
from components.rayjob_state import name_of, state_of
from components.rayjob_watch import Stage, Voice, Watch
from components.runtime import SPECS, parse_parents
from components.stage import Task
from data import storage
from data.artifacts import Output
from data.errors import BackendError, UserError
from data.events import Events
from data.place import Place
from data.stage import open_parents

_GONE_POLL_SECONDS = 0.5
_CLEAN_UP_SECONDS = 20.0  # of the 30 that Kubernetes gives a pod that is to end
_MOST_ATTEMPTS = 1000
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CANCELLED = 143  # exit code of a process that ends by SIGTERM


def launch(kind: str, name: str, config: str, parents: str, place: Place, run: str) -> str:
    """Run the stage as a RayJob; return its artifact's URI.

    Raises:
        UserError: as the stage raised it, or what Kubernetes or the cluster file lacks.
        StageFailed: a defect or a loss, with pod, rank and last lines.
        SystemExit: the task was cancelled (SIGTERM); the RayJob is gone.
    """
    spec, uris = SPECS[kind].model_validate_json(config), parse_parents(parents)
    prints = {role: parent.fingerprint for role, parent in open_parents(name, spec, uris).items()}
    fingerprint, pods = spec.fingerprint(prints), workers_of(kind, place).pods
    task = Task(kind=kind, name=name, config=config, parents=parents, place=place, run=run, pods=pods)
    stage, events = Stage(task, fingerprint), Events(Output(place.root, name, fingerprint).events_uri, name)
    if uri := stage.made():
        events.emit("reused", artifact=uri)
        return uri
    with _ended_by_sigterm():
        return Launcher(stage, KubeApi(stage.rayjob.namespace, say), Voice(name, events, say)).run()


def say(text: str) -> None:
    """A line of the task's log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, which KFP and Kubernetes send to cancel, unwind the stack so that the RayJob is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not end the clean-up
    raise SystemExit(_CANCELLED)


class Launcher:
    """One stage's RayJob, from the first attempt to its removal."""

    def __init__(self, stage: Stage, api: KubeApi, voice: Voice) -> None:
        self._stage, self._api, self._voice = stage, api, voice

    def run(self) -> str:
        """The artifact's URI, from as many RayJobs as that takes."""
        while True:
            name, is_ours = self._start()
            uri, is_cancelled = None, False
            try:
                uri = Watch(self._stage, name, self._api, self._voice).until_done()
            except SystemExit:
                is_cancelled = True
                raise
            finally:
                if is_ours:
                    self._remove(name, wait=is_cancelled)
            if uri:
                self._forget_failure()
                return uri
            if is_ours:
                why = f"RayJob {name} was removed by somebody else while it ran"
                raise lost(self._stage.name, why, [], self._api)
            self._voice.tell(f"RayJob {name}, of another run, is gone; starting one of this run")

    def _start(self) -> tuple[str, bool]:
        """Name of a RayJob that makes this artifact, and whether this run made it."""
        stage = self._stage
        storage.write_bytes(stage.task_uri(), stage.task.model_dump_json().encode())
        for attempt in range(1, _MOST_ATTEMPTS):
            name = job_name(stage.name, stage.fingerprint, attempt)
            there = self._api.get(name)
            if there is None:
                if self._create(name):
                    return name, True
                there = self._api.get(name)
            if there and self._may_adopt(there):
                self._voice.tell(f"RayJob {name} is at it already; waiting for it")
                return name, there["metadata"]["annotations"].get(RUN) == stage.task.run
        raise BackendError(f"{stage.name}: {_MOST_ATTEMPTS} RayJobs of this stage are there; remove the old ones")

    def _create(self, name: str) -> bool:
        """Make the RayJob; False when there is one of this name after all."""
        stage, task, rayjob = self._stage, self._stage.task, self._stage.rayjob
        storage.remove(stage.failure_uri(name))  # of a RayJob of this name, long gone
        owner = _owner(rayjob.namespace)
        job = Job(name, task.kind, task.name, task.run, stage.task_uri(), stage.likeness(), owner)
        try:
            self._api.create(manifest(job, task.place))
        except AlreadyExists:
            return False
        workers = workers_of(task.kind, task.place)
        each = _some(workers.cpus, "CPU") + (f", {_some(workers.gpus, 'GPU')}" if workers.gpus else "")
        made = f"a head, {_some(workers.pods, 'worker')} of {each}"
        self._voice.tell(f"RayJob {name} in namespace {rayjob.namespace}: {made}")
        return True

    def _may_adopt(self, rayjob: dict[str, Any]) -> bool:
        """True for a RayJob that makes this very artifact in this root, and is alive: never for one that failed."""
        metadata = rayjob["metadata"]
        is_same = metadata.get("annotations", {}).get(TASK) == self._stage.likeness()
        is_alive = not metadata.get("deletionTimestamp") and not state_of(rayjob).is_over
        return is_same and is_alive and not storage.exists(self._stage.failure_uri(name_of(rayjob)))

    def _remove(self, name: str, wait: bool) -> None:
        """Remove a RayJob of this run; that this fails must not hide how the stage ended."""
        self._api.patience_seconds = _CLEAN_UP_SECONDS
        try:
            self._api.delete(name)
            is_gone = not wait or self._is_gone(name)
            say(f"RayJob {name} is removed" if is_gone else f"RayJob {name} is still going; Kubernetes ends it")
            for uri in (self._stage.failure_uri(name), self._stage.task_uri()):
                storage.remove(uri)
        except UserError as error:
            by_hand = f"kubectl -n {self._stage.rayjob.namespace} delete rayjob {name}"
            say(f"RayJob {name} is not cleaned up ({error}); {by_hand}")

    def _is_gone(self, name: str) -> bool:
        deadline = time.monotonic() + _CLEAN_UP_SECONDS
        while self._api.get(name) is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_GONE_POLL_SECONDS)
        return True

    def _forget_failure(self) -> None:
        """A stage that is done has not failed, even if a lost process of it left a word."""
        task = self._stage.task
        if task.run:
            storage.remove(failure_uri(self._stage.root, task.run, task.name))


def _owner(namespace: str) -> Owner | None:
    """This pod, if it is one of that namespace: to Kubernetes an owner elsewhere is gone, and its RayJob with it."""
    name = os.environ.get("POD_NAME") or os.environ.get("KFP_POD_NAME")
    uid = os.environ.get("POD_UID") or os.environ.get("KFP_POD_UID")
    mounted = _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.is_file() else ""
    is_here = (os.environ.get("POD_NAMESPACE") or mounted) == namespace
    return Owner(name, uid) if name and uid and is_here else None


def _some(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
