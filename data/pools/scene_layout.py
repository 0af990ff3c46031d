"""What a composed scene holds and where: drawn from its uid alone, so that any scene can be made by itself.

The canvas is a grid of the fewest equal cells that hold the pool's largest scene. Every object has a cell of its own,
in which it is moved by chance, so that none covers another and left, right, above and below are clear.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import NamedTuple, TypeVar

from data.pools.scene_words import BACKGROUNDS, COLORS, NOUNS, SIZES
from data.specs import ScenePool

T = TypeVar("T")
_SIDE = {"large": 0.92, "small": 0.6}  # of a cell
_REPEATED_FRACTION = 0.25  # of the kinds of object are there more than once, where there is room
_MOST_REPEATED = 4


class Box(NamedTuple):
    """A square tile on the canvas, in pixels."""

    left: int
    top: int
    side: int

    @property
    def center(self) -> tuple[float, float]:
        """x to the right, y downwards."""
        return self.left + self.side / 2, self.top + self.side / 2


@dataclass(frozen=True)
class Group:
    """Equal objects: what they are, how large, the colour of their tiles, and where each is."""

    noun: str
    color: str
    size: str
    boxes: tuple[Box, ...]
    places: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.boxes)


class Relation(NamedTuple):
    """Group `left` stands in `name` (left of, right of, above, below) to group `right`; both are single objects."""

    name: str
    left: int
    right: int


@dataclass(frozen=True)
class Scene:
    """Groups of different nouns, the main one first: that which covers the largest area.

    `is_turned`: captions name the second group before the first, so that what comes first tells nothing of size.
    """

    vendor: str
    background: str
    groups: tuple[Group, ...]
    relation: Relation | None
    is_turned: bool

    @property
    def told(self) -> tuple[Group, ...]:
        """Groups in the order in which captions name them."""
        front = self.groups[:2]
        return (*(reversed(front) if self.is_turned else front), *self.groups[2:])

    @property
    def count(self) -> int:
        """Objects in all."""
        return sum(group.count for group in self.groups)


class Draws:
    """Choices by a key. Only `random()` is used, whose numbers Python promises never to change."""

    def __init__(self, key: str) -> None:
        self._next = random.Random(key).random

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1."""
        return int(self._next() * bound)

    def happens(self, probability: float) -> bool:
        """True with this probability."""
        return self._next() < probability

    def one(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """So many different options, in an order of chance."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def vocabulary(pool: ScenePool) -> tuple[list[str], list[str]]:
    """Nouns and colours of a pool."""
    return list(NOUNS)[: pool.nouns], list(COLORS)[: pool.colors]


def compose(pool: ScenePool, uid: str) -> Scene:
    """The scene with this uid."""
    draws = Draws(uid)
    total = pool.min_objects + draws.below(pool.max_objects - pool.min_objects + 1)
    counts = _counts(total, draws)
    names, colors = vocabulary(pool)
    looks = [(noun, draws.one(colors), draws.one(SIZES)) for noun in draws.some(names, len(counts))]
    kinds = [(*look, count) for look, count in zip(looks, counts, strict=True)]
    groups = tuple(_placed(_main_first(kinds), pool, draws))
    vendor, background = draws.one(sorted(set(pool.vendors))), draws.one(list(BACKGROUNDS))
    return Scene(vendor, background, groups, _relation(groups, pool, draws), draws.happens(0.5))


def _counts(total: int, draws: Draws) -> list[int]:
    counts: list[int] = []
    while (room := total - sum(counts)) > 0:
        repeated = room > 1 and draws.happens(_REPEATED_FRACTION)
        counts.append(2 + draws.below(min(room, _MOST_REPEATED) - 1) if repeated else 1)
    return counts


Kind = tuple[str, str, str, int]  # noun, colour, size, count


def _main_first(kinds: Sequence[Kind]) -> list[Kind]:
    """The kind that covers the largest area in front, alone: where two are equal, one becomes larger or smaller."""

    def area(kind: Kind) -> float:
        return kind[3] * _SIDE[kind[2]] ** 2

    main, *others = sorted(kinds, key=area, reverse=True)
    if others and area(others[0]) == area(main):
        if main[2] == "small":
            main = (*main[:2], "large", main[3])
        else:
            others = [(*kind[:2], "small", kind[3]) if area(kind) == area(main) else kind for kind in others]
    return [main, *others]


def grid_of(pool: ScenePool) -> int:
    """Cells a side."""
    return ceil(sqrt(pool.max_objects))


def _placed(kinds: Sequence[Kind], pool: ScenePool, draws: Draws) -> list[Group]:
    grid = grid_of(pool)
    cells = draws.some(range(grid * grid), sum(kind[3] for kind in kinds))
    groups = []
    for noun, color, size, count in kinds:
        own, cells = cells[:count], cells[count:]
        boxes = tuple(_box(cell, size, pool, draws) for cell in own)
        groups.append(Group(noun, color, size, boxes, tuple(place_of(cell, grid) for cell in own)))
    return groups


def _box(cell: int, size: str, pool: ScenePool, draws: Draws) -> Box:
    grid = grid_of(pool)
    row, column = divmod(cell, grid)
    room = pool.canvas_pixels // grid
    side = max(1, int(_SIDE[size] * room))
    left, top = (at * pool.canvas_pixels // grid + _moved(room - side, pool, draws) for at in (column, row))
    return Box(left, top, side)


def _moved(free: int, pool: ScenePool, draws: Draws) -> int:
    """Pixels before an object in its cell, of `free` ones."""
    return round(free / 2 + pool.jitter_fraction * (draws.below(free + 1) - free / 2))


def place_of(cell: int, grid: int) -> str:
    """Words for a cell."""
    row, column = divmod(cell, grid)
    if grid == 1 or (grid == 3 and row == column == 1):
        return "in the centre"
    rows, columns = (("upper", "lower"), ("left", "right")) if grid == 2 else (
        ("upper", "middle", "lower"), ("left", "centre", "right")
    )  # fmt: skip
    return f"in the {rows[row]} {columns[column]}"


def relations_of(one: Box, other: Box, margin: float) -> list[str]:
    """What is true of `one` and `other`, where centres are at least `margin` pixels apart along the axis."""
    (x, y), (other_x, other_y) = one.center, other.center
    across, down = other_x - x, other_y - y
    found = [("left of", across), ("right of", -across), ("above", down), ("below", -down)]
    return [name for name, distance in found if distance >= margin]


def _relation(groups: Sequence[Group], pool: ScenePool, draws: Draws) -> Relation | None:
    """Of the first two single objects; in different cells, so that at least one relation holds."""
    single = [number for number, group in enumerate(groups) if group.count == 1]
    if len(single) < 2:
        return None
    left, right = draws.some(single[:2], 2)
    margin = pool.canvas_pixels / grid_of(pool) / 2
    return Relation(draws.one(relations_of(groups[left].boxes[0], groups[right].boxes[0], margin)), left, right)
