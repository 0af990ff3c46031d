"""Makes the card of an experiment that has run: reads the artifacts, compares the arms, judges."""

import math
from collections.abc import Mapping
from typing import Any

from data.artifacts import Artifact
from pipelines.methods.method import Comparison, Experiment, Method, Ordering
from pipelines.reproduction.card import ArmOfCard, Card, ComparisonOfCard, MeasureOfCard, OrderingOfCard, Values
from pipelines.reproduction.judgement import effect_text, head_of
from pipelines.reproduction.reading import measurement_of, read_cost, read_measure, rounded
from pipelines.reproduction.statistics import count_expected, differences_of, kendall_tau, spread_of, verdict_of


def make_card(
    method: Method, experiment: Experiment, artifacts: Mapping[str, Artifact], command: str, versions: Mapping[str, str]
) -> Card:
    """The card from the experiment's artifacts by stage.

    Raises:
        MethodError: an evaluation lacks a number that the experiment measures.
    """
    arms = {
        name: ArmOfCard(title=arm.title, role=arm.role, note=arm.note, cost=read_cost(name, experiment, artifacts))
        for name, arm in experiment.arms.items()
    }
    measures = {name: read_measure(one, experiment, artifacts) for name, one in experiment.measures.items()}
    compared = tuple(compare(one, measures[one.measure]) for one in experiment.comparisons)
    judged = (experiment.headline, arms, measures, compared)
    return Card(
        method=method.name, head=head_of(*judged), effect=effect_text(*judged), data=experiment.data,
        seeds=experiment.seeds, headline=experiment.headline, arms=arms, measures=measures, comparisons=compared,
        orderings=tuple(rank(one, measures[one.measure]) for one in experiment.orderings),
        command=command, stages=len(artifacts), versions=dict(versions), **_taken(artifacts),
    )  # fmt: skip


def compare(comparison: Comparison, measure: MeasureOfCard) -> ComparisonOfCard:
    """What the seeds say of a comparison."""
    differences = differences_of(measure.values[comparison.left], measure.values[comparison.right])
    spread, expected = spread_of(differences), (comparison.expect, comparison.margin)
    return ComparisonOfCard(
        statement=comparison.statement, measure=comparison.measure, left=comparison.left, right=comparison.right,
        expect=comparison.expect, essential=comparison.essential, margin=comparison.margin,
        differences=tuple(map(rounded, differences)), **spread._asdict(),
        as_expected=count_expected(differences, *expected), verdict=verdict_of(spread, *expected),
    )  # fmt: skip


def rank(ordering: Ordering, measure: MeasureOfCard) -> OrderingOfCard:
    """How near the measured rankings come to the expected one; a seed that lacks a value has none."""
    by_seed = zip(*(measure.values[arm] for arm in ordering.arms), strict=True)
    taus: Values = tuple(_tau(values) for values in by_seed)
    known = [tau for tau in taus if tau is not None]
    return OrderingOfCard(
        statement=ordering.statement, measure=ordering.measure, arms=ordering.arms, taus=tuple(map(rounded, taus)),
        mean_tau=math.fsum(known) / len(known) if known else None, in_order=sum(tau == 1 for tau in known),
        n=len(known),
    )  # fmt: skip


def _tau(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return kendall_tau(known) if len(known) == len(values) else None


def _taken(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Seconds of all stages, and the machine if it was one and the same."""
    found = [measurement_of(artifact) for artifact in artifacts.values()]
    known = [one for one in found if one is not None]
    devices = {one.device for one in known if one.kind == "train"}
    cpus = {one.cpus for one in known if one.kind == "train"}
    return {
        "compute_seconds": round(math.fsum(one.seconds for one in known), 1) if len(known) == len(found) else None,
        "device": devices.pop() if len(devices) == 1 else None,
        "cpus": cpus.pop() if len(cpus) == 1 else None,
    }
