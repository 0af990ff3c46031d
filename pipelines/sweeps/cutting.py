"""Recipes of trials: the base with other values, cut to what the objective needs, as a chain of segments for PBT."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.errors import RecipeError
from data.spec import canonical_json, identity, orders
from data.stage import StageSpec
from pipelines.overrides import override
from pipelines.recipe import Recipe, parse_recipe
from training.specs import TrainSpec

_NAME_CHARACTERS = 40


def with_values(recipe: Recipe, values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with these fields changed.

    Raises:
        RecipeError: `where.path: ...`, with the nearest right path.
    """
    assignments = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    try:
        return override(recipe, assignments)
    except RecipeError as error:
        text = str(error)
        raise RecipeError(f"{where}.{text.removeprefix('--set ')}" if text.startswith("--set ") else text) from error


def ancestors(stages: Mapping[str, StageSpec], names: Iterable[str]) -> set[str]:
    """These stages and all that they are made from."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += [parent for parent, _ in stages[name].roles().values()]
    return found


def cut(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe with these stages and what they are made from alone."""
    kept = ancestors(recipe.stages, names)
    stages = {name: stage.model_dump(mode="json") for name, stage in recipe.stages.items() if name in kept}
    return parse_recipe({**recipe.to_dict(), "stages": stages, "minutes": None})


def touched(stages: Mapping[str, StageSpec], searched: Iterable[str], among: Iterable[str]) -> set[str]:
    """Those stages of `among` whose result a searched stage can change."""
    changed = set(searched)
    return {name for name in among if ancestors(stages, [name]) & changed}


def stage_of(path: str) -> str:
    """Name of the stage that a dotted field belongs to."""
    return path.split(".")[1]


def told_apart(ours: StageSpec, theirs: StageSpec) -> bool:
    """Whether two specs would give different fingerprints, parents apart."""
    said = [canonical_json([identity(spec), dict(orders(spec))]) for spec in (ours, theirs)]
    return said[0] != said[1]


def chain(recipe: Recipe, stage: str, segment_samples: int, values: Sequence[Mapping[str, Any]]) -> Recipe:
    """The recipe with one training stage as a chain of segments, each with its own values.

    A segment starts from the weights of the one before, with a new optimiser and schedule, and sees pairs in an order
    of its own: seed + number. The last one keeps the stage's name, so that whatever follows is made from it.
    """
    stages: dict[str, Any] = {}
    for name, spec in recipe.stages.items():
        if name != stage:
            stages[name] = spec.model_dump(mode="json")
            continue
        names = [segment_name(stage, number) for number in range(1, len(values))] + [stage]
        for number, own in enumerate(values):
            segment = with_values(recipe, own, "space").stages[stage]
            assert isinstance(segment, TrainSpec)
            previous = names[number - 1] if number else None
            stages[names[number]] = _segment(segment, number, segment_samples, previous).model_dump(mode="json")
    return parse_recipe({**recipe.to_dict(), "stages": stages})


def _segment(spec: TrainSpec, number: int, samples: int, previous: str | None) -> TrainSpec:
    changes: dict[str, Any] = {"samples_seen": samples}
    if previous:
        changes["surgeries"] = ()  # the weights it starts from have been through them
    phases = {name: phase.model_copy(update=changes) for name, phase in spec.phases.items()}
    return spec.model_copy(update={"phases": phases, "seed": spec.seed + number, "init": previous or spec.init})


def segment_name(stage: str, number: int) -> str:
    """Name of an earlier segment of a stage."""
    return f"{stage[: _NAME_CHARACTERS - 4]}_{number}"
