"""The built-in recipes, resolved, as text: a review sees every number that really changes.

After a wanted change: for each name, `clipworks recipe show NAME > tests/golden/NAME.recipe.yaml`.
"""

from pathlib import Path

import pytest

from pipelines.recipe import load_recipe, parse_recipe, recipe_names
from pipelines.yaml_text import parse_yaml

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", recipe_names())
def test_a_built_in_recipe_is_what_its_golden_file_says(name):
    golden = (GOLDEN / f"{name}.recipe.yaml").read_text()
    assert load_recipe(name).to_yaml() == golden
    assert parse_recipe(parse_yaml(golden, name)) == load_recipe(name)
