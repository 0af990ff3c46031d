"""Values of trials: drawn once, before anything runs, as a pure function of the seed; perturbed, for a population."""

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from data.errors import RecipeError
from data.spec import canonical_json
from pipelines.recipe import Recipe
from pipelines.schema import child_value
from pipelines.sweeps.spec import Dimension

Space = Mapping[str, Dimension]
Values = dict[str, Any]  # dotted recipe field -> its value
_MOST_TRIES = 1000
_DIGITS = 4  # of a drawn number: enough to search by, and a winner's recipe stays readable


def values_of(recipe: Recipe, space: Space) -> Values:
    """What the recipe itself has in the searched fields."""
    tree = recipe.to_dict()
    return {path: _at(tree, path) for path in space}


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = child_value(tree, key)
    return tree


def draw(space: Space, trials: int, seed: int, base: Values) -> list[Values]:
    """The trials' values, all different: `base` first, then `trials` draws at each point of the grid.

    Raises:
        RecipeError: the space has not so many different values.
    """
    generator = random.Random(seed)
    grid = [path for path, dimension in space.items() if dimension.grid]
    found, seen = [base], {canonical_json(base)}
    for point in itertools.product(*(space[path].grid or () for path in grid)):
        fixed = dict(zip(grid, point, strict=True))
        if trials == 1 and len(grid) == len(space) and canonical_json(fixed | {}) in seen:
            continue  # the recipe's own point of the grid is trial 0 already
        for _ in range(trials):
            values = _new(space, fixed, generator, seen)
            if values is None:
                raise RecipeError(
                    f"trials: {trials}: the space has only {len(found) - 1} values besides the recipe's own; "
                    "lower trials, or widen the space"
                )
            seen.add(canonical_json(values))
            found.append(values)
    return found


def _new(space: Space, fixed: Values, generator: random.Random, seen: set[str]) -> Values | None:
    """Values that no trial has yet; None where there seem to be none."""
    for _ in range(_MOST_TRIES):
        values = {path: fixed[path] if path in fixed else sample(space[path], generator) for path in space}
        if canonical_json(values) not in seen:
            return values
    return None


def sample(dimension: Dimension, generator: random.Random) -> Any:
    """One value at random."""
    if not dimension.is_range:
        return generator.choice(dimension.values)
    low, high = dimension.ends
    if dimension.integer:
        return generator.randint(*dimension.integer)
    if dimension.log_uniform:
        low, high = math.log(low), math.log(high)
    drawn = generator.uniform(low, high)
    return _kept(math.exp(drawn) if dimension.log_uniform else drawn, dimension)


def _kept(number: float, dimension: Dimension) -> float:
    """A number with few digits, inside its range."""
    low, high = dimension.ends
    return min(max(float(f"{number:.{_DIGITS}g}"), low), high)


def perturbed(space: Space, values: Values, generator: random.Random, resample: float, factor: float) -> Values:
    """Values near these: numbers times or over `factor` but inside their range, a neighbour in a list, or fresh ones.

    A value at the end of its range may stay; the values as a whole never do.
    """
    for _ in range(_MOST_TRIES):
        found = {
            path: sample(dimension, generator) if generator.random() < resample
            else _moved(dimension, values[path], generator, factor)
            for path, dimension in space.items()
        }  # fmt: skip
        if found != values:
            return found
    return values


def _moved(dimension: Dimension, value: Any, generator: random.Random, factor: float) -> Any:
    up = generator.random() < 0.5
    if not dimension.is_range:
        listed = dimension.values
        if value not in listed:
            return generator.choice(listed)
        return listed[min(max(listed.index(value) + (1 if up else -1), 0), len(listed) - 1)]
    if dimension.integer:
        step = max(1, round(abs(value) * (factor - 1)))
        low, high = dimension.integer
        return min(max(value + (step if up else -step), low), high)
    return _kept(value * factor if up else value / factor, dimension)
