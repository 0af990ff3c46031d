"""The sentence at a card's head and the effect in one cell: computed from the verdicts, in honest words."""

from collections.abc import Mapping, Sequence

from evaluation.numbers import MINUS, difference
from pipelines.methods.method import Expectation
from pipelines.reproduction.card import ArmOfCard, ComparisonOfCard, MeasureOfCard
from pipelines.reproduction.statistics import (
    CONTRADICTED,
    HOLDS,
    NOT_SHOWN,
    Verdict,
    differences_of,
    spread_of,
    verdict_of,
)

REPRODUCED = "Reproduced at this scale"
UNCONTROLLED = "Gain reproduced at this scale; no control was run"
NOT_REPRODUCED = "Not reproduced at this scale"
OPPOSITE = "Not reproduced: the opposite was measured at this scale"
CONTROL_TOO = "Gain reproduced, but the control has it too"
NOT_TOLD_APART = "Gain reproduced, but the control is not told apart from the method"
CONTROL_SAYS_NO = "Gain reproduced, but its control contradicts the explanation"
NO_GAIN = "No gain over a parent was asked for"


def gain_of(
    headline: str, arms: Mapping[str, ArmOfCard], comparisons: Sequence[ComparisonOfCard]
) -> ComparisonOfCard | None:
    """The first comparison on the headline of a method with its parent, or else with where it started."""
    for role in ("parent", "start"):
        for one in comparisons:
            if one.measure == headline and arms[one.left].role == "method" and arms[one.right].role == role:
                return one
    return None


def head_of(
    headline: str,
    arms: Mapping[str, ArmOfCard],
    measures: Mapping[str, MeasureOfCard],
    comparisons: Sequence[ComparisonOfCard],
) -> str:
    """What the experiment says of the method, in one sentence without a full stop."""
    gain = gain_of(headline, arms, comparisons)
    if gain is None:
        held = sum(one.verdict == HOLDS for one in comparisons)
        return f"{NO_GAIN}; {held} of {len(comparisons)} statements hold"
    if gain.verdict != HOLDS:
        return NOT_REPRODUCED if gain.verdict == NOT_SHOWN else OPPOSITE
    essential = essential_to(gain, comparisons)
    failing = [one for one in essential if one.verdict != HOLDS]
    if not failing:
        return REPRODUCED if essential else UNCONTROLLED
    if any(_has_gain(arm, gain, measures[headline]) for arm in _controls(failing, arms)):
        return CONTROL_TOO
    return CONTROL_SAYS_NO if any(one.verdict == CONTRADICTED for one in failing) else NOT_TOLD_APART


def essential_to(gain: ComparisonOfCard, comparisons: Sequence[ComparisonOfCard]) -> list[ComparisonOfCard]:
    """The deciding controls of the arm that has the gain; where none is about it, all of the experiment."""
    every = [one for one in comparisons if one.essential]
    return [one for one in every if gain.left in (one.left, one.right)] or every


def _controls(comparisons: Sequence[ComparisonOfCard], arms: Mapping[str, ArmOfCard]) -> list[str]:
    return [arm for one in comparisons for arm in (one.left, one.right) if arms[arm].role == "control"]


def _has_gain(arm: str, gain: ComparisonOfCard, measure: MeasureOfCard) -> bool:
    """Whether an arm differs from the gain's own opponent as the method does."""
    if arm not in measure.values:
        return False
    differences = differences_of(measure.values[arm], measure.values[gain.right])
    return verdict_of(spread_of(differences), gain.expect, gain.margin) == HOLDS


def effect_text(
    headline: str,
    arms: Mapping[str, ArmOfCard],
    measures: Mapping[str, MeasureOfCard],
    comparisons: Sequence[ComparisonOfCard],
) -> str:
    """`+3.1 ± 0.8 points zero-shot top-1 vs parent; control loses it: yes`."""
    gain = gain_of(headline, arms, comparisons)
    if gain is None:
        return head_of(headline, arms, measures, comparisons)
    unit, title = measures[headline].unit, measures[headline].title
    said = f"{plus_minus(gain, unit)} {title} vs {arms[gain.right].role}"
    essential = essential_to(gain, comparisons)
    return f"{said}; control loses it: {_word([one.verdict for one in essential])}" if essential else said


def _word(verdicts: Sequence[Verdict]) -> str:
    if all(verdict == HOLDS for verdict in verdicts):
        return "yes"
    return "no" if CONTRADICTED in verdicts else "not shown"


def plus_minus(one: ComparisonOfCard, unit: str) -> str:
    """Mean and half of its 95 % interval: `+3.1 ± 0.8 points`."""
    named = " points" if unit == "fraction" else ""
    if one.mean is None or one.high is None:
        return f"{difference(one.mean, unit)}{named}"
    half = difference(one.high - one.mean, unit).lstrip(f"+{MINUS}")
    return f"{difference(one.mean, unit)} ± {half}{named}"


def expectation_text(expect: Expectation, margin: float | None, unit: str) -> str:
    """What a comparison expects: `above 0`, `within ±1.0 points`."""
    if expect != "equal" or margin is None:
        return f"{expect} 0"
    return f"within ±{difference(margin, unit).lstrip('+')}{' points' if unit == 'fraction' else ''}"
