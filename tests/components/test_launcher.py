"""The launcher against a fake API server: the way there, a retry, and what is left behind."""

import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipworks_fake_kubernetes import RUN, FakeKubernetes, Step, done, plain, wait_until

from components import launcher
from components.failure import Failure, failure_uri
from components.rayjob_failure import StageFailed
from components.runtime import run_component
from data import storage
from data.artifacts import open_artifact
from data.events import Events, read_events
from data.place import Place
from data.specs import IngestSpec
from data.stage import run_stage

pytestmark = pytest.mark.timeout(120)


def test_a_stage_becomes_a_rayjob_and_its_artifact_comes_back(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], place: Place,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kubernetes.story = done(make)
    uri = go()
    assert open_artifact(uri, "shard_set").record.counts["pairs"] == 3
    (posted,) = kubernetes.posted
    assert posted["metadata"]["labels"]["clipworks/run"] == RUN
    assert kubernetes.deleted == [posted["metadata"]["name"]]
    assert storage.list_files(storage.join(place.root, ".tasks")) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("in namespace clipworks: a head, 1 worker of 1 CPU")
    said = [line.split(maxsplit=1)[1] for line in lines if line.startswith("pairs ")]
    assert said[1:5] == ["0 of 2 pods run", "1 of 2 pods run", "all pods run; KubeRay submits the stage", "started"]
    assert any(line.startswith("done in") for line in said), said
    assert lines[-1].endswith("is removed")


def test_what_is_there_needs_no_rayjob(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any]
) -> None:
    make(None)
    assert open_artifact(go()).record.kind == "shard_set"
    assert kubernetes.requests == []


def test_the_component_launches_where_the_place_has_rayjobs(
    kubernetes: FakeKubernetes, config: str, place: Place, make: Callable[[Any], Any]
) -> None:
    kubernetes.story = done(make)
    uri = run_component("ingest", "pairs", config, "", place.model_dump_json(), RUN)
    assert open_artifact(uri)
    assert len(kubernetes.posted) == 1
    assert not storage.exists(failure_uri(place.root, RUN, "pairs"))


def test_followers_of_the_events_see_what_the_launcher_says(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], place: Place
) -> None:
    kubernetes.story = done(make)
    uri = go()
    events = read_events(storage.join(place.root, ".events", f"{storage.name_of(uri)}.jsonl"))
    kinds = [(event["event"], event.get("by")) for event in events]
    assert ("message", "launcher") in kinds
    assert kinds.index(("message", "launcher")) < kinds.index(("started", None)) < kinds.index(("finished", None))


def test_a_bucket_serves_as_well(
    kubernetes: FakeKubernetes, seaweed: Any, config: str, place: Place, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("data.lines._REMOTE_SECONDS", 0.0)
    place = place.model_copy(update={"root": f"s3://{seaweed.bucket}/launcher-{tmp_path.name}"})
    spec = IngestSpec.model_validate_json(config)
    kubernetes.story = done(lambda _: run_stage("pairs", spec, {}, plain(place)))
    uri = run_component("ingest", "pairs", config, "", place.model_dump_json(), RUN)
    assert open_artifact(uri).record.counts["pairs"] == 3
    entrypoint = shlex.split(kubernetes.posted[0]["spec"]["entrypoint"])
    assert all(word.startswith(f"{place.root}/.tasks/pairs-") for word in entrypoint[-2:])
    assert storage.list_files(f"{place.root}/.tasks") == []
    said = capsys.readouterr().out
    assert "started" in said
    assert "3 pairs" in said
    assert seaweed.secret not in said + str(kubernetes.posted)


def there(kubernetes: FakeKubernetes, go: Callable[..., str], **changes: Any) -> dict[str, Any]:
    """A RayJob of this very stage whose launcher was killed."""
    kubernetes.story = deque([Step("Running", "RUNNING"), Step(is_removed=True)])
    with pytest.raises(StageFailed):
        go(**changes)
    rayjob: dict[str, Any] = kubernetes.posted.pop()
    kubernetes.jobs[rayjob["metadata"]["name"]] = rayjob
    kubernetes.deleted.clear()
    kubernetes.requests.clear()
    return rayjob


def test_a_retry_never_waits_for_a_rayjob_that_failed(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any]
) -> None:
    failed = there(kubernetes, go)
    failed["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}
    name = failed["metadata"]["name"]
    kubernetes.story = deque([Step("Failed", "FAILED"), *done(make)])
    assert open_artifact(go())
    assert [posted["metadata"]["name"] for posted in kubernetes.posted] == [f"{name[:-1]}2"]
    assert kubernetes.deleted == [f"{name[:-1]}2"]


def test_a_retry_waits_for_a_rayjob_that_is_at_it(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    alive = there(kubernetes, go)
    kubernetes.story = done(make)
    assert open_artifact(go())
    assert kubernetes.posted == []
    assert kubernetes.deleted == [
        alive["metadata"]["name"]
    ]  # of the same run: its launcher is gone, this one cleans up
    assert "is at it already" in capsys.readouterr().out


def test_a_rayjob_of_another_run_is_left_to_it(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any]
) -> None:
    alive = there(kubernetes, go)
    alive["metadata"]["annotations"]["clipworks/run"] = "sunday"
    kubernetes.story = done(make)
    assert open_artifact(go())
    assert (kubernetes.posted, kubernetes.deleted) == ([], [])


def test_when_the_rayjob_of_another_run_goes_this_run_makes_its_own(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any]
) -> None:
    alive = there(kubernetes, go)
    alive["metadata"]["annotations"]["clipworks/run"] = "sunday"
    kubernetes.story = deque([Step("Running"), Step("Running", "RUNNING"), Step(is_removed=True), *done(make)])
    assert open_artifact(go())
    assert len(kubernetes.posted) == 1
    assert len(kubernetes.deleted) == 1


@pytest.mark.parametrize("change", [{"image": "clipworks:next"}, {"stall_seconds": 5.0}])
def test_a_rayjob_that_is_made_otherwise_is_not_waited_for(
    kubernetes: FakeKubernetes,
    go: Callable[..., str],
    make: Callable[[Any], Any],
    place: Place,
    change: dict[str, Any],
) -> None:
    there(kubernetes, go)
    kubernetes.story = deque([Step("Running"), *done(make)])
    assert open_artifact(go(place=place.model_copy(update=change)))
    assert len(kubernetes.posted) == 1


def test_one_that_is_being_deleted_is_not_waited_for(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any]
) -> None:
    there(kubernetes, go)["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    kubernetes.lingers = 100
    kubernetes.story = done(make)
    assert open_artifact(go())
    assert len(kubernetes.posted) == 1


def test_a_failure_of_long_ago_is_not_taken_for_this_one(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], place: Place
) -> None:
    name = there(kubernetes, go)["metadata"]["name"]
    kubernetes.jobs.clear()
    old = Failure(stage="pairs", error="ShardError", message="old", user_error=True)
    storage.write_json(storage.join(place.root, ".tasks", f"{name}.failure.json"), old.model_dump(mode="json"))
    kubernetes.story = deque([Step("Running", "FAILED"), *done(make)])
    assert open_artifact(go())


def test_one_that_somebody_removes_is_missed(kubernetes: FakeKubernetes, go: Callable[..., str]) -> None:
    kubernetes.story = deque([Step("Running", "RUNNING"), Step(is_removed=True)])
    with pytest.raises(StageFailed, match="was removed by somebody else while it ran"):
        go()


def test_a_clean_up_that_fails_hides_nothing(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(launcher, "_CLEAN_UP_SECONDS", 0.01)
    kubernetes.story = done(make)
    delete = launcher.KubeApi.delete

    def failing(self: Any, name: str) -> None:
        kubernetes.hiccups = deque([503] * 1000)
        delete(self, name)

    monkeypatch.setattr(launcher.KubeApi, "delete", failing)
    assert open_artifact(go())
    assert "kubectl -n clipworks delete rayjob pairs-" in capsys.readouterr().out


def test_the_rayjob_belongs_to_the_tasks_pod_of_its_namespace(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_NAME", "task")
    monkeypatch.setenv("POD_UID", "1-2")
    monkeypatch.setenv("POD_NAMESPACE", "clipworks")
    kubernetes.story = done(make)
    go()
    assert kubernetes.posted[0]["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "task", "uid": "1-2"}
    ]


@pytest.mark.parametrize("namespace", ["kubeflow", ""])
def test_an_owner_in_another_namespace_would_be_its_end(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch,
    namespace: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("POD_NAME", "task")
    monkeypatch.setenv("POD_UID", "1-2")
    monkeypatch.setenv("POD_NAMESPACE", namespace)
    kubernetes.story = done(make)
    go()
    assert "ownerReferences" not in kubernetes.posted[0]["metadata"]


PROGRAM = """
import sys
from components.runtime import run_component
run_component("ingest", "pairs", sys.argv[1], "", sys.argv[2], "monday")
"""


def test_sigterm_removes_the_rayjob_and_waits_for_it(
    kubernetes: FakeKubernetes, config: str, place: Place, tmp_path: Path
) -> None:
    kubernetes.story = deque([Step("Running", "RUNNING")])
    kubernetes.lingers = 2
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, config, place.model_dump_json()], stdout=log, stderr=log,
            cwd=Path(launcher.__file__).parents[1], env={**os.environ, "PYTHONPATH": "."},
        )  # fmt: skip
    try:
        assert wait_until(lambda: kubernetes.did("GET", "/pods") > 0), (tmp_path / "log").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
    assert kubernetes.jobs == {}
    assert len(kubernetes.deleted) == 1
    text = (tmp_path / "log").read_text()
    assert "is removed" in text
    assert "Traceback" not in text


@pytest.mark.ray
def test_the_entrypoint_runs_the_stage_on_the_ray_of_its_cluster(
    kubernetes: FakeKubernetes, go: Callable[..., str], session_ray: None, place: Place, config: str, tmp_path: Path
) -> None:
    """The command of the manifest, as Ray's job supervisor starts it on the head: by a shell, with Ray's address."""
    import ray

    def start(rayjob: dict[str, Any]) -> None:
        address = ray.get_runtime_context().gcs_address
        command = rayjob["spec"]["entrypoint"].replace("python ", f"{shlex.quote(sys.executable)} ", 1)
        with (tmp_path / "driver.log").open("wb") as log:
            ended = subprocess.run(
                command, shell=True, check=False, stdout=log, stderr=log, timeout=240, cwd=tmp_path,
                env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(Path(launcher.__file__).parents[1])},
            )  # fmt: skip
        assert ended.returncode == 0, (tmp_path / "driver.log").read_text()

    kubernetes.story = deque([Step("Running", "RUNNING", do=start), Step("Complete", "SUCCEEDED")])
    record = open_artifact(go(), "shard_set").record
    assert record.counts["pairs"] == 3
    again = run_stage("pairs", IngestSpec.model_validate_json(config), {}, plain(place))
    assert again.record.fingerprint == record.fingerprint


def test_events_of_an_earlier_run_are_not_told_again(
    kubernetes: FakeKubernetes, go: Callable[..., str], make: Callable[[Any], Any], place: Place,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kubernetes.story = deque([Step("Running", "RUNNING"), Step(is_removed=True)])
    with pytest.raises(StageFailed):
        go()
    (path,) = Path(place.root, ".events").glob("pairs-*.jsonl")
    Events(str(path), "pairs").message("of yesterday")
    capsys.readouterr()
    kubernetes.story = done(make)
    go()
    assert "of yesterday" not in capsys.readouterr().out
