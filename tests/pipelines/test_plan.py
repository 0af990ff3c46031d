"""The plan: what is reused, what runs and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.artifacts import Output, Record
from data.place import Place
from pipelines.cli import main
from pipelines.overrides import override
from pipelines.planning.plan import StagePlan, counts_text, duration, make_plan
from pipelines.recipe import Recipe, parse_recipe


@pytest.fixture
def recipe(small: dict[str, Any]) -> Recipe:
    return parse_recipe(small)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(root=str(tmp_path / "runs"))


def finish(plan: StagePlan, place: Place, **counts: int) -> None:
    """Make the artifact that a plan says would be made."""
    assert plan.fingerprint
    out = Output(place.root, plan.name, plan.fingerprint)
    with out.lock():
        out.commit(
            Record(
                kind=plan.spec.MAKES,
                stage=plan.kind,
                revision=1,
                fingerprint=plan.fingerprint,
                config={},
                counts=counts,
            )
        )


def test_everything_runs_on_an_empty_root(recipe: Recipe, place: Place) -> None:
    plans = make_plan(recipe, place)
    assert [plan.name for plan in plans] == recipe.order()
    assert all(plan.fingerprint and not plan.artifact and plan.artifact_name for plan in plans)
    assert not Path(place.root).exists()  # a plan writes nothing


def test_what_is_finished_is_reused(recipe: Recipe, place: Place) -> None:
    for plan in make_plan(recipe, place):
        finish(plan, place, pairs=12)
    plans = make_plan(recipe, place)
    assert all(plan.artifact for plan in plans)
    assert plans[0].pairs == 12


@pytest.mark.parametrize(
    ("assignment", "to_run"),
    [
        ("stages.report.title=Other", {"report"}),
        ("stages.evaluate.bootstrap.seed=1", {"evaluate", "report"}),
        ("stages.embed.chunk_pairs=7", set()),  # cannot change a result
        ("stages.pretrain.checkpoint_every_samples=9", set()),
        ("stages.curate.seed=1", {"curate", "pretrain", "embed", "evaluate", "report"}),
    ],
)
def test_a_change_runs_what_depends_on_it(recipe: Recipe, place: Place, assignment: str, to_run: set[str]) -> None:
    for plan in make_plan(recipe, place):
        finish(plan, place)
    plans = make_plan(override(recipe, [assignment]), place)
    assert {plan.name for plan in plans if not plan.artifact} == to_run


def test_a_changed_source_runs_everything_that_reads_it(recipe: Recipe, place: Place, pictures: Path) -> None:
    for plan in make_plan(recipe, place):
        finish(plan, place)
    with (pictures / "captions.csv").open("a") as stream:
        stream.write("0.png,another caption\n")
    assert [plan.name for plan in make_plan(recipe, place) if plan.artifact] == ["init"]


def test_a_stage_of_another_name_is_reused(small: dict[str, Any], place: Place) -> None:
    for plan in make_plan(parse_recipe(small), place):
        finish(plan, place)
    stages = {"first" if name == "init" else name: stage for name, stage in small["stages"].items()}
    stages["pretrain"]["init"] = "first"
    stages["pretrain"]["phases"]["refine"]["teachers"]["first"]["checkpoint"] = "first"
    plans = make_plan(parse_recipe({**small, "stages": stages}), place)
    assert all(plan.artifact for plan in plans)
    assert next(plan.artifact_name for plan in plans if plan.name == "first").startswith("init-")  # type: ignore[union-attr]


def test_a_source_that_is_gone_is_said_and_leaves_unknowns(recipe: Recipe, place: Place, pictures: Path) -> None:
    (pictures / "captions.csv").unlink()
    plans = {plan.name: plan for plan in make_plan(recipe, place)}
    assert "captions.csv" in str(plans["pairs"].problem)
    assert plans["pairs"].fingerprint is plans["report"].fingerprint is None
    assert plans["init"].fingerprint


def test_an_artifact_of_another_root_tells_pairs_and_is_not_reused(
    recipe: Recipe, place: Place, tmp_path: Path
) -> None:
    elsewhere = Place(root=str(tmp_path / "elsewhere"))
    finish(make_plan(recipe, elsewhere)[0], elsewhere, pairs=12)
    assert {plan.name: plan.pairs for plan in make_plan(recipe, place)}["match"] is None
    plans = {plan.name: plan for plan in make_plan(recipe, place, [elsewhere.root])}
    assert plans["pairs"].artifact is None
    assert plans["pairs"].twin is not None
    assert plans["match"].pairs == plans["embed"].pairs == 12


def test_json_has_a_row_a_stage(small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(small_file), "--root", str(tmp_path / "runs"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    rows = said["stages"]
    assert {row["stage"]: row["do"] for row in rows}["pretrain"] == "run"
    assert next(row["pairs"] for row in rows if row["stage"] == "pretrain") == 64 + 32
    assert said["total"]["seconds"] == {"value": 180.0, "is_whole": True, "basis": "the recipe, on 2 CPU cores"}
    assert said["currency"] is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0.52, "0.5 s"), (15.2, "15 s"), (75, "1 min 15 s"), (3720, "1 h 02 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_counts_say_first_what_is_there() -> None:
    counts = {"dropped_unmatched": 3, "dropped_empty": 0, "kept": 1500, "pairs": 1503}
    assert counts_text(counts, most=3) == "1,500 kept, 1,503 pairs, 3 dropped unmatched"
