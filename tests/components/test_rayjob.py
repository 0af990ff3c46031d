"""The RayJob of a stage: kept as text for several places, accepted by Kubernetes, KubeRay and Kueue, sized as asked."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.rayjob import Job, Owner, Workers, job_name, label_value, manifest, quantity_bytes, workers_of
from data.place import Place, Pod, RayJob, Toleration
from pipelines.cluster import task_pods

TESTS = Path(__file__).parents[1]


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES = _load(TESTS / "k8s" / "rayjob_schema.py")
PLACES = {
    # data stages on CPUs, a bucket
    "cpu": ("curate", Place(root="s3://pairs/runs", data_workers=6, cpus_per_worker=4, rayjob=RayJob())),
    # ranks of eight GPUs a node, nodes that are set apart, a local disk
    "gpu": (
        "train",
        Place(
            root="s3://pairs/runs", image="registry.example/clipworks:1.2", train_workers=16, cpus_per_worker=12,
            gpus_per_worker=1, data_workers=8,
            rayjob=RayJob(
                workers_per_pod=8, secrets=("clipworks-s3", "wandb"), deadline_seconds=86400, restarts=2,
                worker=Pod(
                    memory="400Gi", shm="64Gi", disk="200Gi", node_selector={"gpu": "h200"},
                    tolerations=(Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
                ),
            ),
        ),
    ),
    # a queue, and a volume in place of a bucket
    "kueue_pvc": (
        "embed",
        Place(
            root="/pool/runs", data_workers=3, train_workers=3, cpus_per_worker=8, gpus_per_worker=1,
            rayjob=RayJob(queue="gpus", volumes={"pool": "/pool", "models": "/models"}, head=Pod(cpus=1.5, shm="1Gi")),
        ),
    ),
}  # fmt: skip


def job(kind: str, **more: Any) -> Job:
    root = "/pool/runs" if kind == "embed" else "s3://pairs/runs"
    uri = f"{root}/.tasks/{kind}-0123456789ab.json"
    return Job(f"{kind}-fedcba98-1", kind, kind, "monday", uri, "likeness", **more)


def place_of(name: str) -> tuple[str, Place]:
    return PLACES[name]


@pytest.mark.parametrize("name", PLACES)
def test_the_manifest_is_what_was_reviewed(name: str) -> None:
    kind, place = place_of(name)
    made = manifest(job(kind, owner=Owner("task-pod", "1-2-3")), place)
    golden = TESTS / "golden" / f"rayjob_{name}.yaml"
    assert yaml.safe_dump(made, sort_keys=False) == golden.read_text(), f"if this is meant, write it to {golden.name}"


@pytest.mark.parametrize("name", PLACES)
def test_the_manifest_is_accepted(name: str) -> None:
    kind, place = place_of(name)
    assert RULES.problems(manifest(job(kind), place)) == []
    assert RULES.problems(manifest(job(kind, owner=Owner("task-pod", "1-2-3")), place)) == []


@pytest.mark.parametrize("name", PLACES)
def test_pods_stand_in_a_restricted_namespace_and_hold_no_token(name: str) -> None:
    security = _load(TESTS / "k8s" / "pod_security.py")
    kind, place = place_of(name)
    for where, template in RULES.templates(manifest(job(kind), place)):
        assert security.problems(template["spec"]) == [], where
        assert template["spec"]["automountServiceAccountToken"] is False


def test_every_argument_of_ray_start_is_a_string_and_the_head_has_no_cpus() -> None:
    cluster = manifest(job("train"), PLACES["gpu"][1])["spec"]["rayClusterSpec"]
    params = [cluster["headGroupSpec"]["rayStartParams"], cluster["workerGroupSpecs"][0]["rayStartParams"]]
    assert all(isinstance(value, str) for one in params for value in one.values())
    assert (params[0]["num-cpus"], params[0]["num-gpus"]) == ("0", "0")
    assert (params[1]["num-cpus"], params[1]["num-gpus"]) == ("96", "8")


def changed(change: Callable[[dict[str, Any]], Any]) -> list[str]:
    made = copy.deepcopy(manifest(job("embed"), PLACES["kueue_pvc"][1]))
    change(made)
    found: list[str] = RULES.problems(made)
    return found


def worker(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["spec"].update(submissionMod="HTTPMode"), "submissionMod"),
        (lambda m: m["spec"].update(submissionMode="HttpMode"), "unknown"),
        (lambda m: m["spec"].update(shutdownAfterJobFinishes=False), "needs shutdownAfterJobFinishes"),
        (lambda m: m["spec"].pop("shutdownAfterJobFinishes"), "needs shutdownAfterJobFinishes"),
        (lambda m: m["spec"].pop("suspend"), "begins suspended"),
        (lambda m: m["spec"].update(backoffLimit=-1), "must not be negative"),
        (lambda m: m["spec"].update(backoffLimit="1"), "backoffLimit"),
        (lambda m: m["spec"].update(activeDeadlineSeconds=0), "must be positive"),
        (lambda m: m["metadata"].update(name="a" * 48), "more than 47"),
        (lambda m: m["metadata"].update(name="1-a"), "DNS-1035"),
        (lambda m: m["metadata"]["labels"].update({"clipworks/run": "a" * 64}), "no label's value"),
        (lambda m: m["spec"]["rayClusterSpec"].pop("rayVersion"), "rayVersion"),
        (lambda m: worker(m)["rayStartParams"].update({"num-cpus": 4}), "not of type 'string'"),
        (lambda m: worker(m).update(groupName="head"), "named head"),
        (lambda m: worker(m).update(minReplicas=9), "maxReplicas"),
        (lambda m: worker(m)["template"]["spec"].update(nodeSelectors={}), "nodeSelectors"),
        (lambda m: worker(m)["template"]["spec"]["containers"][0].update(envfrom=[]), "envfrom"),
        (lambda m: worker(m)["template"]["spec"].update(tolerations=[{"operator": 1}]), "tolerations"),
    ],
)
def test_the_rules_refuse_what_they_should(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    found = changed(change)
    assert any(words in problem for problem in found), found


def test_defaults_are_those_of_kuberay() -> None:
    bare = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {}}
    spec = RULES.with_defaults(bare)["spec"]
    assert spec == {"submissionMode": "K8sJobMode", "backoffLimit": 0, "ttlSecondsAfterFinished": 0}


@pytest.mark.parametrize(
    ("kind", "place", "expected"),
    [
        ("train", {"train_workers": 4, "cpus_per_worker": 8}, Workers(4, 8, 0)),
        ("train", {"train_workers": 4, "cpus_per_worker": 8, "gpus_per_worker": 1, "per_pod": 4}, Workers(1, 32, 4)),
        ("train", {"train_workers": 5, "cpus_per_worker": 2, "gpus_per_worker": 1, "per_pod": 4}, Workers(2, 8, 4)),
        ("train", {"train_workers": 2, "cpus_per_worker": 8, "gpus_per_worker": 1, "per_pod": 8}, Workers(1, 16, 2)),
        ("curate", {"data_workers": 10, "cpus_per_worker": 4}, Workers(3, 4, 0)),
        ("curate", {"data_workers": 3, "cpus_per_worker": 8}, Workers(1, 3, 0)),
        ("curate", {"data_workers": 10, "cpus_per_worker": 4, "gpus_per_worker": 1}, Workers(3, 4, 0)),
        ("curate", {"data_workers": 10, "cpus_per_worker": 4, "data_cpus": 16}, Workers(1, 10, 0)),
        (
            "embed",
            {"data_workers": 9, "train_workers": 3, "cpus_per_worker": 8, "gpus_per_worker": 1, "per_pod": 2},
            Workers(2, 16, 2),
        ),
        (
            "embed",
            {"data_workers": 2, "train_workers": 3, "cpus_per_worker": 8, "gpus_per_worker": 1},
            Workers(2, 8, 1),
        ),
        ("embed", {"data_workers": 3, "cpus_per_worker": 8}, Workers(1, 3, 0)),
    ],
)
def test_workers_are_sized_from_the_place(kind: str, place: dict[str, Any], expected: Workers) -> None:
    data = Pod(cpus=place.pop("data_cpus")) if "data_cpus" in place else None
    rayjob = RayJob(workers_per_pod=place.pop("per_pod", 1), data=data)
    assert workers_of(kind, Place(rayjob=rayjob, **place)) == expected


def test_data_stages_have_pods_of_their_own_where_the_place_says_so() -> None:
    data = Pod(cpus=16, memory="30Gi", node_selector={"pool": "cpu"})
    rayjob = RayJob(worker=Pod(memory="400Gi", node_selector={"pool": "gpu"}), data=data)
    place = Place(data_workers=16, gpus_per_worker=1, rayjob=rayjob)
    specs = {
        kind: worker(manifest(job(kind), place))["template"]["spec"]["nodeSelector"]["pool"]
        for kind in ("curate", "embed", "train")
    }
    assert specs == {"curate": "cpu", "embed": "gpu", "train": "gpu"}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("pretrain", "pretrain-01234567-1"),
        ("Long_CLIP.v2", "long-clip-v2-01234567-1"),
        ("2nd", "s-2nd-01234567-1"),
        ("__", "s-01234567-1"),
        ("a" * 80, "a" * 36 + "-01234567-1"),
        ("a" * 35 + "_b", "a" * 35 + "-01234567-1"),
    ],
)
def test_names_are_labels_that_kuberay_takes(stage: str, expected: str) -> None:
    name = job_name(stage, "0123456789abcdef", 1)
    assert name == expected
    made = manifest(job("curate")._replace(name=name, stage=stage), PLACES["cpu"][1])
    assert RULES.problems(made) == []


def test_attempts_have_names_of_their_own() -> None:
    names = [job_name("a" * 80, "0123456789", attempt) for attempt in (1, 2, 999)]
    assert len(set(names)) == 3
    assert max(map(len, names)) == 47


@pytest.mark.parametrize("run", ["monday", "a" * 64, "ends-with.", "with space", "x" * 80, "Ä"])
def test_a_run_is_found_by_the_label_that_the_command_looks_for(run: str) -> None:
    assert label_value(run) == task_pods.label_value(run)
    assert RULES.problems(manifest(job("curate")._replace(run=run), PLACES["cpu"][1])) == []


def test_labels_of_different_runs_differ() -> None:
    assert label_value("a" * 64) != label_value("a" * 65)


def test_a_stage_outside_a_run_has_no_label_of_one() -> None:
    labels = manifest(job("curate")._replace(run=""), PLACES["cpu"][1])["metadata"]["labels"]
    assert "clipworks/run" not in labels


def test_the_object_store_fits_into_shared_memory() -> None:
    place = Place(data_workers=1, rayjob=RayJob(worker=Pod(memory="1Gi", shm="100Mi"), head=Pod(memory="1Gi")))
    cluster = manifest(job("curate"), place)["spec"]["rayClusterSpec"]
    store = "object-store-memory"
    assert int(cluster["workerGroupSpecs"][0]["rayStartParams"][store]) == int(0.8 * 100 * 2**20)
    assert int(cluster["headGroupSpec"]["rayStartParams"][store]) == int(0.3 * 2**30)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("1", 1), ("2k", 2000), ("1.5Gi", 1.5 * 2**30), ("8Gi", 2**33), ("3T", 3e12), ("1Ki", 1024)]
)
def test_quantities(text: str, bytes_: float) -> None:
    assert quantity_bytes(text) == bytes_


def test_no_secret_is_in_a_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("WANDB_API_KEY", "the-other")
    text = yaml.safe_dump(manifest(job("train"), PLACES["gpu"][1]))
    assert "the-secret" not in text
    assert "the-other" not in text
    assert "secretRef" in text
