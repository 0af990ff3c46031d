"""Every method's recipe really trains: a few steps on few scenes, through the stages that `clipworks run` calls.

What a run shows of their sense is in docs/methods; here it is that nothing a recipe names is missing.
"""

import pytest

from data import storage
from data.place import Place
from data.stage import run_stage
from pipelines.methods import load_method, method_names
from pipelines.recipe import Recipe, load_recipe
from training.specs import ClusterSampler, TrainSpec
from training.towers import load_towers

RECIPES = sorted({load_method(name).recipe for name in method_names()} | {"dclip_released"})
PAIRS, BATCH = 360, 8


def shortened(recipe: Recipe) -> Recipe:
    """Few scenes, two steps of every phase that trains, small batches."""
    value = recipe.to_dict()
    value["stages"]["pairs"]["pool"]["pairs"] = PAIRS
    for stage in value["stages"].values():
        for phase in stage.get("phases", {}).values():
            phase["global_batch_size"], phase["schedule"]["warmup_samples"] = BATCH, 0
            phase["samples_seen"] = min(phase["samples_seen"], 2 * BATCH)
    return Recipe.model_validate(value)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def run(recipe, root, last):
    """Artifacts of the stages that `last` and what comes before it in its chain need, and the others' names."""
    place = Place(root=str(root), ranks="local", cpus_per_worker=1, loader_workers=0)
    needed, waiting = set(), [last]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += [parent for parent, _ in recipe.stages[name].roles().values()]
    made = {}
    for name in (name for name in recipe.order() if name in needed):
        spec = recipe.stages[name]
        uris = {role: made[parent].uri for role, (parent, _) in spec.roles().items()}
        made[name] = run_stage(name, spec, uris, place)
    return made


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_and_what_comes_out_loads(root, name):
    recipe = shortened(load_recipe(name))
    trained = [stage for stage, spec in recipe.stages.items() if isinstance(spec, TrainSpec)]
    made = run(recipe, root, trained[-1])
    result = made[trained[-1]]
    towers = load_towers(result.uri)
    assert not [entry for entry in towers.layout if entry.get("keep") is False]
    assert result.record.metrics["open_clip_layout"] is (not towers.layout)
    assert 0 < result.record.metrics["active_parameters"] <= result.record.counts["parameters"]
    phases = recipe.stages[trained[-1]].phases.values()
    assert any(phase.samples_seen for phase in phases)


@pytest.mark.parametrize("name", ["neg_clip", "long_clip"])
def test_its_own_questions_can_be_asked(root, name):
    recipe = shortened(load_recipe(name))
    stage = [stage for stage, spec in recipe.stages.items() if isinstance(spec, TrainSpec)][-1]
    evaluation = run(recipe, root, f"evaluate_{stage}")[f"evaluate_{stage}"]
    asked = recipe.stages[f"evaluate_{stage}"].sets["scenes"].tasks
    answered = {row["task"] for row in storage.read_json(evaluation.at("report.json"))["rows"]}
    assert answered == set(asked) > {"retrieval", "geometry"}


def test_clusters_are_asked_for_where_the_method_says_so():
    phases = load_recipe("clip_moe").stages["clip_moe"].phases.values()
    assert any(isinstance(phase.view.sampler, ClusterSampler) for phase in phases)
