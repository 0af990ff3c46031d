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

from data.place import Place
from pipelines.cli import main
from pipelines.graph import compile_pipeline
from pipelines.recipe import parse_recipe

GOLDEN = Path(__file__).parent.parent / "golden" / "small.pipeline.yaml"


@pytest.fixture
def compiled(small: dict[str, Any], tmp_path: Path) -> str:
    """The small recipe's IR YAML, on paths of no machine and without kfp's version."""
    small["stages"]["pairs"]["pool"].update(images="images", captions="captions.csv")
    compile_pipeline(parse_recipe(small), Place(root="s3://bucket/runs", cpus_per_worker=2), tmp_path / "small.yaml")
    return re.sub(r"sdkVersion: .*", "sdkVersion: any", (tmp_path / "small.yaml").read_text()).rstrip() + "\n"


def test_golden(compiled: str) -> None:
    """After a wanted change: `CLIPWORKS_GOLDEN=write pytest tests/pipelines/test_graph.py`, then review the text."""
    if os.environ.get("CLIPWORKS_GOLDEN") == "write":
        GOLDEN.write_text(compiled)
    assert compiled == GOLDEN.read_text()


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
