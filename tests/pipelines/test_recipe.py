"""A recipe equals its text: YAML and JSON round trips, defaults written out, order, and the built-in recipes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.runtime import SPECS
from data.errors import RecipeError
from pipelines.cli import main
from pipelines.recipe import Recipe, Stage, load_recipe, parse_recipe, recipe_names
from pipelines.schema import tags
from pipelines.yaml_text import parse_yaml, to_yaml


def test_yaml_round_trip(small: dict[str, Any]) -> None:
    recipe = parse_recipe(small)
    assert parse_recipe(parse_yaml(recipe.to_yaml(), "text")) == recipe


def test_json_round_trip(small: dict[str, Any]) -> None:
    recipe = parse_recipe(small)
    assert parse_recipe(json.loads(recipe.to_json())) == recipe


def test_text_keeps_fingerprints(small: dict[str, Any]) -> None:
    recipe = parse_recipe(small)
    again = parse_recipe(parse_yaml(recipe.to_yaml(), "text"))
    for name, stage in recipe.stages.items():
        parents = dict.fromkeys(stage.roles(), "f" * 64)
        assert again.stages[name].fingerprint(parents) == stage.fingerprint(parents)


def test_yaml_is_headed_by_purpose_and_command(small: dict[str, Any]) -> None:
    header = [line for line in parse_recipe(small).to_yaml().splitlines() if line.startswith("#")]
    assert "# Stands for every recipe in these tests." in header
    assert any("clipworks run" in line for line in header)


def test_every_default_is_written_out(small: dict[str, Any]) -> None:
    assert parse_recipe(small).to_dict()["stages"]["pretrain"]["phases"]["warm"]["optimizer"]["betas"] == [0.9, 0.98]


def test_order_has_parents_first_and_is_else_the_recipes_own(small: dict[str, Any]) -> None:
    backwards = {**small, "stages": dict(reversed(small["stages"].items()))}
    order = parse_recipe(backwards).order()
    for name, stage in parse_recipe(backwards).stages.items():
        assert all(order.index(parent) < order.index(name) for parent, _ in stage.roles().values())
    assert parse_recipe(small).order() == list(small["stages"])


def test_a_recipe_is_frozen(small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(small).title = "other"


def test_the_union_of_stages_is_what_components_run() -> None:
    assert set(tags(Stage)) == set(SPECS)
    assert all(spec.model_fields["kind"].default == kind for kind, spec in SPECS.items())


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name.replace("-", "_") == name
    assert recipe.purpose
    assert recipe.expect
    assert parse_recipe(parse_yaml(recipe.to_yaml(), name)) == recipe


def test_a_typo_in_a_name_is_answered_with_the_name() -> None:
    with pytest.raises(RecipeError, match=f"did you mean '{recipe_names()[0]}'"):
        load_recipe(recipe_names()[0][:-1])


def test_show_prints_what_run_reads(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", str(small_file), "--set", "stages.pretrain.seed=7"]) == 0
    shown = parse_recipe(parse_yaml(capsys.readouterr().out, "shown"))
    assert shown.stages["pretrain"].model_dump()["seed"] == 7


def test_list_has_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^{name}\b", out, re.MULTILINE) for name in recipe_names())


@pytest.mark.parametrize(
    "value", ["1e-3", "on", "no", "0x10", "12:30", "2026-01-01", "null", "~", "1.0", "=", "a: b", "é", ""]
)
def test_strings_that_look_like_something_else_stay_strings(value: str) -> None:
    assert parse_yaml(to_yaml({"a": value}), "text") == {"a": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("on", "on"),
        ("no", "no"),
        ("010", 10),
        ("[a, 2]", ["a", 2]),
        ("null", None),
        ("", None),
        ("true", True),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    assert parse_yaml(text, "text") == value


@pytest.mark.parametrize("number", [1e-3, 1e-06, 2e20, 0.1, 5.0, 3])
def test_numbers_keep_their_type_and_value(number: float) -> None:
    again = parse_yaml(to_yaml({"a": number}), "text")["a"]
    assert (again, type(again)) == (number, type(number))


COMMANDS = [
    ["--help"],
    ["run", "--help"],
    ["recipe", "list"],
    ["recipe", "show", "FILE"],
    ["recipe", "show", "nothing.yaml"],
    ["plan", "FILE"],
    ["plan", "FILE", "--set", "stages.pretrain.sede=1"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_answers_import_nothing_heavy(arguments: list[str], small_file: Path) -> None:
    words = [str(small_file) if word == "FILE" else word for word in arguments]
    program = (
        "import sys\nfrom pipelines.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'ray', 'kfp', 'open_clip', 'wandb', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout


def test_recipe_class_has_no_other_fields() -> None:
    assert list(Recipe.model_fields) == ["name", "title", "purpose", "hardware", "minutes", "expect", "stages"]
