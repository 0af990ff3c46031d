"""What a published method is here: its claim, its limiting cases, and the experiment that puts the claim to the test.

Plain frozen values, so that `clipworks methods` answers at once. The experiment is one set of stages for all arms and
seeds: it runs as an ordinary recipe, and what is complete is reused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from data.artifacts import Artifact
from data.errors import UserError
from data.stage import StageSpec

Role = Literal["method", "parent", "control", "start"]
Better = Literal["higher", "lower", "none"]
Expectation = Literal["above", "below", "equal"]


class MethodError(UserError):
    """There is no such method, its experiment cannot be asked for so, or what it needs is missing."""


def stage_of(arm: str, seed: int | None, of: str = "") -> str:
    """Name of an arm's stage: its checkpoint, or what `of` names (features, evaluate); `seed=None`: shared by all."""
    shared = f"{of}_{arm}" if of else arm
    return shared if seed is None else f"{shared}_s{seed}"


@dataclass(frozen=True)
class Limit:
    """A case in which the method must equal something known, and the pytest id of the test that checks it."""

    statement: str
    test: str


@dataclass(frozen=True)
class Arm:
    """One way of training that is compared. An arm of role `start` may be one for all seeds."""

    title: str
    role: Role
    note: str = ""


@dataclass(frozen=True)
class Found:
    """What the experiment made, seen from one arm and seed."""

    artifacts: Mapping[str, Artifact]
    arm: str
    seed: int

    def artifact(self, stage: str) -> Artifact:
        """The artifact of any stage by name.

        Raises:
            MethodError: the experiment has no such stage.
        """
        if stage not in self.artifacts:
            raise MethodError(f"{stage}: no stage of this experiment; it has {', '.join(self.artifacts)}")
        return self.artifacts[stage]

    def own(self, of: str = "") -> Artifact:
        """This arm's and seed's checkpoint, or what `of` names; one that all seeds share counts for each."""
        name = stage_of(self.arm, self.seed, of)
        return self.artifact(name if name in self.artifacts else stage_of(self.arm, None, of))


@dataclass(frozen=True)
class Measure:
    """A number per arm and seed: a metric of the arm's evaluation, or what `compute` reads from the artifacts.

    `unit` is read from the evaluation; `compute` says its own (`fraction` is shown in per cent). `arms` empty: all.
    """

    title: str
    better: Better
    split: str = ""
    task: str = ""
    metric: str = ""
    set: str = "scenes"
    compute: Callable[[Found], float] | None = None
    unit: str = "fraction"
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What the paper leads one to expect of `left` minus `right`, paired over seeds.

    `essential`: the control that decides whether the gain is the method's own. `margin`: in the measure's unit, needed
    by `equal` (fractions: 0.01 is one percentage point).
    """

    statement: str
    measure: str
    left: str
    right: str
    expect: Expectation
    essential: bool = False
    margin: float | None = None


@dataclass(frozen=True)
class Ordering:
    """An expected ranking of several arms on a measure, from the highest value to the lowest."""

    statement: str
    measure: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """All arms and seeds (0 to `seeds` - 1) as stages, what is measured on them, and what is expected.

    Stages of arm `a` and seed n are named `a_s{n}` (checkpoint), `features_a_s{n}`, `evaluate_a_s{n}`: see `stage_of`.
    `headline` is a measure's name, `data` one line on what it was measured on.
    """

    stages: dict[str, StageSpec]
    arms: dict[str, Arm]
    measures: dict[str, Measure]
    comparisons: tuple[Comparison, ...]
    seeds: int
    headline: str
    data: str
    orderings: tuple[Ordering, ...] = ()


@dataclass(frozen=True)
class Method:
    """A published method: what is claimed, how it is computed here, how that was checked, and how to measure it.

    `recipe` is the built-in recipe's name; `start` says which checkpoints it takes and refuses, `result` whether what
    comes out loads in plain open_clip; `experiment` makes the experiment for a number of seeds.
    """

    name: str
    title: str
    paper: str
    licence: str
    claim: str
    formula: str
    deviations: tuple[str, ...]
    limits: tuple[Limit, ...]
    recipe: str
    start: str
    result: str
    experiment: Callable[[int], Experiment]
