"""What an experiment must say before hours are spent on it: names that exist, stages of every arm and seed, margins."""

from collections.abc import Iterable

from data.errors import nearest
from pipelines.methods.method import Comparison, Experiment, Measure, Method, MethodError, stage_of

FEWEST_SEEDS = 2


def make_experiment(method: Method, seeds: int) -> Experiment:
    """The method's experiment for so many seeds, checked.

    Raises:
        MethodError: too few seeds, or the experiment does not fit together; one line that names what.
    """
    if seeds < FEWEST_SEEDS:
        raise MethodError(f"--seeds {seeds}: an interval over seeds needs at least {FEWEST_SEEDS}; give --seeds 5")
    experiment = method.experiment(seeds)
    try:
        _check(experiment, seeds)
    except MethodError as error:
        raise MethodError(f"method {method.name}: {error}") from error
    return experiment


def _check(experiment: Experiment, seeds: int) -> None:
    if experiment.seeds != seeds:
        raise MethodError(f"seeds: {experiment.seeds} where {seeds} were asked for; make stages for each of them")
    _require(experiment.headline, experiment.measures, "headline")
    for name, measure in experiment.measures.items():
        _check_measure(f"measures.{name}", measure, experiment)
    for number, comparison in enumerate(experiment.comparisons):
        _check_comparison(f"comparisons.{number}", comparison, experiment)
    for number, ordering in enumerate(experiment.orderings):
        _require(ordering.measure, experiment.measures, f"orderings.{number}.measure")
        _check_arms(f"orderings.{number}.arms", ordering.arms, ordering.measure, experiment)
        if len(set(ordering.arms)) < max(2, len(ordering.arms)):
            raise MethodError(f"orderings.{number}.arms: name at least two arms, each once")


def _check_measure(where: str, measure: Measure, experiment: Experiment) -> None:
    for arm in measure.arms or experiment.arms:
        _require(arm, experiment.arms, f"{where}.arms")
        if measure.compute is None:
            _check_stages(where, arm, experiment)
    if measure.compute is None and not (measure.split and measure.task and measure.metric):
        raise MethodError(f"{where}: neither split, task and metric nor `compute` is given; give one of them")


def _check_stages(where: str, arm: str, experiment: Experiment) -> None:
    """Every seed has an evaluation of the arm, its own or the one they share."""
    if stage_of(arm, None, "evaluate") in experiment.stages:
        return
    for seed in range(experiment.seeds):
        name = stage_of(arm, seed, "evaluate")
        if name not in experiment.stages:
            raise MethodError(f"{where}: arm {arm!r} has no stage {name!r}{nearest(name, experiment.stages)}")


def _check_comparison(where: str, comparison: Comparison, experiment: Experiment) -> None:
    _require(comparison.measure, experiment.measures, f"{where}.measure")
    _check_arms(where, (comparison.left, comparison.right), comparison.measure, experiment)
    if (comparison.expect == "equal") != (comparison.margin is not None):
        raise MethodError(f"{where}: `margin` goes with `equal`, which needs one: what difference would not matter?")


def _check_arms(where: str, arms: Iterable[str], measure: str, experiment: Experiment) -> None:
    measured = experiment.measures[measure].arms or tuple(experiment.arms)
    for arm in arms:
        _require(arm, experiment.arms, where)
        if arm not in measured:
            raise MethodError(f"{where}: arm {arm!r} is not measured by {measure!r}; add it to the measure's `arms`")


def _require(name: str, known: Iterable[str], where: str) -> None:
    known = list(known)
    if name not in known:
        raise MethodError(f"{where}: {name!r} is unknown{nearest(name, known) or '; have ' + ', '.join(known)}")
