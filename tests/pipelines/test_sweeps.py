"""What a sweep file may say: refused in one line, drawn as a function of its seed, and no objective that judges."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.artifacts import Artifact, Output, Record
from data.errors import RecipeError
from data.selection import write_split
from pipelines.recipe import parse_recipe
from pipelines.sweeps.board import Board
from pipelines.sweeps.cutting import ancestors
from pipelines.sweeps.honesty import Held, check_uids
from pipelines.sweeps.result import labels, winner_yaml
from pipelines.sweeps.space import draw, perturbed, sample
from pipelines.sweeps.spec import EXAMPLE, Dimension, parse_sweep
from pipelines.sweeps.study import Study, make_study
from pipelines.yaml_text import parse_yaml, to_yaml

LR = "stages.pretrain.phases.refine.optimizer.lr"
WARM_LR = "stages.pretrain.phases.warm.optimizer.lr"


@pytest.fixture
def sweep(small: dict[str, Any]) -> dict[str, Any]:
    """A sweep over the small recipe, with a split to validate on."""
    recipe = copy.deepcopy(small)
    recipe["stages"]["split"]["holdouts"]["val"] = {"by": "fraction", "fraction": 0.2}
    return {
        "recipe": recipe,
        "set": {"stages.pretrain.validation": {"split": "split", "name": "val", "every_samples": 16, "pairs": 4}},
        "space": {LR: {"log_uniform": [1e-5, 1e-3]}},
        "objective": {"stage": "pretrain"},
        "trials": 3,
    }


def studied(sweep: dict[str, Any]) -> Study:
    return make_study(parse_sweep(to_yaml(sweep), "sweep.yaml"))


def with_dev(sweep: dict[str, Any]) -> dict[str, Any]:
    """The sweep's recipe with an evaluation of `val` that no report reads, as the objective."""
    stages = sweep["recipe"]["stages"]
    stages["embed"]["splits"] = ["unseen", "val"]
    dev = copy.deepcopy(stages["evaluate"])
    dev["sets"]["small"]["splits"] = ["val"]
    stages["evaluate_dev"] = dev
    stages["report"] = stages.pop("report")
    objective = {"stage": "evaluate_dev", "set": "small", "split": "val", "task": "retrieval",
                 "metric": "image_to_text_R@1", "mode": "max"}  # fmt: skip
    return {**sweep, "objective": objective}


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trails": 3}, ["trails: 3: unknown field", "did you mean 'trials'"]),
        ({"space": {}}, ["space: {}"]),
        ({"space": {LR: {"chocie": [1]}}}, ["chocie", "did you mean 'choice'"]),
        ({"space": {LR: {"choice": [1e-3], "uniform": [0, 1]}}}, ["give one of choice, grid"]),
        ({"space": {LR: {"uniform": [1, 0]}}}, ["below the second"]),
        ({"space": {LR: {"log_uniform": [0, 1]}}}, ["above 0"]),
        ({"space": {LR.replace("lr", "rl"): {"uniform": [0, 1]}}}, ["space.stages", "did you mean", "optimizer.lr"]),
        ({"space": {LR.removeprefix("stages."): {"uniform": [0, 1]}}}, ["did you mean 'stages.pretrain"]),
        (
            {"space": {"stages.pretrain.phases.refine.optimizer": {"choice": [{}, {"lr": 1}]}}},
            ["optimizer.lr: missing"],
        ),
        ({"space": {LR: {"uniform": [-1, 1]}}}, ["optimizer.lr: -1"]),
        ({"space": {"stages.pretrain.log_every_steps": {"int": [1, 9]}}}, ["cannot change the result"]),
        ({"space": {"stages.embed.queries": {"choice": [["red"], ["blue"]]}}}, ["not made from 'embed'"]),
        ({"space": {LR: {"choice": [1e-4, 1e-3]}}}, ["trials: 3", "only 2 values"]),
        ({"set": {"stages.pretrain.sede": 1}}, ["set.stages.pretrain.sede", "did you mean 'stages.pretrain.seed'"]),
        ({"recipe": "quickstrat"}, ["did you mean 'quickstart'"]),
        ({"resources": {"cpus": 3, "ranks": 2}}, ["3 cpus do not divide by 2 ranks"]),
        ({"scheduler": {"asha": {"grace_samples": 16}, "pbt": {"segment_samples": 32}}}, ["asha or pbt, not both"]),
        ({"scheduler": {"asha": {"grace_samples": 96}}}, ["grace_samples: 96", "no trial is longer than 96"]),
        ({"scheduler": {"pbt": {"segment_samples": 32}}}, ["2 phases", "use asha"]),
    ],
)
def test_a_wrong_sweep_is_one_line(
    changes: dict[str, Any], words: list[str], sweep: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(to_yaml({**sweep, **changes}))
    line = refused("sweep", file, "--root", tmp_path / "runs")
    for word in words:
        assert word in line
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_no_sweep_is_one_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("- 1\n")
    assert "a sweep is a mapping" in refused("sweep", file)
    assert "SWEEP: missing" in refused("sweep")
    assert "cannot read" in refused("sweep", tmp_path / "none.yaml")


def one_phase(sweep: dict[str, Any], **pbt: Any) -> dict[str, Any]:
    """The sweep as a population's: the small recipe's training has one phase."""
    made = copy.deepcopy(sweep)
    del made["recipe"]["stages"]["pretrain"]["phases"]["refine"]
    made["space"] = {WARM_LR: {"log_uniform": [1e-5, 1e-1]}}
    return {**made, "scheduler": {"pbt": {"segment_samples": 32, **pbt}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segment_samples": 24}, ["not whole global batches", "16"]),
        ({"segment_samples": 48}, ["samples_seen is 64", "whole segments"]),
        ({"quantile": 0.6}, ["quantile: 0.6"]),
    ],
)
def test_a_wrong_population_is_one_line(change: dict[str, Any], words: list[str], sweep: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        studied(one_phase(sweep, **change))
    assert all(word in str(caught.value) for word in words)


def test_a_population_searches_its_own_stage_only(sweep: dict[str, Any]) -> None:
    population = one_phase(sweep)
    for path in ("stages.curate.balance.t", "stages.pretrain.phases.warm.samples_seen"):
        with pytest.raises(RecipeError, match="use asha"):
            studied({**population, "space": {path: {"int": [32, 64]}}})


# ------------------------------------------------------------------------------------------------------------- honesty


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"stage": "evaluate", "set": "small", "split": "unseen", "task": "retrieval", "metric": "m"},
         ["split 'unseen'", "stages.report judges by it"]),
        ({"stage": "evaluate", "set": "small", "split": "val", "task": "retrieval", "metric": "m"}, ["not scored"]),
        ({"stage": "evaluate"}, ["objective.set: missing"]),
        ({"stage": "report"}, ["kind report have no validation metric"]),
        ({"stage": "pairs"}, ["kind ingest have no validation metric"]),
        ({"stage": "pretrain", "metric": "loss"}, ["only validation_loss"]),
        ({"stage": "pretrain", "mode": "max"}, ["a lower validation_loss is better"]),
        ({"stage": "pretrain", "split": "unseen"}, ["objective.split: belongs to an evaluation"]),
        ({"stage": "pretarin"}, ["did you mean 'pretrain'"]),
    ],
)  # fmt: skip
def test_only_what_judges_nothing_may_choose(
    objective: dict[str, Any], words: list[str], sweep: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError) as caught:
        studied({**sweep, "objective": objective})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_validation_on_the_judged_split_may_not_choose(sweep: dict[str, Any]) -> None:
    judged = {"split": "split", "name": "unseen", "every_samples": 16, "pairs": 4}
    with pytest.raises(RecipeError, match=r"split 'unseen': stages\.report judges by it"):
        studied({**sweep, "set": {"stages.pretrain.validation": judged}})
    del sweep["recipe"]["stages"]["report"]  # without a report, what is evaluated is what judges
    with pytest.raises(RecipeError, match=r"split 'unseen': stages\.evaluate judges by it"):
        studied({**sweep, "set": {"stages.pretrain.validation": judged}})


def test_without_a_validation_the_fix_is_said(sweep: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"stages\.pretrain\.validation: missing.*every_samples"):
        studied({**sweep, "set": {}})


def test_an_evaluation_that_no_report_reads_may_choose(sweep: dict[str, Any]) -> None:
    study = studied(with_dev(sweep))
    assert study.held == Held("pairs", "split", "val")
    assert "evaluate" not in study.trial([study.settings[0]]).stages, "stages behind the objective do not run in trials"
    with pytest.raises(RecipeError, match="needs losses on the way"):
        studied({**with_dev(sweep), "scheduler": {"asha": {"grace_samples": 16}}})


@pytest.mark.parametrize(
    "path", ["stages.split.holdouts.val.fraction", "stages.pretrain.validation.pairs", "stages.pairs.pairs_per_shard"]
)
def test_what_is_searched_may_not_change_the_question(path: str, sweep: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="cannot be searched"):
        studied({**sweep, "space": {path: {"choice": [0.1, 0.2]}}})


def split_artifact(root: Path, name: str, splits: dict[str, str]) -> Artifact:
    import pyarrow as pa

    out = Output(str(root), name, name.encode().hex().ljust(64, "0"))
    write_split(out.uri, pa.table({"uid": list(splits), "split": list(splits.values())}))
    record = Record(kind="split", stage="split", revision=1, fingerprint=name.encode().hex().ljust(64, "0"), config={})
    return out.commit(record)


def test_uids_that_a_report_judges_by_are_found_under_any_name(sweep: dict[str, Any], tmp_path: Path) -> None:
    """A second split stage can give judged pairs another name; the uids tell."""
    sweep["recipe"]["stages"]["again"] = copy.deepcopy(sweep["recipe"]["stages"]["split"])
    sweep["set"]["stages.pretrain.validation"]["split"] = "again"
    study = studied(sweep)
    assert study.compared == (Held("pairs", "split", "unseen"),)
    assert "split" in study.shared_names(), "it runs, so that its uids can be compared"
    ours = split_artifact(tmp_path, "again", {"a": "train", "b": "val", "c": "val"})
    fine = split_artifact(tmp_path, "fine", {"a": "unseen", "b": "train", "c": "train"})
    leaks = split_artifact(tmp_path, "leaks", {"a": "train", "b": "train", "c": "unseen"})
    check_uids(study.held, list(study.compared), {"again": ours, "split": fine})
    with pytest.raises(RecipeError, match=r"1 of its pairs are judged by as 'unseen' of stages\.split, e\.g\. 'c'"):
        check_uids(study.held, list(study.compared), {"again": ours, "split": leaks})


# -------------------------------------------------------------------------------------------------------------- values


def test_values_are_a_function_of_the_seed_all_different_and_the_recipe_comes_first(sweep: dict[str, Any]) -> None:
    first, again, other = studied(sweep), studied(sweep), studied({**sweep, "seed": 1})
    assert first.settings == again.settings
    assert first.settings[0] == {LR: 1e-5} == other.settings[0]
    assert first.settings[1:] != other.settings[1:]
    assert len({json.dumps(values) for values in first.settings}) == 4


def test_grids_are_crossed_and_the_recipes_own_point_is_trial_0() -> None:
    space = {"a": Dimension(grid=(1, 2)), "b": Dimension(grid=("x", "y"))}
    found = draw(space, 1, 0, {"a": 1, "b": "y"})
    assert [tuple(values.values()) for values in found] == [(1, "y"), (1, "x"), (2, "x"), (2, "y")]
    mixed = draw(space | {"c": Dimension(int=(0, 9))}, 2, 0, {"a": 0, "b": "x", "c": 0})
    assert [(v["a"], v["b"]) for v in mixed[1:]] == [(a, b) for a in (1, 2) for b in "xy" for _ in range(2)]


@pytest.mark.parametrize(
    "dimension", [Dimension(uniform=(-1, 3)), Dimension(log_uniform=(1e-4, 0.3)), Dimension(int=(2, 5)),
                  Dimension(choice=("a", "b", "c"))]
)  # fmt: skip
def test_drawn_and_perturbed_values_stay_in_their_range(dimension: Dimension) -> None:
    generator, space = random.Random(0), {"x": dimension}
    values = {"x": sample(dimension, generator)}
    for _ in range(200):
        moved = perturbed(space, values, generator, 0.1, 2.0)
        assert moved != values, "a perturbation changes something"
        values = moved
        assert values["x"] in dimension.values if not dimension.is_range else values["x"] <= dimension.ends[1]
        assert not dimension.is_range or values["x"] >= dimension.ends[0]


def test_a_log_uniform_draw_is_even_in_its_logarithm() -> None:
    generator = random.Random(0)
    drawn = [sample(Dimension(log_uniform=(1e-4, 1.0)), generator) for _ in range(2000)]
    below = sum(value < 1e-2 for value in drawn) / len(drawn)
    assert 0.45 < below < 0.55  # uniform would give 0.01


# ------------------------------------------------------------------------------------------------------------- recipes


def test_a_trial_is_cut_to_its_objective_and_only_touched_stages_are_its_own(sweep: dict[str, Any]) -> None:
    study = studied(sweep)
    trial = study.trial([study.settings[1]])
    assert set(trial.stages) == ancestors(study.recipe.stages, ["pretrain"])
    assert study.trial_stages(trial) == ["pretrain"]
    wider = studied({**sweep, "space": {"stages.curate.balance.t": {"choice": [1, 2, 3, 4]}}})
    assert wider.trial_stages(wider.trial([wider.settings[1]])) == ["curate", "pretrain"]
    shared = wider.shared()
    assert shared is not None
    assert "curate" not in shared.stages


def test_a_chain_keeps_the_stages_name_for_its_end_and_changes_the_order_of_pairs(sweep: dict[str, Any]) -> None:
    study = studied(one_phase(sweep))
    recipe = study.winner([{WARM_LR: 0.1}, {WARM_LR: 0.05}])
    first, last = recipe.stages["pretrain_1"], recipe.stages["pretrain"]
    assert (first.init, last.init, first.seed, last.seed) == ("init", "pretrain_1", 0, 1)  # type: ignore[attr-defined]
    assert [s.phases["warm"].samples_seen for s in (first, last)] == [32, 32]  # type: ignore[attr-defined]
    assert [s.phases["warm"].optimizer.lr for s in (first, last)] == [0.1, 0.05]  # type: ignore[attr-defined]
    assert recipe.stages["embed"].checkpoint == "pretrain"  # type: ignore[attr-defined]


def test_the_winner_is_a_recipe_file_with_the_winners_values(sweep: dict[str, Any]) -> None:
    study = studied(sweep)
    board = told(study, [(1, 96, 0.5, True), (0, 96, 0.7, True)])
    best = board.best()
    assert best is not None
    recipe = parse_recipe(parse_yaml(winner_yaml(study, "s", best), "winner"))
    assert recipe.stages["pretrain"].phases["refine"].optimizer.lr == study.settings[1][LR]  # type: ignore[attr-defined]
    assert set(recipe.stages) == set(study.recipe.stages)


def test_the_example_is_a_sweep_of_eight_and_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli import main

    assert main(["sweep", "--example"]) == 0
    text = capsys.readouterr().out
    assert text == EXAMPLE
    study = make_study(parse_sweep(text, "example"))
    assert len(study.settings) == 9
    assert study.trial_stages(study.trial([study.settings[1]])) == ["pretrain"]


# --------------------------------------------------------------------------------------------------------------- board


def told(study: Study, words: list[tuple[int, int, float | None, bool]]) -> Board:
    """A board after trials told (number, samples, value, is_end); None as value: it failed."""
    board = Board(study.settings, study.sweep.objective.mode)
    for time, (number, samples, value, is_end) in enumerate(words):
        said = {"samples_seen": samples, "pairs": samples, "value": value, "is_end": is_end}
        board.take({"event": "told", "trial": number, "time": time, **(said if value is not None else {"failed": "x"})})
        if is_end:
            board.take({"event": "ended", "trial": number, "time": time})
    return board


def test_a_stopped_trial_never_wins_and_failed_ones_come_last(sweep: dict[str, Any]) -> None:
    board = told(studied(sweep), [(0, 96, 0.9, True), (1, 16, 0.1, False), (2, 32, None, True), (3, 96, 0.8, True)])
    board.take({"event": "ended", "trial": 1, "time": 9})
    assert [(trial.number, trial.state) for trial in board.ranked()] == [
        (3, "finished"), (0, "finished"), (1, "stopped"), (2, "failed"),
    ]  # fmt: skip
    assert board.is_over
    best = board.best()
    assert best is not None
    assert best.number == 3


def test_words_that_come_again_after_a_restart_change_nothing(sweep: dict[str, Any]) -> None:
    board = told(studied(sweep), [(0, 16, 0.9, False), (0, 32, 0.8, False), (0, 16, 0.9, False)])
    assert board.trials[0].samples == 32
    assert board.trials[0].curve == {16: 0.9, 32: 0.8}


def test_columns_have_the_shortest_names_that_tell_fields_apart() -> None:
    assert labels([LR, WARM_LR]) == {LR: "refine.optimizer.lr", WARM_LR: "warm.optimizer.lr"}
    assert labels([LR]) == {LR: "lr"}
