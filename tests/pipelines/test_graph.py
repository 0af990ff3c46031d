"""The compiled pipeline: one task a stage, strings only, and kept as text so that a change is seen."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.place import Place, Pod, RayJob
from pipelines.cli import main
from pipelines.cluster.spec import Cluster, parse_cluster, read_cluster
from pipelines.cluster.task_pods import kfp_memory
from pipelines.graph import compile_pipeline
from pipelines.recipe import load_recipe, parse_recipe

GOLDEN = Path(__file__).parent.parent / "golden" / "small.pipeline.yaml"
EXAMPLES = Path(__file__).parent.parent.parent / "k8s" / "examples"


@pytest.fixture
def compiled(small: dict[str, Any], tmp_path: Path) -> str:
    """The small recipe's IR YAML, on paths of no machine and without kfp's version."""
    small["stages"]["pairs"]["pool"].update(images="images", captions="captions.csv")
    compile_pipeline(parse_recipe(small), Place(root="s3://bucket/runs", cpus_per_worker=2), tmp_path / "small.yaml")
    return without_version(tmp_path / "small.yaml")


def without_version(path: Path) -> str:
    return re.sub(r"sdkVersion: .*", "sdkVersion: any", path.read_text()).rstrip() + "\n"


def check_golden(text: str, path: Path) -> None:
    """After a wanted change: `CLIPWORKS_GOLDEN=write pytest tests/pipelines/test_graph.py`, then review the text."""
    if os.environ.get("CLIPWORKS_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_golden(compiled: str) -> None:
    check_golden(compiled, GOLDEN)


def test_one_task_a_stage_with_the_edges_of_the_recipe(compiled: str, small: dict[str, Any]) -> None:
    tasks = yaml.safe_load(compiled)["root"]["dag"]["tasks"]
    recipe = parse_recipe(small)
    names = {key: task["taskInfo"]["name"] for key, task in tasks.items()}
    assert sorted(names.values()) == sorted(recipe.stages)
    for key, task in tasks.items():
        parents = {stage for stage, _ in recipe.stages[names[key]].roles().values()}
        assert {names[other] for other in task.get("dependentTasks", [])} == parents
        assert "enableCache" not in task.get("cachingOptions", {})


def test_no_data_passes_through_kfp(compiled: str) -> None:
    document = yaml.safe_load(compiled)
    for component in document["components"].values():
        for side in ("inputDefinitions", "outputDefinitions"):
            assert "artifacts" not in component[side]
            assert {entry["parameterType"] for entry in component[side]["parameters"].values()} == {"STRING"}


def test_a_task_carries_its_stage_unchanged(compiled: str, small: dict[str, Any]) -> None:
    recipe = parse_recipe(small)
    for task in yaml.safe_load(compiled)["root"]["dag"]["tasks"].values():
        name = task["taskInfo"]["name"]
        config = json.loads(task["inputs"]["parameters"]["config"]["runtimeValue"]["constant"])
        if name != "pairs":
            assert config == recipe.stages[name].model_dump(mode="json")
        if name == "pretrain":
            assert list(config["phases"]) == ["warm", "refine"]  # the last phase is the result: order counts


def test_the_image_is_the_places(small: dict[str, Any], tmp_path: Path) -> None:
    compile_pipeline(parse_recipe(small), Place(image="registry.test/clip:7"), tmp_path / "small.yaml")
    executors = yaml.safe_load((tmp_path / "small.yaml").read_text())["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {"registry.test/clip:7"}
    assert all("pip install" not in str(executor["container"]) for executor in executors.values())


def test_compiling_imports_neither_torch_nor_ray(small_file: Path, tmp_path: Path) -> None:
    words = ["compile", str(small_file), "-o", str(tmp_path / "out.yaml")]
    program = (
        f"import sys\nfrom pipelines.cli import main\nassert main({words!r}) == 0\n"
        "print('HEAVY', sorted({'torch', 'ray', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout


@pytest.mark.parametrize("output", ["out.txt", "out", "small.yaml/out.yaml"])
def test_an_impossible_output_is_one_line(small_file: Path, output: str, refused: Callable[..., str]) -> None:
    assert "-o" in refused("compile", small_file, "-o", small_file.parent / output)


def test_an_output_is_required(small_file: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compile", str(small_file)])
    assert caught.value.code == 2


# ------------------------------------------------------------------------------------------------------- on a cluster


def example(name: str) -> Cluster:
    return read_cluster(str(EXAMPLES / f"{name}-cluster.yaml"))


def compiled_on(recipe: Any, cluster: Cluster, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pipeline and Kubernetes executors of a recipe on a cluster."""
    compile_pipeline(recipe, cluster.whole_place(), path, cluster)
    pipeline, platform = yaml.safe_load_all(path.read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def pods_by_stage(recipe: Any, cluster: Cluster, path: Path) -> dict[str, dict[str, Any]]:
    """Stage -> all that its pod asks for."""
    pipeline, executors = compiled_on(recipe, cluster, path)
    pods = {}
    for task in pipeline["root"]["dag"]["tasks"].values():
        label = pipeline["components"][task["componentRef"]["name"]]["executorLabel"]
        container = pipeline["deploymentSpec"]["executors"][label]["container"]
        asked = {"image": container["image"], "resources": container["resources"], "retry": task.get("retryPolicy")}
        pods[task["taskInfo"]["name"]] = {**asked, **executors[label]}
    return pods


def outline(pods: dict[str, dict[str, Any]]) -> str:
    """The different pods of a pipeline, each with its stages: what a review of a large recipe can read."""
    kinds: dict[str, list[str]] = {}
    for stage, pod in pods.items():
        assert pod["podMetadata"]["labels"].pop("clipworks/stage") == stage
        kinds.setdefault(yaml.safe_dump(pod), []).append(stage)
    return yaml.safe_dump([{"stages": sorted(stages), "pod": yaml.safe_load(pod)} for pod, stages in kinds.items()])


def test_golden_on_a_cluster(small: dict[str, Any], tmp_path: Path) -> None:
    """The whole IR, with what Kubernetes is asked for."""
    small["stages"]["pairs"]["pool"].update(images="images", captions="captions.csv")
    compiled_on(parse_recipe(small), example("gpu"), tmp_path / "small.yaml")
    check_golden(without_version(tmp_path / "small.yaml"), GOLDEN.with_name("small.gpu.pipeline.yaml"))


@pytest.mark.parametrize(("recipe", "cluster"), [("tiny", "laptop"), ("quickstart", "gpu")])
def test_golden_pods(recipe: str, cluster: str, tmp_path: Path) -> None:
    found = outline(pods_by_stage(load_recipe(recipe), example(cluster), tmp_path / "out.yaml"))
    check_golden(found, GOLDEN.with_name(f"{recipe}.{cluster}.pods.yaml"))


def cluster_with(**values: Any) -> Cluster:
    place = {"root": "s3://bucket/runs", "cpus_per_worker": 6, **values.pop("place", {})}
    return parse_cluster({"kfp": {"endpoint": "http://kfp.test"}, "place": place, **values}, "cluster.yaml")


def test_who_does_the_work_decides_what_the_pod_gets(small: dict[str, Any], tmp_path: Path) -> None:
    recipe, gpus = parse_recipe(small), {"train_workers": 4, "gpus_per_worker": 1}
    pods = pods_by_stage(recipe, cluster_with(place=gpus, tasks={"curate": {"memory": "1.5Gi"}}), tmp_path / "1.yaml")
    assert pods["pretrain"]["resources"]["resourceMemoryLimit"] == "1Gi"  # a launcher; the RayJob has the GPUs
    assert not any("accelerator" in pod["resources"] for pod in pods.values())
    assert pods["curate"]["resources"]["resourceMemoryLimit"] == str(3 << 29)
    assert pods["split"]["resources"]["resourceMemoryLimit"] == "8Gi"
    train = {"train": {"cpus": 24, "memory": "256Gi", "shm": "32Gi"}}
    pods = pods_by_stage(recipe, cluster_with(ray=None, place=gpus, tasks=train), tmp_path / "2.yaml")
    accelerator = pods["pretrain"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "4")
    assert pods["pretrain"]["resources"]["resourceCpuLimit"] == "24"
    assert pods["pretrain"]["emptyDirMounts"] == [
        {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "32Gi"}
    ]
    assert {stage for stage, pod in pods.items() if "accelerator" in pod["resources"]} == {"pretrain", "embed"}


def test_a_pod_stands_where_the_cluster_says(small: dict[str, Any], tmp_path: Path) -> None:
    task = {"node_selector": {"pool": "cpu"}, "tolerations": [{"key": "spot", "effect": "NoSchedule"}]}
    cluster = cluster_with(
        task=task, volumes={"claim": "/mnt/data"}, pull_policy="Always", task_seconds=3600, task_retries=0
    )
    pod = pods_by_stage(parse_recipe(small), cluster, tmp_path / "out.yaml")["split"]
    assert pod["nodeSelector"]["labels"] == {"pool": "cpu"}
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
    assert (pod["pvcMount"][0]["constant"], pod["pvcMount"][0]["mountPath"]) == ("claim", "/mnt/data")
    assert (pod["imagePullPolicy"], pod["activeDeadlineSeconds"], pod["retry"]) == ("Always", "3600", None)


def test_secrets_are_named_optional_and_give_no_variable_twice(small: dict[str, Any], tmp_path: Path) -> None:
    cluster = cluster_with(secrets=["s3", "wandb"], secret_keys={"wandb": ["WANDB_API_KEY"]})
    for pod in pods_by_stage(parse_recipe(small), cluster, tmp_path / "out.yaml").values():
        given = {entry["secretName"]: [key["envVar"] for key in entry["keyToEnv"]] for entry in pod["secretAsEnv"]}
        assert given["wandb"] == ["WANDB_API_KEY"]
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} < set(given["s3"])
        assert "WANDB_API_KEY" not in given["s3"]
        assert all(entry["optional"] for entry in pod["secretAsEnv"])


def test_argo_does_not_end_a_long_stage_for_being_retried(small: dict[str, Any], tmp_path: Path) -> None:
    """It counts the window from the first pod's start; KFP's default of an hour would end what runs then."""
    for pod in pods_by_stage(parse_recipe(small), cluster_with(), tmp_path / "out.yaml").values():
        assert pod["retry"]["maxRetryCount"] == 1
        assert int(pod["retry"]["backoffMaxDuration"].rstrip("s")) >= 365 * 24 * 3600


def test_threads_of_a_worker_are_not_this_machines(tmp_path: Path) -> None:
    """`cpus_per_worker` is what the machine has unless it is said: that of who submits means nothing there."""
    kfp = {"endpoint": "http://kfp.test"}
    ray = RayJob(worker=Pod(cpus=5))
    said = {"root": "s3://bucket/runs"}
    assert Cluster.model_validate({"kfp": kfp, "place": said, "ray": ray}).whole_place().cpus_per_worker == 5
    assert cluster_with().whole_place().cpus_per_worker == 6


@pytest.mark.parametrize(
    ("quantity", "told"),
    [("8Gi", "8Gi"), ("512", "512"), ("2G", "2G"), ("1.5Gi", str(3 << 29)), ("500k", "500000"), ("0.5M", "500000")],
)
def test_memory_in_kfps_words(quantity: str, told: str) -> None:
    assert kfp_memory(quantity) == told


def test_compile_on_a_cluster(data_file: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    words = ["compile", str(data_file), "--on", str(EXAMPLES / "laptop-cluster.yaml"), "-o", str(tmp_path / "out.yaml")]
    assert main(words) == 0
    pipeline, platform = yaml.safe_load_all((tmp_path / "out.yaml").read_text())
    assert len(platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]) == 4
    place = json.loads(pipeline["root"]["inputDefinitions"]["parameters"]["place"]["defaultValue"])
    assert place["rayjob"]["secrets"] == ["clipworks-s3"]
    assert "leave out --place and --root" in refused(*words, "--root", "runs", is_silent=False)
