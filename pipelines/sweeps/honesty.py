"""What may choose a winner: a number on pairs that judge nothing. Refused before anything runs, and proved by the uids.

An objective's split must not be scored by an evaluation that a report shows, nor, in a recipe without a report, by any
other evaluation. Names can hide what pairs are, so before the first trial the uids themselves are compared.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from data.artifacts import Artifact
from data.errors import RecipeError, nearest
from data.selection import read_split, uids_of
from data.spec import canonical_json, identity
from data.stage import StageSpec
from evaluation.specs import EvaluateSpec, OutOfDistribution, ReportSpec, Scored
from pipelines.explain import need
from pipelines.recipe import Recipe
from pipelines.sweeps.cutting import ancestors, stage_of
from pipelines.sweeps.spec import Objective
from training.specs import TrainSpec

Stages = Mapping[str, StageSpec]


class Held(NamedTuple):
    """Held-out pairs: which shard set, which split stage, which split of it."""

    pairs: str
    split: str
    name: str


def check_objective(objective: Objective, recipe: Recipe) -> Held:
    """The pairs that the objective is measured on; they judge nothing.

    Raises:
        RecipeError: there is no such number, or it is one that the recipe is judged by.
    """
    stages = recipe.stages
    need("objective.stage", objective.stage, stages, "no such stage")
    stage = stages[objective.stage]
    if isinstance(stage, TrainSpec):
        held = _validated(objective, stage)
    elif isinstance(stage, EvaluateSpec):
        held = _evaluated(objective, stage)
    else:
        raise RecipeError(
            f"objective.stage: {objective.stage!r}: stages of kind {stage.kind} have no validation metric; "
            "name a train stage with a validation, or an evaluate stage that no report reads"
        )
    for other, where in judged(objective, stages):
        if other.split == held.split and other.name == held.name:
            raise RecipeError(
                f"objective: split {held.name!r}: {where} judges by it, so it may not choose; "
                "hold out another split, which no report scores"
            )
    return held


def _validated(objective: Objective, stage: TrainSpec) -> Held:
    place = f"stages.{objective.stage}"
    if objective.metric != "validation_loss":
        hint = nearest(objective.metric, ["validation_loss"])
        raise RecipeError(
            f"objective.metric: {objective.metric!r}: of a train stage only validation_loss is measured on pairs "
            f"that are not trained on{hint}"
        )
    if objective.mode != "min":
        raise RecipeError("objective.mode: 'max': a lower validation_loss is better; write min")
    given = [name for name in ("set", "split", "task") if getattr(objective, name) is not None]
    if given:
        raise RecipeError(f"objective.{given[0]}: belongs to an evaluation; remove it for a train stage")
    if stage.validation is None:
        raise RecipeError(
            f"{place}.validation: missing, so there is no validation_loss; add to `set`: "
            f"{place}.validation: {{split: SPLIT_STAGE, name: SPLIT, every_samples: PAIRS}}"
        )
    return Held(stage.pairs, stage.validation.split, stage.validation.name)


def _evaluated(objective: Objective, stage: EvaluateSpec) -> Held:
    for name in ("set", "split", "task"):
        if getattr(objective, name) is None:
            raise RecipeError(f"objective.{name}: missing; an evaluation's metric is named by set, split, task, metric")
    need("objective.set", str(objective.set), stage.sets, "not in this evaluation")
    scored = stage.sets[str(objective.set)]
    need("objective.split", str(objective.split), scored.splits, "not scored in this set")
    need("objective.task", str(objective.task), scored.tasks, "not in this set")
    return Held(scored.pairs, scored.split, str(objective.split))


def judged(objective: Objective, stages: Stages) -> Iterator[tuple[Held, str]]:
    """Held-out pairs that the recipe is judged by, each with where."""
    reports = {name: spec for name, spec in stages.items() if isinstance(spec, ReportSpec)}
    shown = {evaluation: f"stages.{name}" for name, spec in reports.items() for evaluation in spec.evaluations.values()}
    for name, spec in stages.items():
        if not isinstance(spec, EvaluateSpec):
            continue
        if name in shown or (not reports and name != objective.stage):
            where = shown.get(name, f"stages.{name}")
            yield from ((held, where) for held in _scored(spec))


def _scored(spec: EvaluateSpec) -> Iterator[Held]:
    for scored in spec.sets.values():
        yield from (Held(scored.pairs, scored.split, split) for split in scored.splits)
        for task in scored.tasks.values():
            others = task.out if isinstance(task, OutOfDistribution) else ()
            reference = getattr(task, "reference", None)
            for where in (*others, *([reference] if reference else [])):
                name, _, split = str(where).rpartition("/")
                other: Scored = spec.sets[name] if name else scored
                yield Held(other.pairs, other.split, split)


def check_searched(paths: list[str], objective: Objective, held: Held, stages: Stages) -> None:
    """Every trial is asked the same: what is searched may not change the pairs or the question of the objective.

    Raises:
        RecipeError: names the field.
    """
    asked = ancestors(stages, [held.split, held.pairs])
    for path in paths:
        stage = stage_of(path)
        inner = path.split(".")[2:]
        if stage in asked:
            raise RecipeError(f"space.{path}: decides which pairs the objective is measured on; it cannot be searched")
        if stage == objective.stage and (isinstance(stages[stage], EvaluateSpec) or inner[:1] == ["validation"]):
            raise RecipeError(f"space.{path}: decides what the objective measures; it cannot be searched")


def splits_to_compare(objective: Objective, held: Held, recipe: Recipe) -> list[Held]:
    """Judged splits over the very pairs that the objective's split is taken from."""
    stages = recipe.stages

    def said(pairs: str) -> str:
        return canonical_json(identity(stages[pairs]))

    found = dict.fromkeys(other for other, _ in judged(objective, stages))
    return [other for other in found if said(other.pairs) == said(held.pairs)]


def check_uids(held: Held, others: list[Held], made: Mapping[str, Artifact]) -> None:
    """No uid of the objective's split is one that a report judges by; `made` holds the split stages' artifacts.

    Raises:
        RecipeError: names how many, and one.
    """
    chosen = set(uids_of(read_split(made[held.split]), (held.name,)))
    for other in others:
        shared = chosen & set(uids_of(read_split(made[other.split]), (other.name,)))
        if shared:
            raise RecipeError(
                f"objective: split {held.name!r} of stages.{held.split}: {len(shared)} of its pairs are judged by as "
                f"{other.name!r} of stages.{other.split}, e.g. {min(shared)!r}; hold out others"
            )
