"""What a trial does, without Ray: it tells its loss on the way, stops where it is told to, goes on, and is a recipe."""

import importlib.util
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data.artifacts import Output
from data.errors import ModelError, RecipeError
from data.place import Place
from pipelines.recipe import parse_recipe
from pipelines.sweeps.board import Trial
from pipelines.sweeps.cutting import cut
from pipelines.sweeps.result import winner_yaml
from pipelines.sweeps.spec import Resources, parse_sweep
from pipelines.sweeps.study import Study, make_study
from pipelines.sweeps.trial import Runner, Told, trial_place
from pipelines.yaml_text import parse_yaml, to_yaml


def _world() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep_world", Path(__file__).with_name("sweep_world.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


world = _world()
MakeRunner = Callable[[Study, Place, Any], Runner]
PBT = {"pbt": {"segment_samples": 32}}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = world.make_pool(tmp_path_factory.mktemp("pool"))
    return made


def studied(pool: Path, **options: Any) -> Study:
    return make_study(parse_sweep(to_yaml(world.sweep(pool, **options)), "sweep.yaml"))


def placed(root: Path) -> Place:
    return trial_place(Place(root=str(root), loader_workers=0), Resources())


@pytest.fixture(scope="module")
def shared_root(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which all that trials share has been made, once for all tests."""
    root = tmp_path_factory.mktemp("shared")
    recipe = studied(pool).shared()
    world.run_here(recipe, placed(root))
    return root


@pytest.fixture
def runner(shared_root: Path) -> MakeRunner:
    """Runs trials in a copy of that root."""

    def made(study: Study, place: Place, tell: Any) -> Runner:
        shutil.copytree(shared_root, place.root, dirs_exist_ok=True)
        return Runner(study, world.run_here(study.shared(), place), place, tell)

    return made


class Stop(BaseException):
    """What Ray Tune does to a trial: not an Exception."""


def test_a_trial_tells_every_validation_but_its_last_and_then_its_result(
    pool: Path, tmp_path: Path, runner: MakeRunner
) -> None:
    words: list[Told] = []
    study, place = studied(pool), placed(tmp_path)
    runner(study, place, words.append).run_trial(study.settings[1])
    with_value = [word for word in words if word.value is not None]
    assert [word.samples for word in with_value] == [16, 32, 48, 64, 80, 96]
    assert [word.is_end for word in with_value] == [False] * 5 + [True]
    plan = world.run_here(study.trial([study.settings[1]]), place)
    assert words[-1].value == world.final_loss(plan["pretrain"])
    assert "p/validation_loss" in words[0].numbers


def test_the_winners_recipe_gives_its_very_loss_in_another_root(pool: Path, tmp_path: Path, runner: MakeRunner) -> None:
    words: list[Told] = []
    study = studied(pool)
    runner(study, placed(tmp_path / "one"), words.append).run_trial(study.settings[2])
    best = Trial(2, study.settings[2], "finished", value=words[-1].value)
    recipe = parse_recipe(parse_yaml(winner_yaml(study, "s", best), "winner"))
    made = world.run_here(cut(recipe, ["pretrain"]), placed(tmp_path / "two"))
    assert world.final_loss(made["pretrain"]) == words[-1].value


def test_a_trial_that_is_stopped_leaves_nothing_visible_and_goes_on_where_it_was(
    pool: Path, tmp_path: Path, runner: MakeRunner
) -> None:
    study, place = studied(pool), placed(tmp_path / "stopped")

    def stop(told: Told) -> None:
        if told.samples == 64:
            raise Stop

    with pytest.raises(Stop):
        runner(study, place, stop).run_trial(study.settings[1])
    words: list[Told] = []
    runner(study, place, words.append).run_trial(study.settings[1])
    assert min(word.samples for word in words) > 16, "it went on from its checkpoint"
    whole: list[Told] = []
    runner(study, placed(tmp_path / "whole"), whole.append).run_trial(study.settings[1])
    assert words[-1].value == whole[-1].value, "to the last digit"


def test_a_trial_that_is_done_already_is_not_run_again(pool: Path, tmp_path: Path, runner: MakeRunner) -> None:
    study, place = studied(pool), placed(tmp_path)
    first: list[Told] = []
    again: list[Told] = []
    runner(study, place, first.append).run_trial(study.settings[1])
    runner(study, place, again.append).run_trial(study.settings[1])
    assert again == first[-1:]


def test_a_trial_waits_for_another_process_that_makes_the_same_artifact(
    pool: Path, tmp_path: Path, runner: MakeRunner
) -> None:
    study, place = studied(pool), placed(tmp_path)
    words: list[Told] = []
    ready = runner(study, place, words.append)
    recipe = study.trial([study.settings[1]])
    spec = recipe.stages["pretrain"]
    parents = {role: ready.shared[parent] for role, (parent, _) in spec.roles().items()}
    from data.artifacts import open_artifact

    print_ = spec.fingerprint({role: open_artifact(uri).fingerprint for role, uri in parents.items()})
    with Output(place.root, "pretrain", print_).lock():
        thread = threading.Thread(target=ready.run_trial, args=(study.settings[1],))
        thread.start()
        thread.join(2)
        assert thread.is_alive()
        assert words == []
    thread.join()
    assert words[-1].is_end


def test_a_trial_that_cannot_learn_fails_with_its_reason(pool: Path, tmp_path: Path, runner: MakeRunner) -> None:
    study = studied(pool)
    values = {world.LR: 1e9}
    with pytest.raises(ModelError, match=r"lower optimizer\.lr"):
        runner(study, placed(tmp_path), lambda _: None).run_trial(values)


def test_a_member_goes_on_from_another_members_checkpoint_and_is_a_recipe(
    pool: Path, tmp_path: Path, runner: MakeRunner
) -> None:
    study, place = studied(pool, scheduler=PBT), placed(tmp_path / "one")
    assert study.segments == 3
    words: list[Told] = []

    def stop_after_first(told: Told) -> None:
        words.append(told)
        if told.lineage:
            raise Stop

    good, other = study.settings[1], study.settings[2]
    with pytest.raises(Stop):
        runner(study, place, stop_after_first).run_member(good, [])
    donated = words[-1].lineage
    assert [entry["values"] for entry in donated] == [good]
    runner(study, place, words.append).run_member(other, donated)  # the exploit: another's past, other values from here
    end = words[-1]
    assert [entry["values"] for entry in end.lineage] == [good, other, other]
    assert end.lineage[0] == donated[0], "the copied segment is the donor's"
    assert len({entry["fingerprint"] for entry in end.lineage}) == 3
    best = Trial(2, other, "finished", value=end.value, lineage=[dict(entry) for entry in end.lineage])
    recipe = parse_recipe(parse_yaml(winner_yaml(study, "s", best), "winner"))
    made = world.run_here(cut(recipe, ["pretrain"]), placed(tmp_path / "two"))
    assert world.final_loss(made["pretrain"]) == end.value


def test_an_evaluation_that_judges_nothing_can_be_the_objective(pool: Path, tmp_path: Path, runner: MakeRunner) -> None:
    sweep = world.sweep(pool)
    stages = sweep["recipe"]["stages"]
    stages["embed"]["splits"] = ["unseen", "val"]
    dev = {"features": "embed", "pairs": "pairs", "split": "split", "splits": ["val"],
           "tasks": {"retrieval": {"task": "retrieval"}}}  # fmt: skip
    stages["evaluate_dev"] = {"kind": "evaluate", "sets": {"small": dev}}
    objective = {"stage": "evaluate_dev", "set": "small", "split": "val", "task": "retrieval",
                 "metric": "image_to_text_median_rank", "mode": "min"}  # fmt: skip

    def run(**changes: str) -> tuple[list[Told], Study]:
        words: list[Told] = []
        study = make_study(parse_sweep(to_yaml({**sweep, "objective": {**objective, **changes}}), "sweep.yaml"))
        runner(study, placed(tmp_path), words.append).run_trial(study.settings[1])
        return words, study

    words, study = run()
    assert [word.value is not None for word in words] == [False] * (len(words) - 1) + [True]
    assert words[-1].pairs == 96
    assert study.trial_stages(study.trial([study.settings[1]])) == ["pretrain", "embed", "evaluate_dev"]
    rows = json.loads(next(tmp_path.glob("evaluate_dev-*/report.json")).read_text())["rows"]
    known = {row["metric"]: row["value"] for row in rows if not row["baseline"]}
    assert words[-1].value == known["image_to_text_median_rank"]
    with pytest.raises(RecipeError, match=r"objective\.mode: 'max': lower is better"):
        run(mode="max")
    with pytest.raises(RecipeError, match=r"objective\.metric: 'R@9': not measured; have .*image_to_text_R@1"):
        run(metric="R@9")
