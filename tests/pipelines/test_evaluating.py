"""`clipworks evaluate`: what a checkpoint is, what is known of it, the recipe that comes out. No model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.artifacts import Artifact, Output, Record
from data.errors import ModelError, UserError
from data.place import Place
from data.stage import run_stage
from evaluation.specs import DenseProbe, EvaluateSpec, ReportSpec
from pipelines.cli import main
from pipelines.evaluating import Model, read_models, root_of, suite_recipe
from pipelines.planning.plan import make_plan
from pipelines.recipe import Recipe, parse_recipe
from pipelines.suites.spec import Suite, parse_suite
from pipelines.yaml_text import parse_yaml
from training.checkpoint_folder import open_folder
from training.specs import EmbedSpec, ModelSpec

VIT = {"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 64}, "text_cfg": {"width": 64, "layers": 1}}
RESNET = {"embed_dim": 8, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16}, "text_cfg": {"width": 64, "layers": 1}}
SUITE = """
name: mine
title: My suite
purpose: Stands for every suite in these tests.
sets:
  things:
    pool: {source: folder, images: IMAGES, captions: CAPTIONS}
    holdouts: {test: {by: fraction, fraction: 0.4}, val: {by: fraction, fraction: 0.4}}
    scored: [test]
    learnt_from: [val]
    patches: {pairs_per_split: 4}
    tasks:
      retrieval: {task: retrieval}
      calibration: {task: calibration, prompts: {field: kind, templates: ["a {c}"]}}
    main: {split: test, task: retrieval, metrics: [image_to_text_R@1, text_to_image_R@1]}
  looks:
    like: things
    scored: [test]
    learnt_from: [train]
    views: {blurred: {view: corrupted, kind: defocus_blur, severity: 1}}
    tasks:
      robust: {task: robustness, prompts: {field: kind, templates: ["the {c}"]}}
      dense: {task: dense_probe}
averages: {all: [things]}
skipped: {others: they are not here}
"""


def folder(path: Path, config: dict[str, Any] | None = None, weights: str = "open_clip_model.safetensors") -> Path:
    """A checkpoint folder in open_clip's layout; its weights are never read here."""
    path.mkdir(parents=True)
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config or VIT, "preprocess_cfg": {}}))
    (path / weights).write_bytes(b"weights of " + path.name.encode())
    return path


def artifact(root: Path, stage: str, kind: str = "checkpoint", print_: str = "ab") -> Artifact:
    """A finished artifact of ours with a checkpoint's files."""
    out = Output(str(root), stage, print_ * 32)
    with out.lock():
        folder(Path(out.uri) / "x")
        for file in (Path(out.uri) / "x").iterdir():
            file.rename(Path(out.uri) / file.name)
        (Path(out.uri) / "x").rmdir()
        return out.commit(
            Record(kind=kind, stage="train", revision=1, fingerprint=print_ * 32, config={"trained": True}, parents={})
        )


@pytest.fixture
def suite(pictures: Path) -> Suite:
    """A suite over twelve pictures, with a set that is like another."""
    text = SUITE.replace("IMAGES", str(pictures / "images")).replace("CAPTIONS", str(pictures / "captions.csv"))
    return parse_suite(text, "mine.yaml")


def model(label: str, config: dict[str, Any] = VIT) -> Model:
    """A model that nothing has to exist for."""
    return Model(label, ModelSpec(architecture=config), config)


# ------------------------------------------------------------------------------------------------- what exists already


def test_a_checkpoint_below_the_root_is_taken_as_it_is(tmp_path: Path) -> None:
    ours = artifact(tmp_path, "pretrain")
    found = read_models([ours.uri], [], str(tmp_path))
    assert found["pretrain"].spec == ModelSpec(artifact=ours.fingerprint)
    recipe = suite_recipe_of(found)
    plan = make_plan(recipe, Place(root=str(tmp_path)))
    taken = next(one for one in plan if one.name == "model_pretrain")
    assert taken.artifact is not None
    assert taken.artifact.uri == ours.uri  # so that its features, made by another run, have the same parent
    assert run_stage("again", found["pretrain"].spec, {}, Place(root=str(tmp_path))).uri == ours.uri


def test_a_fingerprint_names_a_checkpoint_below_the_root(tmp_path: Path) -> None:
    ours = artifact(tmp_path, "pretrain")
    (found,) = read_models([ours.fingerprint], [], str(tmp_path)).values()
    assert found == Model("pretrain", ModelSpec(artifact=ours.fingerprint), VIT)


def test_a_checkpoint_of_another_root_is_copied_and_its_origin_is_part_of_what_it_is(tmp_path: Path) -> None:
    ours = artifact(tmp_path / "one", "pretrain")
    spec = read_models([ours.uri], [], str(tmp_path / "two"))["pretrain"].spec
    assert spec == ModelSpec(folder=ours.uri)
    source = spec.resolved()["source"]
    assert source["origin"] == ours.fingerprint
    Path(ours.at("record.json")).unlink()
    assert "origin" not in spec.resolved()["source"]
    assert spec.fingerprint({}) != ours.fingerprint


def test_a_folders_identity_is_its_content_and_not_its_place(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "a"), folder(tmp_path / "b" / "a")
    first, second = (ModelSpec(folder=str(path)).fingerprint({}) for path in (one, two))
    assert first == second
    (two / "open_clip_model.safetensors").write_bytes(b"other weights")
    assert ModelSpec(folder=str(two)).fingerprint({}) != first
    (two / "open_clip_model.safetensors").write_bytes((one / "open_clip_model.safetensors").read_bytes())
    (two / "open_clip_config.json").write_text(json.dumps({"model_cfg": RESNET}))
    assert ModelSpec(folder=str(two)).fingerprint({}) != first


def test_a_weights_file_counts_by_name_and_content(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "w.safetensors", tmp_path / "b" / "w.safetensors"
    for path in (one, two):
        path.parent.mkdir()
        path.write_bytes(b"same")
    found = [ModelSpec(architecture="ViT-B-32", pretrained=str(path)) for path in (one, two)]
    assert found[0].fingerprint({}) == found[1].fingerprint({})
    assert str(tmp_path) not in json.dumps(found[0].resolved())
    two.write_bytes(b"other")
    assert found[0].fingerprint({}) != found[1].fingerprint({})


def test_new_ways_to_name_a_model_left_old_fingerprints_alone() -> None:
    spec = ModelSpec(architecture="ViT-B-32", seed=3)
    assert spec.resolved() == {"kind": "model", "architecture": "ViT-B-32", "pretrained": None, "seed": 3}


def test_an_artifact_that_is_not_below_the_root_is_one_line(tmp_path: Path) -> None:
    recipe = suite_recipe_of({"a": Model("a", ModelSpec(artifact="cd" * 32), VIT)})
    problems = [plan.problem for plan in make_plan(recipe, Place(root=str(tmp_path))) if plan.problem]
    assert problems == [f"artifact: cdcdcdcdcdcd: no such checkpoint below {tmp_path}; give the root it lies in"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "give one of architecture, artifact, folder"),
        ({"architecture": "a", "folder": "b"}, "architecture and folder given"),
        ({"folder": "b", "pretrained": "c"}, "pretrained goes with an architecture"),
        ({"artifact": "short"}, "pattern"),
    ],
)
def test_a_model_has_one_source(fields: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelSpec(**fields)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: (path / "open_clip_config.json").unlink(), "no open_clip_config.json"),
        (lambda path: (path / "open_clip_config.json").write_text("[]"), "has no model_cfg"),
        (lambda path: (path / "open_clip_model.safetensors").unlink(), "its weights are missing"),
        (
            lambda path: (path / "open_clip_model.safetensors").rename(path / "open_clip_pytorch_model.bin"),
            "open_clip_pytorch_model.bin is a pickle",
        ),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_one_line(
    break_it: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    path = folder(tmp_path / "a")
    break_it(path)
    with pytest.raises(ModelError, match=words):
        open_folder(str(path))


# ---------------------------------------------------------------------------------------------------------- the command


WRONG = [
    (["nowhere", "--suite", "bundled"], ["nowhere: no such folder", "ARCH:TAG"]),
    (["SHARDS", "--suite", "bundled"], ["is a shard_set, where a checkpoint is needed"]),
    (["OURS", "--suite", "bundeld"], ["no such suite", "did you mean 'bundled'"]),
    (["OURS", "--suite", "gone.yaml"], ["gone.yaml: cannot read"]),
    (["OURS", "--suite", "datacomp"], ["--data: missing"]),
    (["OURS", "--suite", "datacomp", "--data", "gone"], ["--data gone: no such folder"]),
    (["OURS", "--suite", "bundled", "--data", "x"], ["brings its own pairs"]),
    (["OURS", "--suite", "bundled", "--labels", "a,b"], ["2 labels for 1 checkpoints"]),
    (["OURS", "OURS", "--suite", "bundled", "--labels", "a,a"], ["'a' comes twice"]),
    (["OURS", "--suite", "bundled", "--labels", "A b"], ["--labels: 'A b'", "a-z"]),
    (["OURS", "--suite", "bundled", "--set", "stages.model_our.seed=1"], ["did you mean"]),
    (["ViT-B-23:openai", "--suite", "bundled"], ["'ViT-B-23': not an open_clip model", "ViT-B-32"]),
    (["ViT-B-32:", "--suite", "bundled"], ["ViT-B-32: no weights", "ARCH:TAG"]),
    (["ViT-B-32:gone.safetensors", "--suite", "bundled"], ["gone.safetensors: no such file"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_what_is_wrong_is_one_line(
    arguments: list[str], words: list[str], tmp_path: Path, refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    named = {"OURS": artifact(tmp_path / "runs", "ours").uri}
    named["SHARDS"] = artifact(tmp_path / "runs", "pairs", "shard_set", "cd").uri
    line = refused("evaluate", *(named.get(word, word) for word in arguments))
    for word in words:
        assert word in line


def test_the_recipe_can_be_printed_edited_and_read_again(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(suite.to_yaml())
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    words = ["evaluate", str(one), str(two), "--suite", str(tmp_path / "mine.yaml"), "--dry-run"]
    assert main([*words, "--set", "stages.evaluate_one.bootstrap.resamples=200"]) == 0
    recipe = parse_recipe(parse_yaml(capsys.readouterr().out, "printed"))
    report, evaluation = recipe.stages["report"], recipe.stages["evaluate_one"]
    assert isinstance(report, ReportSpec)
    assert isinstance(evaluation, EvaluateSpec)
    assert evaluation.bootstrap.resamples == 200
    assert list(report.evaluations) == ["one", "two"]
    assert report.compare == {"two": "one"}
    assert not (tmp_path / "runs").exists()


def test_artifacts_go_where_the_checkpoint_lies_unless_told(tmp_path: Path) -> None:
    ours, theirs = artifact(tmp_path / "mine", "pretrain").uri, str(folder(tmp_path / "a"))
    assert root_of([theirs, ours]) == str(tmp_path / "mine")
    assert root_of([theirs, "ViT-B-32:openai"]) == "runs"


# ------------------------------------------------------------------------------------------------------- what comes out


def suite_recipe_of(models: dict[str, Model]) -> Recipe:
    """The recipe of a suite with one small task."""
    text = """
{name: small, title: t, purpose: p, sets: {one: {pool: {source: digits}, holdouts: {test: {by: rest}}, scored: [test],
 tasks: {retrieval: {task: retrieval}}, main: {split: test, task: retrieval, metrics: [image_to_text_R@1]}}}}
"""
    return suite_recipe(parse_suite(text, "small"), models)


def test_pairs_are_made_once_and_features_once_a_model(suite: Suite) -> None:
    recipe = suite_recipe(suite, {"a": model("a"), "b": model("b")})
    kinds = [stage.kind for stage in recipe.stages.values()]
    assert kinds.count("ingest") == kinds.count("split") == 1
    assert kinds.count("embed") == 4  # plain and viewed, of two models
    assert kinds.count("evaluate") == 2
    features, evaluation = recipe.stages["features_things_a"], recipe.stages["evaluate_a"]
    assert isinstance(features, EmbedSpec)
    assert isinstance(evaluation, EvaluateSpec)
    assert {template for prompts in features.prompts for template in prompts.templates} == {"a {c}", "the {c}"}
    assert features.splits == ("test", "val", "train")  # also what the set that is like it learns from
    assert evaluation.sets["looks"].features == evaluation.sets["things"].features == "features_things_a"
    assert evaluation.sets["looks"].views == "views_looks_a"


def test_averages_and_what_was_skipped_are_in_the_recipe(suite: Suite) -> None:
    recipe = suite_recipe(suite, {"a": model("a")})
    report = recipe.stages["report"]
    assert isinstance(report, ReportSpec)
    both = tuple(("things", "test", "retrieval", f"{way}_R@1") for way in ("image_to_text", "text_to_image"))
    assert report.averages == {"all": (both,)}
    assert "Skipped others: they are not here." in recipe.purpose


def test_a_tower_without_patches_is_not_asked_for_them(suite: Suite) -> None:
    recipe = suite_recipe(suite, {"vit": model("vit"), "resnet": model("resnet", RESNET)})
    asked = {
        label: any(isinstance(task, DenseProbe) for one in stage.sets.values() for task in one.tasks.values())
        for label, stage in recipe.stages.items() if isinstance(stage, EvaluateSpec)
    }  # fmt: skip
    assert asked == {"evaluate_vit": True, "evaluate_resnet": False}


def test_long_names_still_are_different_stages(suite: Suite) -> None:
    names = [f"a-model-with-a-very-long-name-{number}" for number in range(3)]
    recipe = suite_recipe(suite, {name: model(name) for name in names})
    assert sum(stage.kind == "model" for stage in recipe.stages.values()) == 3
    assert all(len(name) <= 40 for name in recipe.stages)


def test_labels_come_from_folders_and_never_clash(tmp_path: Path) -> None:
    paths = [str(folder(tmp_path / place / "My Model")) for place in ("a", "b")]
    found = list(read_models(paths, [], str(tmp_path / "runs")))
    assert found[0] == "my-model"
    assert found[1].startswith("my-model-")
    with pytest.raises(UserError, match="comes twice"):
        read_models(paths, ["a", "a"], str(tmp_path))
