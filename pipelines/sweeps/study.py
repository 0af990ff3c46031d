"""A sweep that was checked as a whole: every trial's recipe is valid, and its number may choose. Nothing has run."""

from collections.abc import Sequence
from typing import NamedTuple

from data.errors import RecipeError
from data.stage import StageSpec
from pipelines.overrides import override
from pipelines.recipe import Recipe, load_recipe, parse_recipe
from pipelines.schema import paths_of
from pipelines.sweeps.cutting import ancestors, chain, cut, segment_name, stage_of, told_apart, touched, with_values
from pipelines.sweeps.honesty import Held, check_objective, check_searched, splits_to_compare
from pipelines.sweeps.space import Values, draw, values_of
from pipelines.sweeps.spec import Sweep
from training.specs import TrainSpec


class Study(NamedTuple):
    """A checked sweep. `settings` are the trials' values, the recipe's own first; `compared` are split stages."""

    sweep: Sweep
    recipe: Recipe
    held: Held
    settings: tuple[Values, ...]
    searched: tuple[str, ...]
    compared: tuple[Held, ...]

    @property
    def segments(self) -> int:
        """Training stages of a trial's chain: 1 unless the scheduler is PBT."""
        pbt = self.sweep.scheduler.pbt
        return self.samples(self.settings[0]) // pbt.segment_samples if pbt else 1

    def samples(self, values: Values) -> int:
        """Pairs that a trial's objective stage sees; 0 where the objective is an evaluation's."""
        return length(with_values(self.recipe, values, "space").stages[self.sweep.objective.stage])

    def winner(self, history: Sequence[Values]) -> Recipe:
        """The whole recipe with a trial's values; `history` has one entry a segment."""
        pbt = self.sweep.scheduler.pbt
        if pbt is None:
            return with_values(self.recipe, history[0], "space")
        return chain(self.recipe, self.sweep.objective.stage, pbt.segment_samples, history)

    def trial(self, history: Sequence[Values]) -> Recipe:
        """A trial's recipe: what its objective needs, and no more."""
        return cut(self.winner(history), [self.sweep.objective.stage])

    def trial_stages(self, recipe: Recipe) -> list[str]:
        """Those of a trial's stages that its values can change, parents first."""
        shared = self.shared_names()
        return [name for name in recipe.order() if name not in shared]

    def shared_names(self) -> set[str]:
        """Stages that are the same for all trials, and the splits that the objective's is compared with."""
        stages = self.recipe.stages
        needed = ancestors(stages, [self.sweep.objective.stage, *(held.split for held in self.compared)])
        return needed - touched(stages, self.searched, needed)

    def shared(self) -> Recipe | None:
        """The recipe of the stages that are the same for all trials; None where there are none."""
        names = self.shared_names()
        return cut(self.recipe, names) if names else None


def length(spec: StageSpec) -> int:
    """Pairs that a training stage sees, in whole global batches; 0 for another stage."""
    phases = spec.phases.values() if isinstance(spec, TrainSpec) else ()
    return sum(phase.steps * phase.global_batch_size for phase in phases)


def make_study(sweep: Sweep) -> Study:
    """Check a sweep and draw its trials.

    Raises:
        RecipeError: one line; nothing has run.
    """
    loaded = load_recipe(sweep.recipe) if isinstance(sweep.recipe, str) else parse_recipe(sweep.recipe, "recipe")
    recipe = with_values(override(loaded, ()), sweep.set, "set")
    for path in sweep.space:
        _check_path(path, recipe)
    held = check_objective(sweep.objective, recipe)
    searched = tuple(dict.fromkeys(stage_of(path) for path in sweep.space))
    check_searched(list(sweep.space), sweep.objective, held, recipe.stages)
    _check_effect(sweep, recipe)
    settings = draw(sweep.space, sweep.trials, sweep.seed, values_of(recipe, sweep.space))
    compared = tuple(splits_to_compare(sweep.objective, held, recipe))
    study = Study(sweep, recipe, held, tuple(settings), searched, compared)
    _check_scheduler(study)
    for number, values in enumerate(settings):
        _check_trial(study, number, values)
    return study


def _check_path(path: str, recipe: Recipe) -> None:
    """The field exists in the recipe, with a value that trial 0 has."""
    if path.count(".") < 2 or not path.startswith("stages."):
        hint = f"; did you mean 'stages.{path}'?" if path.split(".")[0] in recipe.stages else ""
        raise RecipeError(f"space.{path}: a searched field is written stages.STAGE.FIELD{hint}")
    if path not in set(paths_of(recipe.to_dict())):
        with_values(recipe, {path: None}, "space")  # says what is wrong with the path
        raise RecipeError(f"space.{path}: the recipe has no value there; give it one in `set`")


def _check_effect(sweep: Sweep, recipe: Recipe) -> None:
    """Every searched field can change the objective, and every value that is listed may stand there."""
    needed = ancestors(recipe.stages, [sweep.objective.stage])
    for path, dimension in sweep.space.items():
        stage = stage_of(path)
        if stage not in needed:
            raise RecipeError(
                f"space.{path}: stages.{sweep.objective.stage} is not made from {stage!r}, so the objective cannot "
                "depend on it; search another field"
            )
        made = [with_values(recipe, {path: value}, "space").stages[stage] for value in dimension.values]
        if len(made) > 1 and not told_apart(made[0], made[-1]):
            raise RecipeError(f"space.{path}: cannot change the result of stages.{stage}; search another field")


def _check_trial(study: Study, number: int, values: Values) -> None:
    try:
        study.trial([values] * study.segments)
    except RecipeError as error:
        said = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in values.items())
        raise RecipeError(f"trial {number} ({said}): {error}") from error


def _check_scheduler(study: Study) -> None:
    """ASHA and PBT have validation losses on the way to act upon."""
    scheduler, objective = study.sweep.scheduler, study.sweep.objective
    if not (scheduler.asha or scheduler.pbt):
        return
    which, spec = "asha" if scheduler.asha else "pbt", study.recipe.stages[objective.stage]
    if not isinstance(spec, TrainSpec) or spec.validation is None:
        raise RecipeError(
            f"scheduler.{which}: needs losses on the way, which an evaluation does not have; "
            "choose a train stage's validation_loss, or leave the scheduler out"
        )
    if scheduler.asha:
        longest = max(study.samples(values) for values in study.settings)
        for name, pairs in (
            ("scheduler.asha.grace_samples", scheduler.asha.grace_samples),
            (f"stages.{objective.stage}.validation.every_samples", spec.validation.every_samples),
        ):
            if pairs >= longest:
                raise RecipeError(f"{name}: {pairs}: no trial is longer than {longest} pairs; lower it")
    if scheduler.pbt:
        _check_pbt(study, spec, scheduler.pbt.segment_samples)


def _check_pbt(study: Study, spec: TrainSpec, segment: int) -> None:
    objective, stage = study.sweep.objective, study.sweep.objective.stage
    place = f"stages.{objective.stage}"
    if len(spec.phases) > 1:
        raise RecipeError(f"scheduler.pbt: {place} has {len(spec.phases)} phases; a segment is one phase: use asha")
    name, phase = next(iter(spec.phases.items()))
    for path in study.sweep.space:
        if stage_of(path) != stage or path.rpartition(".")[2] in ("samples_seen", "global_batch_size", "init"):
            raise RecipeError(
                f"space.{path}: PBT changes values between segments of {place}, so not this one; use asha"
            )
    if len(study.settings) < 3:
        raise RecipeError(f"trials: {study.sweep.trials}: a population has 2 or more")
    if segment % phase.global_batch_size:
        size = phase.global_batch_size
        raise RecipeError(f"scheduler.pbt.segment_samples: {segment}: not whole global batches; a multiple of {size}")
    total = phase.samples_seen
    if total % segment or total < 2 * segment:
        raise RecipeError(
            f"scheduler.pbt.segment_samples: {segment}: {place}.phases.{name}.samples_seen is {total}; "
            "make it 2 or more whole segments"
        )
    taken = {segment_name(stage, number) for number in range(1, total // segment)} & set(study.recipe.stages)
    if taken:
        raise RecipeError(f"scheduler.pbt: the recipe has a stage {min(taken)!r} already; rename it")
