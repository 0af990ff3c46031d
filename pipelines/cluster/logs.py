"""What the stages of a run wrote: their pods' logs where we may read them, and always our own events and failures.

KFP's API hands out the log of a pod (`/apis/v1alpha1/runs/<run>/nodes/<pod>/log`) while the pod is there or where it
keeps an archive; Kubernetes does so for who has a kubeconfig; the storage root is readable in any case.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from data import storage
from data.events import read_events
from data.lines import ending_text, metrics_text, progress_text
from pipelines.cluster.follow import pods_of
from pipelines.cluster.kfp_api import KfpApi, KfpError, executors
from pipelines.cluster.pods import UnreachableError, asking, reach
from pipelines.cluster.spec import Cluster
from pipelines.cluster.status import ask_kfp, is_lost, read_failure, settle, tasks_of
from pipelines.here.workspace import log_path
from pipelines.runs import RunRecord, read_run


class Log(NamedTuple):
    """What one pod, or the events of one stage, said so far."""

    stage: str
    source: str
    lines: list[str]


def event_logs(root: str, record: RunRecord, stages: list[str]) -> list[Log]:
    """What the stages themselves reported, and why they failed: read from the root, so always there."""
    logs = []
    for stage in stages:
        artifact = record.stages[stage].artifact
        events = read_events(storage.join(root, ".events", f"{artifact}.jsonl")) if artifact else []
        lines = [event_line(event) for event in events if event["time"] >= record.started - 1]
        failure = read_failure(root, record.name, stage)
        if failure:
            lines += [failure.message] if failure.user_error else failure.traceback.splitlines()
            lines += [f"{who}: {line}" for who, told in failure.last_lines.items() for line in told]
        if lines:
            logs.append(Log(stage, "its events", lines))
    return logs


def event_line(event: Mapping[str, Any]) -> str:
    """One event as a line of a log."""
    return f"{datetime.fromtimestamp(event['time'], UTC):%H:%M:%S}  {_said(event)}"


def _said(event: Mapping[str, Any]) -> str:
    match event["event"]:
        case "started":
            return "started"
        case "progress":
            return "  ".join(filter(None, [progress_text(event), event.get("message", "")]))
        case "metrics":
            return f"step {event.get('step')}  {metrics_text(event['values'])}"
        case "message":
            return str(event["message"])
    return ending_text(event)


def pod_logs(record: RunRecord, cluster: Cluster, stages: list[str]) -> tuple[list[Log], list[str]]:
    """Logs of the stages' pods, and what could not be asked."""
    logs, notes = [], []
    for source in (_from_kubernetes, _from_kfp):
        try:
            logs = list(source(record, cluster, stages))
        except (UnreachableError, KfpError) as error:
            notes.append(str(error))
        if logs:
            return logs, []
    return [], notes or ["neither Kubernetes nor KFP has a pod of it any more"]


def _from_kubernetes(record: RunRecord, cluster: Cluster, stages: list[str]) -> Iterator[Log]:
    """Pods of the tasks and of the RayJobs."""
    pods = reach(cluster)
    for pod in pods_of(record, cluster):
        if pod.stage in stages:
            try:
                text = asking(pods.log, pod)
            except UnreachableError as error:  # its container waits, or the pod is just gone
                text = f"({pod.reason or error})"
            yield Log(pod.stage, f"pod {pod.name}", text.splitlines())


def _from_kfp(record: RunRecord, cluster: Cluster, stages: list[str]) -> Iterator[Log]:
    api = KfpApi(cluster.kfp)
    run = ask_kfp(api, record)
    for key, stage in tasks_of(record).items():
        for task in executors(run, key) if stage in stages else ():
            text = api.log(run.run_id, task.pod)
            if text is not None:
                yield Log(stage, f"pod {task.pod}", text.splitlines())


class Printer:
    """Prints the logs of a run's stages, each line once; to be asked again while the run goes on."""

    def __init__(self, root: str, record: RunRecord, cluster: Cluster | None, stages: list[str]) -> None:
        self._root, self._record, self._cluster, self._stages = root, record, cluster, stages
        self._shown: dict[tuple[str, str], int] = {}
        self._last: tuple[str, str] | None = None
        self._notes: set[str] = set()

    def show(self, say: Callable[[str], Any], note: Callable[[str], Any]) -> None:
        """Print what is new."""
        logs, notes = self._logs()
        for log in logs:
            key = (log.stage, log.source)
            new = log.lines[self._shown.get(key, 0) :]
            if new and key != self._last:
                say(f"--- {log.stage}, {log.source}\n")
            for line in new:
                say(f"{line}\n")
            self._last = key if new else self._last
            self._shown[key] = max(len(log.lines), self._shown.get(key, 0))
        for text in notes:
            if text not in self._notes:
                note(f"{text}\n")
        self._notes.update(notes)

    def is_running(self) -> bool:
        """Whether more may come."""
        self._record = read_run(self._root, self._record.name)
        if self._record.state == "running" and self._record.submission and self._cluster:
            self._record = settle(self._root, self._record, ask_kfp(KfpApi(self._cluster.kfp), self._record))
        return self._record.state == "running" and not is_lost(self._record)

    def _logs(self) -> tuple[list[Log], list[str]]:
        if self._record.submission is None:
            return self._of_this_machine(), []
        if self._cluster is None:
            name = self._record.submission.cluster["name"]
            notes = [f"pods not asked: add --on with the file of {name!r}; these are the stages' events"]
            return event_logs(self._root, self._record, self._stages), notes
        logs, notes = pod_logs(self._record, self._cluster, self._stages)
        if logs:
            silent = [stage for stage in self._stages if stage not in {log.stage for log in logs}]
            return [*event_logs(self._root, self._record, silent), *logs], []
        told = [f"no pod's log to be had: {'; '.join(notes)}; these are the stages' events"]
        return event_logs(self._root, self._record, self._stages), told

    def _of_this_machine(self) -> list[Log]:
        """The log of the run's processes, where it is on this machine; it does not say which stage wrote a line."""
        path = log_path(self._root, self._record.name)
        if len(self._stages) == len(self._record.stages) and path.exists():
            return [Log("all stages", str(path), path.read_text("utf-8", "replace").splitlines())]
        return event_logs(self._root, self._record, self._stages)
