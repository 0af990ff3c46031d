"""What differs between two recipes, field by field: for `runs diff`, and for the page of a run that failed."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

ABSENT: Final = "(not there)"  # stands where one of the two has no such field


class Difference(NamedTuple):
    """One field whose value differs. `path` is what `--set` takes; `old` or `new` may be `ABSENT`."""

    path: str
    old: Any
    new: Any


def recipe_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Differences between two recipes as plain values (`Recipe.to_dict()`, `RunRecord.recipe`), in their order.

    A stage or block that only one of them has is one difference. Where only the order of named blocks differs (the
    last phase of a training stage is its result) the difference is that of their names.
    """
    return list(_differences("", old, new))


def _differences(path: str, old: Any, new: Any) -> Iterator[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *(name for name in new if name not in old)]
        for name in names:
            below = f"{path}.{name}" if path else str(name)
            yield from _differences(below, old.get(name, ABSENT), new.get(name, ABSENT))
        if path != "stages" and _order_counts(old, new):
            yield Difference(f"{path} (order)", list(old), list(new))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{path}.{number}", before, after)
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield Difference(path, old, new)


def _order_counts(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """True for the same names in another order, all of them blocks; fields of a spec are written in one order."""
    shared = [name for name in old if name in new]
    blocks = all(isinstance(value, Mapping) for value in [*old.values(), *new.values()])
    return blocks and len(shared) > 1 and shared != [name for name in new if name in old]
