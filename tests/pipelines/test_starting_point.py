"""`--set init=...` and `--set pairs=...`: what they replace, what goes with the old start, what is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.artifacts import Artifact, Output, Record
from data.errors import RecipeError, UserError
from data.specs import IngestSpec, ShardPool
from evaluation.specs import ReportSpec
from pipelines.cli import main
from pipelines.overrides import override
from pipelines.recipe import Recipe, parse_recipe
from pipelines.sweeps.cutting import with_values
from pipelines.yaml_text import parse_yaml
from training.specs import ModelSpec, TrainSpec

VIT = {"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 64}, "text_cfg": {"width": 64, "layers": 1}}
PRINT = "ab" * 32


def write_checkpoint(path: Path, weights: str = "open_clip_model.safetensors") -> None:
    """A checkpoint's files in open_clip's layout; its weights are never read here."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": {}}))
    (path / weights).write_bytes(b"weights")


def artifact(root: Path) -> Artifact:
    """A finished checkpoint of ours."""
    out = Output(str(root), "pretrain", PRINT)
    with out.lock():
        write_checkpoint(Path(out.uri))
        return out.commit(
            Record(kind="checkpoint", stage="train", revision=1, fingerprint=PRINT, config={}, parents={})
        )


@pytest.fixture
def plain(small: dict[str, Any]) -> Recipe:
    """`init` is a model stage."""
    return parse_recipe(small)


@pytest.fixture
def value(small: dict[str, Any]) -> dict[str, Any]:
    """`init` pretrains `towers`; both are evaluated beside what is trained from `init`."""
    made = copy.deepcopy(small)
    stages = made["stages"]
    stages["towers"] = stages.pop("init")
    stages["init"] = copy.deepcopy(stages["pretrain"])
    stages["init"]["init"] = "towers"
    stages["init"]["phases"]["refine"]["teachers"]["first"]["checkpoint"] = "towers"
    stages["own"] = {**copy.deepcopy(stages["curate"]), "seed": 7}  # pairs that only `init` trains on
    stages["init"]["selection"] = "own"
    for label, checkpoint in (("untrained", "towers"), ("start", "init")):
        stages[f"embed_{label}"] = {**copy.deepcopy(stages["embed"]), "checkpoint": checkpoint}
        stages[f"evaluate_{label}"] = copy.deepcopy(stages["evaluate"])
        stages[f"evaluate_{label}"]["sets"]["small"]["features"] = f"embed_{label}"
    stages["report"] |= {
        "evaluations": {"untrained": "evaluate_untrained", "start": "evaluate_start", "pretrained": "evaluate"},
        "compare": {"pretrained": "start", "start": "untrained"},
        "controls": ["untrained"],
        "checkpoints": {"start": "init", "pretrained": "pretrain"},
        "gallery": {"features": "embed_untrained", "split": "unseen", "queries": ["red"]},
    }
    return made


# ---------------------------------------------------------------------------------------------------------------- init


def test_an_architecture_is_random(plain: Recipe) -> None:
    assert override(plain, ["init=ViT-B-32"]).stages["init"] == ModelSpec(architecture="ViT-B-32")


def test_a_tag_and_a_weights_file(plain: Recipe, tmp_path: Path) -> None:
    made = override(plain, ["init=ViT-B-32:laion2b_s34b_b79k"]).stages["init"]
    assert made == ModelSpec(architecture="ViT-B-32", pretrained="laion2b_s34b_b79k")
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    made = override(plain, [f"init=ViT-B-32:{tmp_path}/w.safetensors"]).stages["init"]
    assert made == ModelSpec(architecture="ViT-B-32", pretrained=str(tmp_path / "w.safetensors"))


def test_a_folder_is_copied_and_one_below_the_root_is_taken_as_it_is(plain: Recipe, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs")
    ours = artifact(tmp_path / "runs")
    assert override(plain, [f"init={tmp_path}/theirs"]).stages["init"] == ModelSpec(folder=str(tmp_path / "theirs"))
    below = override(plain, [f"init={ours.uri}"], str(tmp_path / "runs"))
    assert below.stages["init"] == ModelSpec(artifact=PRINT)
    assert override(plain, [f"init={ours.uri}"], str(tmp_path / "x")).stages["init"] == ModelSpec(folder=ours.uri)


@pytest.mark.parametrize("print_", [PRINT, "7" * 64])  # the second is a number to YAML
def test_a_fingerprint_is_taken_wherever_the_recipe_is_looked_at(plain: Recipe, print_: str, tmp_path: Path) -> None:
    assert override(plain, [f"init={print_}"], str(tmp_path)).stages["init"] == ModelSpec(artifact=print_)


def test_a_mapping_is_a_model_stage(plain: Recipe) -> None:
    made = override(plain, ["init={architecture: ViT-B-32, seed: 3}"])
    assert made.stages["init"] == ModelSpec(architecture="ViT-B-32", seed=3)
    assert override(plain, ["init=ViT-B-32", "stages.init.seed=3"]) == made  # later ones see it


def test_a_sweep_may_set_it_too(plain: Recipe, tmp_path: Path) -> None:
    made = with_values(plain, {"init": "ViT-B-32", "stages.pretrain.seed": 1}, "set")
    assert made == override(plain, ["init=ViT-B-32", "stages.pretrain.seed=1"])
    made = with_values(plain, {"init": {"architecture": "ViT-B-32", "seed": 2}}, "set")
    assert made.stages["init"] == ModelSpec(architecture="ViT-B-32", seed=2)
    with pytest.raises(RecipeError, match=r"^set\.pairs=.*: no such folder"):
        with_values(plain, {"pairs": str(tmp_path / "nowhere")}, "set")


def test_all_else_stays_where_nothing_was_made_for_the_old_start(plain: Recipe) -> None:
    made = override(plain, ["init=ViT-B-32"])
    assert list(made.stages) == list(plain.stages)
    assert {name for name in plain.stages if made.stages[name] != plain.stages[name]} == {"init"}


def test_what_only_the_old_start_needed_goes_with_its_measuring(value: dict[str, Any]) -> None:
    before = parse_recipe(value)
    after = override(before, ["init=ViT-B-32"])
    assert before.stages.keys() - after.stages.keys() == {"towers", "own", "embed_untrained", "evaluate_untrained"}
    report = after.stages["report"]
    assert isinstance(report, ReportSpec)
    assert list(report.evaluations) == ["start", "pretrained"]
    assert report.compare == {"pretrained": "start"}
    assert report.controls == ()
    assert report.checkpoints == {"start": "init", "pretrained": "pretrain"}
    assert report.gallery is None
    assert after.stages["pretrain"] == before.stages["pretrain"]


@pytest.mark.parametrize("reader", ["teacher", "start"])
def test_towers_that_something_else_trains_with_stay_and_so_do_their_numbers(
    value: dict[str, Any], reader: str
) -> None:
    if reader == "start":
        value["stages"]["joint"] = {**copy.deepcopy(value["stages"]["pretrain"]), "init": "towers"}
    else:
        value["stages"]["pretrain"]["phases"]["refine"]["teachers"]["first"]["checkpoint"] = "towers"
    after = override(parse_recipe(value), ["init=ViT-B-32"])
    assert value["stages"].keys() - after.stages.keys() == {"own"}
    assert isinstance(after.stages["report"], ReportSpec)
    assert list(after.stages["report"].evaluations) == ["untrained", "start", "pretrained"]


def test_features_that_curation_reads_keep_their_checkpoint(value: dict[str, Any]) -> None:
    value["stages"]["curate"] |= {"features": "embed_untrained", "filters": [{"filter": "clip_score"}]}
    after = override(parse_recipe(value), ["init=ViT-B-32"])
    assert {"towers", "embed_untrained", "evaluate_untrained"} <= after.stages.keys()


def test_a_report_of_the_old_start_alone_goes_too(value: dict[str, Any]) -> None:
    report = copy.deepcopy(value["stages"]["report"])
    value["stages"]["first_report"] = report | {
        "evaluations": {"untrained": "evaluate_untrained"}, "compare": {}, "controls": [], "checkpoints": {}
    }  # fmt: skip
    assert "first_report" not in override(parse_recipe(value), ["init=ViT-B-32"]).stages


def test_a_start_is_not_a_phase_of_the_stages_after_it(value: dict[str, Any]) -> None:
    later = override(parse_recipe(value), ["init=ViT-B-32"]).stages["pretrain"]
    assert isinstance(later, TrainSpec)
    assert later.init == "init"


# --------------------------------------------------------------------------------------------------------------- pairs


def test_pairs_are_a_folder_of_tars(plain: Recipe, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    before = override(plain, ["stages.pairs.pairs_per_shard=100"])
    made = override(before, [f"pairs={tmp_path}/tars/"]).stages["pairs"]
    assert made == IngestSpec(pool=ShardPool(url=str(tmp_path / "tars")), pairs_per_shard=100)
    made = override(plain, ["pairs=s3://bucket/my/tars"]).stages["pairs"]
    assert made == IngestSpec(pool=ShardPool(url="s3://bucket/my/tars"))


def test_pairs_may_be_any_pool(plain: Recipe) -> None:
    made = override(plain, ["pairs={source: folder, images: a, captions: b.csv}"])
    assert made == override(plain, ["stages.pairs.pool={source: folder, images: a, captions: b.csv}"])


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("init=ViT-B-23", ["'ViT-B-23': not an open_clip model; did you mean", "ARCH:TAG"]),
        ("init=ViT-B-23:openai", ["'ViT-B-23': not an open_clip model", "did you mean"]),
        ("init=ViT-B-32:", ["no weights"]),
        ("init=ViT-B-32:gone.safetensors", ["gone.safetensors: no such file"]),
        ("init=ViT-B-32:old.pt", ["old.pt: is a pickle, which is never loaded; save the weights as safetensors"]),
        ("init=my/epoch_10.pt", ["epoch_10.pt: is a pickle"]),
        ("init=my/w.safetensors", ["weights alone", "ARCH:my/w.safetensors"]),
        ("init=my/nowhere", ["nowhere: no such folder"]),
        ("init=", ["--set init=: no checkpoint; give a checkpoint's folder"]),
        ("init={kind: train}", ["kind 'train'", "leave kind out"]),
        ("init={architecture: ViT-B-32, sed: 1}", ["stages.init.sed", "did you mean 'seed'"]),
        ("init={seed: 1}", ["stages.init", "give one of architecture, artifact, folder"]),
        ("pairs=my/nowhere", ["--set pairs=my/nowhere: no such folder", ".tar files"]),
        ("pairs=", ["--set pairs=: no such folder"]),
        ("pairs={source: shrads, url: x}", ["stages.pairs.pool.source", "did you mean 'shards'"]),
    ],
)
def test_what_is_no_start_is_one_line_with_the_fix(plain: Recipe, assignment: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        override(plain, [assignment])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_pickles_is_refused(plain: Recipe, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs", "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"^--set init: .*open_clip_pytorch_model\.bin is a pickle"):
        override(plain, [f"init={tmp_path}/theirs"])


def test_a_recipe_without_the_stage_says_which_have_it(small: dict[str, Any], value: dict[str, Any]) -> None:
    small["stages"] = {name: small["stages"][name] for name in ("pairs", "split")}
    with pytest.raises(RecipeError, match=r"no stage 'init' .*none\); recipes that have one: .*quickstart"):
        override(parse_recipe(small), ["init=ViT-B-32"])
    text = json.dumps(value).replace('"init": {"kind"', '"first": {"kind"').replace('"init": "init"', '"init": "first"')
    renamed = json.loads(text.replace('"checkpoint": "init"', '"checkpoint": "first"').replace(
        '"start": "init"', '"start": "first"'))  # fmt: skip
    with pytest.raises(RecipeError, match=r"stages that make a checkpoint: .*towers, first"):
        override(parse_recipe(renamed), ["init=ViT-B-32"])


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_takes_a_checkpoint_below_its_root(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    ours = artifact(tmp_path / "runs")
    arguments = ["--set", f"init={ours.uri}"]
    assert main(["recipe", "show", str(small_file), *arguments]) == 0
    shown = parse_recipe(parse_yaml(capsys.readouterr().out, "shown"))
    assert shown.stages["init"] == ModelSpec(folder=ours.uri)  # no root was said
    assert main(["plan", str(small_file), *arguments, "--root", str(tmp_path / "runs"), "--json"]) == 0
    planned = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert (planned["init"]["do"], planned["init"]["artifact"]) == ("reuse", ours.uri.rpartition("/")[2])
    assert "is a pickle" in refused("plan", small_file, "--set", "init=x.pt")
