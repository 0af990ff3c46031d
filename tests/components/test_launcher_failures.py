"""The launcher against a fake API server: what fails, what waits, what stumbles, and what is said of it."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipworks_fake_kubernetes import (
    DROP,
    DROP_AFTER,
    HEAD,
    RUN,
    TOKEN,
    WORKER,
    FakeKubernetes,
    Step,
    done,
    ended,
    fail_inside,
    plain,
    pod,
    waiting,
)  # fmt: skip

from components import launcher, rayjob_watch
from components import stage as inside
from components.failure import Failure, failure_of, failure_uri
from components.rayjob_failure import StageFailed, as_error
from components.runtime import run_component
from data import storage
from data.artifacts import open_artifact
from data.errors import BackendError, RecipeError, StorageError, UserError
from data.events import read_events
from data.place import Place, RayJob

pytestmark = pytest.mark.timeout(120)


def test_a_users_mistake_stays_one(
    kubernetes: FakeKubernetes, go: Callable[..., str], config: str, place: Place
) -> None:
    wrong = config.replace('"captions"', '"caption_column": "text", "captions"')
    kubernetes.story = deque([Step("Running", "RUNNING", do=fail_inside), Step("Failed", "FAILED", reason="AppFailed")])
    with pytest.raises(RecipeError) as caught:
        run_component("ingest", "pairs", wrong, "", place.model_dump_json(), RUN)
    with pytest.raises(RecipeError) as here:
        run_component("ingest", "pairs", wrong, "", plain(place).model_dump_json())
    assert str(caught.value) == str(here.value)
    assert "\n" not in str(caught.value)
    assert len(kubernetes.deleted) == 1


def test_a_defect_comes_back_with_pod_and_traceback(
    kubernetes: FakeKubernetes, config: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("components.runtime.run_stage", broken)
    monkeypatch.setenv("POD_NAME", "pairs-head-x")
    monkeypatch.setattr(inside, "_LOG_OF_POD", Path("/dev/null"))
    kubernetes.logs = {"head": "starting\nray is up\n", "worker": "joined\n"}
    kubernetes.story = deque([Step("Running", "RUNNING", do=fail_inside), Step("Failed", "FAILED", reason="AppFailed")])
    with pytest.raises(StageFailed, match="pod pairs-head-x: ZeroDivisionError") as caught:
        run_component("ingest", "pairs", config, "", place.model_dump_json(), RUN)
    assert "in broken" in str(caught.value)
    left = Failure.model_validate(storage.read_json(failure_uri(place.root, RUN, "pairs")))
    assert (left.error, left.message, left.user_error) == ("ZeroDivisionError", "ours", False)
    assert left.where == "pod pairs-head-x"
    assert left.last_lines == {"head": ["starting", "ray is up"], "worker": ["joined"]}


def test_a_stages_own_failure_ends_it_before_kuberay_tries_again(
    kubernetes: FakeKubernetes, go: Callable[..., str], config: str
) -> None:
    wrong = config.replace('"captions"', '"caption_column": "text", "captions"')
    kubernetes.story = deque([Step("Running", "RUNNING", do=fail_inside), Step("Running", "FAILED"), Step("Retrying")])
    with pytest.raises(RecipeError):
        go(config=wrong)
    assert kubernetes.did("GET", "/rayjobs/") < 10


def test_pods_that_were_killed_are_named_with_the_fix(
    kubernetes: FakeKubernetes, go: Callable[..., str], place: Place
) -> None:
    dead = pod("head", is_head=True, is_ready=False, containerStatuses=ended("OOMKilled", 137))
    kubernetes.logs = {"head": "\n".join(f"line {number}" for number in range(100)), "worker": "fine"}
    kubernetes.story = deque(
        [
            Step("Running", "RUNNING"),
            Step("Running", "RUNNING", pods=(dead, WORKER)),
            Step("Failed", "FAILED", reason="AppFailed", message="driver exited with code -9\nmore", pods=()),
        ]
    )
    with pytest.raises(StageFailed) as caught:
        go()
    failure = caught.value.failure
    assert failure.message == (
        f"RayJob {kubernetes.deleted[0]}: AppFailed: driver exited with code -9; "
        "pod head: OOMKilled (exit code 137); give ray.head more memory"
    )
    assert failure.where == "pod head"
    assert failure.last_lines["head"][-1] == "line 99"
    assert len(failure.last_lines["head"]) == 40
    assert failure.last_lines["worker"] == ["fine"]
    events = read_events(next(iter(Path(place.root, ".events").glob("pairs-*.jsonl"))).as_posix())
    assert [event["error"] for event in events if event["event"] == "failed"] == ["StageFailed"]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            Step("Failed", reason="DeadlineExceeded", message="passed the activeDeadlineSeconds"),
            "DeadlineExceeded: pas",
        ),
        (Step("Failed", "FAILED"), "FAILED: no reason was given"),
        (Step("Complete", "STOPPED"), "stopped by somebody"),
        (Step("Complete", "SUCCEEDED"), "reports success, but the root has no artifact"),
        (
            Step("Failed", pods=(pod("worker", phase="Failed", reason="Evicted", message="low on disk"),)),
            "pod worker: Evicted: low on disk",
        ),
    ],
)
def test_an_end_without_an_artifact_says_why(
    kubernetes: FakeKubernetes, go: Callable[..., str], step: Step, words: str
) -> None:
    kubernetes.story = deque([Step("Running", "RUNNING"), step])
    with pytest.raises(StageFailed, match=words):
        go()
    assert len(kubernetes.deleted) == 1


def test_a_pod_that_was_replaced_is_remembered(kubernetes: FakeKubernetes, go: Callable[..., str]) -> None:
    evicted = pod("worker-1", is_ready=False, phase="Failed", reason="Evicted", message="low on disk")
    kubernetes.story = deque([Step("Running", "RUNNING", pods=(HEAD, evicted)), Step("Failed", pods=(HEAD, WORKER))])
    with pytest.raises(StageFailed, match="pod worker-1: Evicted: low on disk"):
        go()


def test_a_refused_rayjob_is_a_failure(kubernetes: FakeKubernetes, go: Callable[..., str]) -> None:
    kubernetes.story = deque(
        [Step("ValidationFailed", reason="ValidationFailed", message="authOptions.mode is 'token'")]
    )
    with pytest.raises(BackendError, match=r"KubeRay refuses .*authOptions.* 1\.7 or later") as caught:
        go()
    assert "\n" not in str(caught.value)


def test_what_the_api_server_refuses_is_one_line(
    kubernetes: FakeKubernetes, go: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launcher.manifest
    monkeypatch.setattr(launcher, "manifest", lambda *a: {**made(*a), "spec": {**made(*a)["spec"], "entrypiont": "x"}})
    with pytest.raises(BackendError, match=r"cannot create rayjobs in namespace 'clipworks': .*entrypiont") as caught:
        go()
    assert "\n" not in str(caught.value)
    assert kubernetes.deleted == []


def test_missing_rights_name_the_fix(
    kubernetes: FakeKubernetes, go: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(other_user(os.environ["KUBECONFIG"])))
    with pytest.raises(BackendError, match=r"cannot get rayjobs .*Unauthorized; apply k8s/base"):
        go()


def other_user(kubeconfig: str) -> Path:
    path = Path(kubeconfig)
    path.write_text(path.read_text().replace(TOKEN, "another"))
    return path


def test_no_cluster_is_one_line(go: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(BackendError, match="no service account and no kubeconfig"):
        go()


def waits(kubernetes: FakeKubernetes, *pods: dict[str, Any], times: int = 1) -> None:
    kubernetes.story = deque([Step("Initializing", pods=pods)] * times)


def test_pods_that_do_not_start_end_with_their_reasons(
    kubernetes: FakeKubernetes, go: Callable[..., str], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    unschedulable = pod(
        "worker-1", is_ready=False, containerStatuses=[],
        conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes fit"}],
    )  # fmt: skip
    waits(kubernetes, HEAD, unschedulable)
    kubernetes.events = [
        {
            "type": "Warning",
            "reason": "FailedCreate",
            "message": "exceeded quota",
            "involvedObject": {"name": "cluster-1"},
        },
        {"type": "Warning", "reason": "Other", "message": "another's", "involvedObject": {"name": "elsewhere"}},
        {"type": "Normal", "reason": "Created", "message": "fine", "involvedObject": {"name": "cluster-1"}},
    ]
    rayjob = RayJob(start_seconds=0.1)
    with pytest.raises(
        BackendError, match="did not start within 0 s: worker-1: Unschedulable: 0/3 nodes fit"
    ) as caught:
        go(place=place.model_copy(update={"rayjob": rayjob}))
    assert "cluster-1: FailedCreate: exceeded quota" in str(caught.value)
    assert "another's" not in str(caught.value)
    assert "fine" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "1 of 2 pods run; worker-1: Unschedulable: 0/3 nodes fit" in capsys.readouterr().out
    assert len(kubernetes.deleted) == 1


def test_an_image_that_is_not_there_is_not_waited_for_so_long(
    kubernetes: FakeKubernetes, go: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rayjob_watch, "_STUCK_SECONDS", 0.05)
    stuck = pod("head", is_head=True, is_ready=False, containerStatuses=waiting("ImagePullBackOff", "no such tag"))
    waits(kubernetes, stuck)
    with pytest.raises(BackendError, match="head: ImagePullBackOff: no such tag"):
        go()


def test_an_operator_that_cannot_submit_is_named(
    kubernetes: FakeKubernetes, go: Callable[..., str], place: Place
) -> None:
    kubernetes.story = deque([Step("Running")])
    with pytest.raises(BackendError, match=r"KubeRay cannot submit it: .*8265"):
        go(place=place.model_copy(update={"rayjob": RayJob(start_seconds=0.05)}))


def test_the_wait_in_a_queue_does_not_count(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], place: Place,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clock = iter(range(0, 1_000_000, 10))
    monkeypatch.setattr(rayjob_watch.time, "monotonic", lambda: float(next(clock)))  # 10 s between any two looks
    queued = [Step("Suspended", is_suspended=True, cluster="", pods=())] * 50
    kubernetes.story = deque([*queued, *done(make)])
    limit = 300.0  # the queue alone takes longer, the start afterwards does not
    assert open_artifact(go(place=place.model_copy(update={"rayjob": RayJob(queue="gpus", start_seconds=limit)})))
    assert capsys.readouterr().out.count("waits in queue gpus") == 1
    assert kubernetes.posted[0]["spec"]["suspend"] is True


def test_preemption_by_kueue_is_a_wait_in_the_queue_again(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], place: Place,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    suspended = Step("Suspended", is_suspended=True, cluster="", pods=())
    again = [step._replace(cluster="cluster-2" if step.cluster else "") for step in done(make)]
    kubernetes.story = deque([suspended, Step("Running", "RUNNING"), suspended, *again])
    assert open_artifact(go(place=place.model_copy(update={"rayjob": RayJob(queue="gpus")})))
    said = [line.split(maxsplit=1)[-1].strip() for line in capsys.readouterr().out.splitlines()]
    queue = "waits in queue gpus"
    assert [line for line in said if line in ("runs", queue)] == [queue, "runs", queue]


def test_a_lost_cluster_is_made_anew(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    second = [
        step._replace(cluster="cluster-2" if step.cluster else "", pods=(pod("head-2", is_head=True), WORKER))
        for step in done(make)
    ]
    kubernetes.story = deque([Step("Running", "RUNNING"), Step("Retrying", "FAILED", pods=()), *second])
    assert open_artifact(go())
    assert "its Ray cluster was lost; a new one is made" in capsys.readouterr().out


def test_a_head_that_is_lost_again_and_again_ends_the_stage(kubernetes: FakeKubernetes, go: Callable[..., str]) -> None:
    heads = [
        pod("head", is_head=True, restarts=number, containerStatuses=[
            {"name": "ray", "restartCount": number, "state": {"running": {}},
             "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}} if number else {}}])
        for number in range(3)
    ]  # fmt: skip
    kubernetes.previous_logs = {"head": "killed here"}
    kubernetes.story = deque([Step("Running", "RUNNING", pods=(head, WORKER)) for head in heads])
    with pytest.raises(
        StageFailed, match=r"its head was lost 2 times; ray\.restarts allows 1; pod head: OOMKilled"
    ) as caught:
        go()
    assert caught.value.failure.last_lines == {"head": ["killed here"]}


@pytest.mark.parametrize(
    ("asked", "hiccup"),  # the first question looks for the RayJob, the second makes it, then each look takes two
    [(0, 500), (1, 504), (1, DROP), (1, DROP_AFTER), (2, 429), (3, 410), (4, DROP), (5, 503), (-1, 502)],
)
def test_an_api_server_that_stumbles_is_asked_again(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], asked: int, hiccup: int | str
) -> None:
    kubernetes.story = done(make)
    if asked >= 0:
        kubernetes.hiccups = deque([*[None] * asked, hiccup, hiccup])
    else:  # at the end, when the RayJob is to be removed
        kubernetes.story[-3] = Step("Running", "RUNNING", do=lambda _: (make(None), kubernetes.hiccups.append(hiccup)))
    assert open_artifact(go())
    assert len(kubernetes.posted) == 1
    assert len(set(kubernetes.deleted)) == 1


def test_an_api_server_that_is_away_is_told_once_and_not_for_ever(
    kubernetes: FakeKubernetes,
    go: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("components.kube_api._PATIENCE_SECONDS", 0.05)
    kubernetes.hiccups = deque([503] * 1000)
    with pytest.raises(BackendError, match="cannot get rayjobs: HTTP 503 for 0 s; look at its API server"):
        go()
    assert capsys.readouterr().out.count("does not answer") == 1


def test_a_status_that_goes_backwards_changes_nothing(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes.story = deque(
        [
            Step("Running", "RUNNING"),
            Step(cluster="", pods=()),
            Step("Initializing", pods=()),
            Step("Running", "RUNNING", do=make),
            Step("Complete", "SUCCEEDED"),
        ]
    )
    assert open_artifact(go())
    assert "pods run" not in capsys.readouterr().out


def test_a_status_that_says_the_end_too_early_is_not_believed(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any]
) -> None:
    kubernetes.story = deque([Step("Failed", "FAILED"), Step("Running", "RUNNING"), Step("Complete", do=make)])
    assert open_artifact(go())


def test_a_root_that_is_away_for_a_moment_ends_nothing(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([StorageError("away")] * 3)
    read = rayjob_watch.EventTail.read

    def stumbling(self: Any) -> Any:
        if kubernetes.posted and (error := next(failures, None)):
            raise error
        return read(self)

    monkeypatch.setattr(rayjob_watch.EventTail, "read", stumbling)
    kubernetes.story = done(make)
    assert open_artifact(go())


def test_no_token_is_ever_shown(
    kubernetes: FakeKubernetes, go: Callable[..., str], capsys: pytest.CaptureFixture[str], place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-key-that-a-pod-printed")
    kubernetes.logs = {"head": "env: a-key-that-a-pod-printed"}
    kubernetes.story = deque([Step("Running", "RUNNING"), Step("Failed", "FAILED")])
    with pytest.raises(StageFailed) as caught:
        go()
    kubernetes.hiccups = deque([401])
    with pytest.raises(BackendError) as refused:
        go()
    written = [path.read_text() for path in Path(place.root).rglob("*") if path.is_file()]
    said = [str(caught.value), caught.value.failure.model_dump_json(), str(refused.value), capsys.readouterr().out]
    assert "env: ***" in said[0]
    for text in [*written, *said]:
        assert TOKEN not in text
        assert "a-key-that-a-pod-printed" not in text


def test_a_users_error_keeps_what_is_known_of_it() -> None:
    failure = Failure(stage="a", error="NoSuchError", message="m", user_error=True, where="pod x")
    error = as_error(failure, [], None)  # type: ignore[arg-type]
    assert type(error) is UserError
    assert failure_of("a", error) == failure
