"""`--set`: what changes, what is refused, and which right path is offered."""

from typing import Any

import pytest

from data.errors import RecipeError
from pipelines.overrides import override
from pipelines.recipe import Recipe, parse_recipe
from training.specs import SigLIP, TrainSpec

WARM = "stages.pretrain.phases.warm"


@pytest.fixture
def recipe(small: dict[str, Any]) -> Recipe:
    return parse_recipe(small)


def value_at(recipe: Recipe, path: str) -> Any:
    value: Any = recipe.to_dict()
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        (f"{WARM}.optimizer.lr", "1e-4", 0.0001),
        (f"{WARM}.optimizer.betas.1", "0.95", 0.95),
        (f"{WARM}.optimizer.clip_grad_norm", "null", None),
        (f"{WARM}.view.caption_weights.other", "0.5", 0.5),
        (f"{WARM}.view.augment", "null", None),
        ("stages.curate.balance", "null", None),
        ("stages.embed.queries", "[red, blue car]", ["red", "blue car"]),
        ("stages.embed.queries.2", "blue", "blue"),
        ("stages.embed.queries.1", "yes", "yes"),
        ("stages.init.architecture", "ViT-B-32", "ViT-B-32"),
        ("stages.init.architecture.embed_dim", "16", 16),
        ("title", "A = B", "A = B"),
    ],
)
def test_a_value_is_read_as_yaml(recipe: Recipe, path: str, text: str, value: Any) -> None:
    new = override(recipe, [f"{path}={text}"])
    assert value_at(new, path) == value


def test_nothing_else_changes(recipe: Recipe) -> None:
    new = override(recipe, [f"{WARM}.optimizer.lr=0.5"])
    assert override(new, [f"{WARM}.optimizer.lr=0.001"]) == recipe
    assert override(recipe, []) is recipe


def test_later_assignments_see_earlier_ones(recipe: Recipe) -> None:
    new = override(recipe, ["stages.embed.queries=[a, red]", "stages.embed.queries.0=b"])
    assert value_at(new, "stages.embed.queries") == ["b", "red"]


def test_another_member_of_a_family_needs_only_its_name(recipe: Recipe) -> None:
    new = override(recipe, [f"{WARM}.objectives.contrast.loss.objective=siglip"])
    stage = new.stages["pretrain"]
    assert isinstance(stage, TrainSpec)
    assert stage.phases["warm"].objectives["contrast"].loss == SigLIP()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("pretrain.seed=1", "did you mean 'stages.pretrain.seed'"),
        ("stages.pretrian.seed=1", "did you mean 'stages.pretrain.seed'"),
        ("stage.pretrain.seed=1", "did you mean 'stages.pretrain.seed'"),
        (f"{WARM}.optimizer.lrr=1", f"did you mean '{WARM}.optimizer.lr'"),
        ("stages.pretrain.phases.wram.optimizer.lr=1", f"did you mean '{WARM}.optimizer.lr'"),
        ("pretrain.phases.warm.lr=1", f"did you mean '{WARM}.optimizer.lr'"),
        ("pretrain.phases.warm.optimiser.lr=1", f"did you mean '{WARM}.optimizer.lr'"),
        ("optimizer.lr=1", "did you mean 'stages.pretrain.phases.warm.optimizer.lr'"),
        ("stages.foo.seed=1", "no such stage; have pairs, split"),
        ("stages.foo={kind: model}", "no such stage"),
        ("stages.embed.queries.9=x", "has 2 values"),
        ("stages.embed.queries.one=x", "has 2 values"),
        ("stages.pretrain.seed.x=1", "stages.pretrain.seed is 0, so nothing lies below it"),
        ("stages.init.pretrained.x=1", "stages.init.pretrained is None"),
        ("stages.pretrain.seed", "write path=value"),
        ("=1", "write path=value"),
        ("stages.pretrain.seed=[1", "not valid YAML"),
        ("stages.pretrain.seed=x", "stages.pretrain.seed: 'x': should be a valid integer"),
        ("stages.pretrain.seed=1.5", "stages.pretrain.seed: 1.5"),
        ("stages.pretrain.init=inti", "did you mean 'init'"),
        (f"{WARM}.optimizer.lr=.nan", "give a finite number"),
        (f"{WARM}.objectives.contrast.loss.objective=siglp", "did you mean 'siglip'"),
    ],
)
def test_a_wrong_assignment_is_one_line_with_the_right_path(recipe: Recipe, assignment: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(recipe, [assignment])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
