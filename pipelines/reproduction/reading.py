"""From the artifacts of an experiment to its numbers: every measure of every arm and seed, and what the arms cost."""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from statistics import median
from typing import Any, NamedTuple

from data import storage
from data.artifacts import Artifact
from data.errors import nearest
from data.measurement import Measurement, measurement_uri, read_measurement
from pipelines.methods.method import Experiment, Found, Measure, MethodError, stage_of
from pipelines.reproduction.card import ArmCost, MeanOfCard, MeasureOfCard
from pipelines.reproduction.statistics import spread_of

_DIGITS = 6  # significant, of a kept value: more than any interval here resolves


class Cell(NamedTuple):
    """One number: value in its unit, samples it is over, its chance level."""

    value: float | None
    unit: str
    samples: int | None = None
    chance: float | None = None


def read_measure(measure: Measure, experiment: Experiment, artifacts: Mapping[str, Artifact]) -> MeasureOfCard:
    """A measure's values of its arms and all seeds.

    Raises:
        MethodError: an evaluation has no such number, or arms give it in different units.
    """
    arms, seeds = measure.arms or tuple(experiment.arms), range(experiment.seeds)
    cells = {arm: [_cell(measure, Found(artifacts, arm, seed)) for seed in seeds] for arm in arms}
    every = [cell for own in cells.values() for cell in own]
    if len({cell.unit for cell in every}) > 1:
        raise MethodError(f"{measure.title}: arms give it in {', '.join(sorted({cell.unit for cell in every}))}")
    values = {arm: tuple(cell.value for cell in own) for arm, own in cells.items()}
    samples = [cell.samples for cell in every if cell.samples is not None]
    chances = {cell.chance for cell in every}
    return MeasureOfCard(
        title=measure.title, better=measure.better, unit=every[0].unit,
        place="" if measure.compute else _place(measure), samples=min(samples, default=None),
        chance=chances.pop() if len(chances) == 1 else None, values=values,
        means={arm: MeanOfCard(**spread_of(own)._asdict()) for arm, own in values.items()},
    )  # fmt: skip


def _cell(measure: Measure, found: Found) -> Cell:
    if measure.compute:
        return Cell(rounded(measure.compute(found)), measure.unit)
    rows, wanted = _rows(found.own("evaluate").at("report.json")), _place(measure)
    if wanted not in rows:
        where = f"{found.arm}, seed {found.seed}"
        raise MethodError(f"{where}: no number {wanted!r} (set/split/task/metric){nearest(wanted, rows)}")
    row = rows[wanted]
    return Cell(rounded(row["value"]), str(row["unit"]), int(row["n"]), row["chance"])


def _place(measure: Measure) -> str:
    return "/".join((measure.set, measure.split, measure.task, measure.metric))


@cache
def _rows(report: str) -> dict[str, dict[str, Any]]:
    """Numbers of an evaluation by set/split/task/metric, without its baselines."""
    rows = storage.read_json(report)["rows"]
    parts = ("set", "split", "task", "metric")
    return {"/".join(row[part] for part in parts): row for row in rows if not row["baseline"]}


def rounded(value: float | None) -> float | None:
    """A value as it is kept; None for one that is not a number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.{_DIGITS}g}")


def read_cost(arm: str, experiment: Experiment, artifacts: Mapping[str, Artifact]) -> ArmCost:
    """What an arm's model costs (seed 0's record) and what its training took; unknown for one without a checkpoint."""
    made = [_trained(arm, seed, experiment, artifacts) for seed in range(experiment.seeds)]
    checkpoint = _checkpoint(arm, 0, artifacts)
    if checkpoint is None:
        return ArmCost()
    record, own = checkpoint.record, made[0]
    rates = [rate for seed in made for rate in _rates(seed)]
    return ArmCost(
        parameters=record.counts.get("parameters"),
        active_parameters=record.metrics.get("active_parameters"),
        forward_flops_per_pair=record.metrics.get("forward_flops_per_pair"),
        training_flops=_sum([None if one is None else one.flops for one in own]),
        training_pairs=None if None in own else sum(one.pairs or 0 for one in own if one),
        training_pairs_per_second=rounded(median(rates)) if rates else None,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None where one is not known."""
    known = list(values)
    return None if None in known else math.fsum(value for value in known if value is not None)


def _rates(measurements: Iterable[Measurement | None]) -> list[float]:
    """Pairs per second of whole trainings, without what they took to start."""
    whole = [one for one in measurements if one and one.is_whole]
    taken = [(one.pairs, one.seconds - (one.start_seconds or 0.0)) for one in whole]
    return [pairs / seconds for pairs, seconds in taken if pairs and seconds > 0]


def _checkpoint(arm: str, seed: int, artifacts: Mapping[str, Artifact]) -> Artifact | None:
    return artifacts.get(stage_of(arm, seed)) or artifacts.get(stage_of(arm, None))


def _trained(
    arm: str, seed: int, experiment: Experiment, artifacts: Mapping[str, Artifact]
) -> list[Measurement | None]:
    """Measurements of the trainings behind an arm's checkpoint that no arm of role `start` has behind its own."""
    starts = [other for other, one in experiment.arms.items() if one.role == "start" and other != arm]
    shared = set().union(*(_behind(_checkpoint(other, seed, artifacts), artifacts) for other in starts))
    own = [one for print_, one in _behind(_checkpoint(arm, seed, artifacts), artifacts).items() if print_ not in shared]
    return [measurement_of(one) for one in own if one.record.stage == "train"]


def _behind(checkpoint: Artifact | None, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The checkpoint and all that the experiment made for it, by fingerprint."""
    known = {artifact.fingerprint: artifact for artifact in artifacts.values()}
    queue, found = [checkpoint] if checkpoint else [], dict[str, Artifact]()
    while queue:
        artifact = queue.pop()
        if artifact.fingerprint not in found:
            found[artifact.fingerprint] = artifact
            queue += [known[print_] for print_ in artifact.record.parents.values() if print_ in known]
    return found


def measurement_of(artifact: Artifact) -> Measurement | None:
    """What making an artifact took; None where it was not made below this root."""
    uri = measurement_uri(artifact.root, storage.name_of(artifact.uri))
    return read_measurement(uri) if storage.exists(uri) else None
