"""What a sweep file holds: a recipe, the fields that are searched, the number that chooses, and how trials are run."""

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from data.errors import RecipeError
from data.place import Place
from data.spec import Spec
from pipelines.explain import explain, shown
from pipelines.yaml_text import parse_yaml

_KINDS = ("choice", "grid", "uniform", "log_uniform", "integer")


class Dimension(Spec):
    """Values of one searched field: exactly one of these. Ends of a range belong to it."""

    choice: tuple[Any, ...] | None = Field(default=None, min_length=1, description="each as likely")
    grid: tuple[Any, ...] | None = Field(default=None, min_length=1, description="every one, crossed with other grids")
    uniform: tuple[float, float] | None = Field(default=None, description="a number between two")
    log_uniform: tuple[float, float] | None = Field(default=None, description="a number between two, even in its log")
    integer: tuple[int, int] | None = Field(default=None, alias="int", description="a whole number from one to another")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("give one of choice, grid, uniform, log_uniform, int")
        low, high = self.ends if self.is_range else (0, 1)
        if low >= high:
            raise ValueError(f"the first number must be below the second; write [{high:g}, {low:g}] or a choice")
        if self.log_uniform and low <= 0:
            raise ValueError("log_uniform needs numbers above 0; use uniform")
        return self

    @property
    def is_range(self) -> bool:
        """True for numbers between two ends."""
        return self.choice is None and self.grid is None

    @property
    def values(self) -> tuple[Any, ...]:
        """The listed values, or both ends of a range."""
        return self.choice or self.grid or self.ends

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest number of a range."""
        found = self.uniform or self.log_uniform or self.integer
        assert found is not None, "only a range has ends"
        return found


class Objective(Spec):
    """The number that ranks trials: a training stage's validation loss, or a metric of an evaluation."""

    stage: str
    metric: str = "validation_loss"
    mode: str = Field(default="min", pattern="^(min|max)$")
    set: str | None = Field(default=None, description="of an evaluation, as its report calls it")
    split: str | None = Field(default=None, description="of an evaluation: one that no report judges by")
    task: str | None = Field(default=None, description="of an evaluation")

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return "/".join(part for part in (self.set, self.split, self.task, self.metric) if part)


class Asha(Spec):
    """Asynchronous successive halving (arXiv 1810.05934): at each rung only the best 1/reduction go on.

    Rungs are at grace_samples x reduction^k, in pairs that the objective's stage has seen.
    """

    grace_samples: int = Field(ge=1, description="pairs that every trial may see")
    reduction: float = Field(default=3.0, gt=1, description="one of so many goes on")


class Pbt(Spec):
    """Population based training (arXiv 1711.09846): after each segment the worst go on from the best, values perturbed.

    A segment is a training stage of its own: its optimiser, warm-up and schedule start anew.
    """

    segment_samples: int = Field(ge=1, description="pairs of a segment; the stage's length is a multiple of it")
    quantile: float = Field(default=0.25, gt=0, le=0.5, description="fraction of the population that is replaced")
    resample: float = Field(default=0.25, ge=0, le=1, description="chance of a fresh value instead of a perturbed one")
    factor: float = Field(default=1.25, gt=1, description="numbers are multiplied or divided by this")


class Scheduler(Spec):
    """At most one of these; none: every trial runs to its end."""

    asha: Asha | None = None
    pbt: Pbt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.asha and self.pbt:
            raise ValueError("give asha or pbt, not both")
        return self


class Resources(Spec):
    """What one trial has, on one machine."""

    cpus: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)
    ranks: int = Field(default=1, ge=1, description="training processes that share these; the batch is split over them")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, count in (("cpus", self.cpus), ("gpus", self.gpus)):
            if count % self.ranks:
                raise ValueError(f"{count} {what} do not divide by {self.ranks} ranks")
        return self


class Sweep(Spec):
    """A sweep file."""

    recipe: str | dict[str, Any] = Field(description="built-in name, file, or a whole recipe")
    set: dict[str, Any] = Field(default_factory=dict, description="recipe fields of every trial, as `--set` takes them")
    space: dict[str, Dimension] = Field(min_length=1, description="searched recipe fields")
    objective: Objective
    scheduler: Scheduler = Scheduler()
    trials: int = Field(
        default=1, ge=1, description="draws, at each point of the grid if there is one; PBT: population"
    )
    max_concurrent: int | None = Field(default=None, ge=1, description="None: as many as this machine holds")
    resources: Resources | None = Field(default=None, description="of a trial; None: what a run has at the place")
    seed: int = 0

    def share(self, place: Place) -> Resources:
        """What a trial has at a place."""
        ranks = place.train_workers
        return self.resources or Resources(
            cpus=ranks * place.cpus_per_worker, gpus=ranks * place.gpus_per_worker, ranks=ranks
        )


def parse_sweep(text: str, origin: str) -> Sweep:
    """A sweep from YAML text.

    Raises:
        RecipeError: one line with the path, the value and the nearest right name.
    """
    value = parse_yaml(text, origin)
    if not isinstance(value, dict):
        raise RecipeError(f"{origin}: {shown(value)}: a sweep is a mapping; `clipworks sweep --example` prints one")
    try:
        return Sweep.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error, Sweep, value)}") from error


EXAMPLE = """\
# Learning rate, weight decay and warm-up of a tiny CLIP on emoji: 8 drawn trials and a baseline, the worst cut short.
# 2 CPU cores: about 5 minutes.   clipworks sweep --example > sweep.yaml && clipworks sweep sweep.yaml
recipe: tiny                          # built-in name, or a .yaml file
set:                                  # of every trial; here: a validation split, which judges nothing
  stages.pretrain.validation: {split: split, name: val, every_samples: 320, pairs: 64}
  stages.pretrain.phases.pretrain.samples_seen: 2560
space:                                # choice, grid, uniform, log_uniform, int
  stages.pretrain.phases.pretrain.optimizer.lr: {log_uniform: [1.0e-4, 1.0e-2]}
  stages.pretrain.phases.pretrain.optimizer.weight_decay: {choice: [0.02, 0.2]}
  stages.pretrain.phases.pretrain.schedule.warmup_samples: {int: [0, 640]}
objective: {stage: pretrain, metric: validation_loss, mode: min}
scheduler: {asha: {grace_samples: 640, reduction: 2}}  # or {pbt: {segment_samples: 640}}; leave out for none
trials: 8                             # draws; trial 0, the recipe as it is, comes first
seed: 0
# resources: {cpus: 1, gpus: 0}       # of a trial; without it a trial has what a run has, and few fit at a time
# max_concurrent: 2                   # without it as many as this machine holds
"""
