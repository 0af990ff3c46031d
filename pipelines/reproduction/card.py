"""The card of a method as it is kept: every number of its tables, what made them, and nothing else. JSON and back."""

from typing import Literal

from pydantic import Field, ValidationError

from data import storage
from data.spec import Spec
from pipelines.methods.method import Better, Expectation, MethodError, Role
from pipelines.reproduction.statistics import Verdict

Values = tuple[float | None, ...]  # one a seed


class ArmCost(Spec):
    """What an arm's model costs, and what its own training took beyond the arms it starts from; None: not known."""

    parameters: int | None = None
    active_parameters: int | None = Field(default=None, description="that one pair passes through")
    forward_flops_per_pair: float | None = None
    training_flops: float | None = Field(
        default=None, description="model FLOPs of all its pairs, without those of teachers"
    )
    training_pairs: int | None = None
    training_pairs_per_second: float | None = Field(default=None, description="median over seeds, start-up left out")


class ArmOfCard(Spec):
    """One arm."""

    title: str
    role: Role
    note: str
    cost: ArmCost = ArmCost()


class MeanOfCard(Spec):
    """A mean over seeds with its 95 % interval."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class MeasureOfCard(Spec):
    """One measure: values of every arm and seed. `place` is set/split/task/metric, or empty for what is computed."""

    title: str
    better: Better
    unit: str
    place: str
    samples: int | None = Field(description="that the smallest of these numbers is over")
    chance: float | None
    values: dict[str, Values] = Field(description="arm -> value per seed")
    means: dict[str, MeanOfCard]


class ComparisonOfCard(Spec):
    """Left minus right, paired over seeds, and what it says of the statement."""

    statement: str
    measure: str
    left: str
    right: str
    expect: Expectation
    essential: bool
    margin: float | None
    differences: Values
    mean: float | None
    low: float | None
    high: float | None
    n: int
    as_expected: int = Field(description="seeds with the expected direction")
    verdict: Verdict


class OrderingOfCard(Spec):
    """An expected ranking: Kendall's tau with it per seed, and how many seeds show it whole."""

    statement: str
    measure: str
    arms: tuple[str, ...]
    taus: Values
    mean_tau: float | None
    in_order: int
    n: int


class Card(Spec):
    """What was measured of a method."""

    schema_version: Literal[1] = 1
    method: str
    head: str
    effect: str = Field(description="in one cell of a table")
    data: str
    seeds: int
    headline: str
    arms: dict[str, ArmOfCard]
    measures: dict[str, MeasureOfCard]
    comparisons: tuple[ComparisonOfCard, ...]
    orderings: tuple[OrderingOfCard, ...]
    command: str
    stages: int
    compute_seconds: float | None = Field(description="of all stages one after another; None where one is not known")
    device: str | None
    cpus: float | None
    versions: dict[str, str]


def write_card(uri: str, card: Card) -> None:
    """Write the card as JSON, atomically; in its own order, which is that of the tables."""
    storage.write_bytes(uri, (card.model_dump_json(indent=1) + "\n").encode())


def read_card(uri: str) -> Card | None:
    """Read a card; None where there is none.

    Raises:
        MethodError: it is no card of this version.
    """
    content = storage.read_if_there(uri)
    if content is None:
        return None
    try:
        return Card.model_validate_json(content)
    except ValidationError as error:
        raise MethodError(f"{uri}: not a card that this clipworks reads; run `clipworks reproduce` again") from error
