"""What a suite is: sets of pairs from anywhere, and what is asked of any checkpoint on them.

A suite is YAML like a recipe (`clipworks suite show NAME > mine.yaml`), and becomes one: `pipelines.evaluating`.
"""

from collections.abc import Iterable
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from data.errors import RecipeError
from data.spec import Spec
from data.specs import Holdout, Pool
from evaluation.specs import Bootstrap, Task
from pipelines.explain import explain, need
from pipelines.yaml_text import parse_yaml, to_yaml
from training.specs import ImageView, Patches


class Main(Spec):
    """The number that stands for a set: a metric, or the mean of several of one task."""

    split: str
    task: str
    metrics: tuple[str, ...] = Field(min_length=1)


class SuiteSet(Spec):
    """Pairs, how they are split, and what is asked. `like` names another set whose pairs, splits and features it has.

    Class prompts are those of the tasks. `learnt_from` are splits that are embedded and not scored: what heads fit on,
    choose by, or compare with.
    """

    pool: Pool | None = None
    like: str | None = None
    pairs_per_shard: int = Field(default=4096, ge=1)
    holdouts: dict[str, Holdout] = Field(default_factory=dict)
    scored: tuple[str, ...] = Field(min_length=1)
    learnt_from: tuple[str, ...] = ()
    tasks: dict[str, Task] = Field(min_length=1)
    queries: tuple[str, ...] = Field(default=(), description="more texts to embed")
    views: dict[str, ImageView] = Field(default_factory=dict)
    views_of: tuple[str, ...] = Field(default=(), description="splits whose pictures are viewed; empty: the scored")
    patches: Patches | None = None
    cluster_field: str | None = None
    shown: tuple[str, ...] | None = Field(
        default=(), description="vendors whose pictures a report may show; empty: all, null: none"
    )
    main: Main | None = Field(default=None, description="what counts in averages; null: not averaged")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.pool is None) == (self.like is None):
            raise ValueError("give a pool, or the set that this one is like")
        if self.like is not None and (self.holdouts or self.queries or self.patches):
            raise ValueError("holdouts, queries and patches are those of the set that it is like; put them there")
        return self

    @property
    def embedded(self) -> tuple[str, ...]:
        """Splits whose features the set needs."""
        return (*self.scored, *(split for split in self.learnt_from if split not in self.scored))


class Suite(Spec):
    """Named sets; the first one's main number is the headline."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    title: str
    purpose: str
    sets: dict[str, SuiteSet] = Field(min_length=1)
    averages: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="name -> sets whose main numbers are averaged"
    )
    skipped: dict[str, str] = Field(default_factory=dict, description="what the suite should have and has not: why")
    bootstrap: Bootstrap = Bootstrap()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for name, one in self.sets.items():
            other = self.sets.get(one.like) if one.like else None
            if one.like and (other is None or other.like):
                raise RecipeError(
                    f"sets.{name}.like: {one.like!r}: name a set of this suite that has a pool of its own"
                )
            if one.main is not None:
                need(f"sets.{name}.main.split", one.main.split, one.scored, "not scored")
                need(f"sets.{name}.main.task", one.main.task, one.tasks, "no such task")
        counted = [name for name, one in self.sets.items() if one.main is not None]
        for label, names in self.averages.items():
            for number, name in enumerate(names):
                need(f"averages.{label}.{number}", name, counted, "no such set with a main number")
        first = next(iter(self.sets))
        if first not in counted:
            raise RecipeError(f"sets.{first}.main: missing; the first set's main number is the headline")
        return self

    def to_yaml(self) -> str:
        """The suite as YAML, headed by what it is for."""
        header = [self.title, self.purpose, "", "Run it:   clipworks evaluate CHECKPOINT --suite FILE.yaml"]
        return "".join(f"# {line}".rstrip() + "\n" for line in header) + "\n" + to_yaml(self.model_dump(mode="json"))


def parse_suite(text: str, origin: str) -> Suite:
    """Read a suite from YAML.

    Raises:
        RecipeError: one line with the path, the value and the nearest right name.
    """
    value: Any = parse_yaml(text, origin)
    if not isinstance(value, dict):
        raise RecipeError(f"{origin}: a suite is a mapping with name, title, purpose, sets")
    try:
        return Suite.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error, Suite, value)}") from error
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error


def with_like(suite: Suite, name: str) -> Iterable[SuiteSet]:
    """A set that has a pool, and all that are like it."""
    return [one for other, one in suite.sets.items() if name in (other, one.like)]
