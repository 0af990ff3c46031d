"""Give every pair one split, by what it is and never by where it lies: neither shards nor order change a split."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from data.errors import RecipeError, nearest
from data.selection import SPLIT_SCHEMA, write_split
from data.shards import ShardSet
from data.specs import Holdout, HoldoutFraction, HoldoutValues, SplitSpec
from data.stage import Outcome, Work

TRAIN = "train"
_SHOWN_VALUES = 12


class Described(NamedTuple):
    """A pair's uid and metadata."""

    uid: str
    meta: Mapping[str, Any]


def run(spec: SplitSpec, work: Work) -> Outcome:
    """Write `split.parquet`: uid, split."""
    index = ShardSet(work.parents["pairs"]).index()
    columns = zip(index["uid"].to_pylist(), index["meta"].to_pylist(), strict=True)
    pairs = [Described(uid, json.loads(meta)) for uid, meta in columns]
    splits = split_pairs(pairs, spec.holdouts, spec.seed)
    write_split(work.out.uri, pa.table([[pair.uid for pair in pairs], splits], schema=SPLIT_SCHEMA))
    found = Counter(splits)
    counts = {"pairs": len(pairs), **{name: found[name] for name in (*spec.holdouts, TRAIN)}}
    lacking = {
        f"without_{field}": sum(_value(pair, field) is None for pair in pairs) for field in _fields(spec.holdouts)
    }
    return Outcome(counts | {name: count for name, count in lacking.items() if count})


def _fields(holdouts: Mapping[str, Holdout]) -> list[str]:
    return list(dict.fromkeys(holdout.field for holdout in holdouts.values() if holdout.field is not None))


def split_pairs(pairs: Sequence[Described], holdouts: Mapping[str, Holdout], seed: int) -> list[str]:
    """Return each pair's split: the first holdout that applies, else `train`. Who lacks a field is not held out by it.

    Raises:
        RecipeError: a field or value that no pair has, or a holdout that ends empty.
    """
    tests = {name: _test(pairs, name, holdout, seed) for name, holdout in holdouts.items()}
    splits = [next((name for name, applies in tests.items() if applies(pair)), TRAIN) for pair in pairs]
    for name, count in ((name, splits.count(name)) for name in holdouts):
        if not count:
            fix = "raise its fraction, or put it before the holdouts that take its pairs"
            raise RecipeError(f"holdouts.{name}: no pair of {len(pairs)} is left for it; {fix}")
    return splits


def _test(pairs: Sequence[Described], name: str, holdout: Holdout, seed: int) -> Callable[[Described], bool]:
    if name == TRAIN:
        raise RecipeError(f"holdouts.{TRAIN}: {TRAIN!r} is what no holdout takes; choose another name")
    if holdout.field is not None:
        _check_field(pairs, name, holdout)
    if isinstance(holdout, HoldoutValues):
        wanted, field = set(holdout.values), holdout.field
        return lambda pair: _value(pair, field) in wanted
    return lambda pair: _draw(_value(pair, holdout.field), name, seed) < holdout.fraction


def _value(pair: Described, field: str | None) -> str | None:
    """The field's value as text (the uid where `field` is None); None if the pair lacks it."""
    if field is None:
        return pair.uid
    value = pair.meta.get(field)
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def _draw(value: str | None, name: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the value, the holdout's name and the seed; 1 for no value."""
    if value is None:
        return 1.0
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}:{value}".encode()).digest()[:6], "big") / 2**48


def _check_field(pairs: Sequence[Described], name: str, holdout: HoldoutValues | HoldoutFraction) -> None:
    field = holdout.field
    fields = sorted({key for pair in pairs for key in pair.meta})
    if field not in fields:
        known = ", ".join(fields) or "none"
        raise RecipeError(
            f"holdouts.{name}.field: no pair has {field!r}{nearest(str(field), fields)}; fields are {known}"
        )
    if isinstance(holdout, HoldoutFraction):
        return
    values = sorted({value for value in (_value(pair, field) for pair in pairs) if value is not None})
    for value in holdout.values:
        if value not in values:
            known = ", ".join(values[:_SHOWN_VALUES]) + (
                f" ... ({len(values)} in all)" if len(values) > _SHOWN_VALUES else ""
            )
            raise RecipeError(
                f"holdouts.{name}.values: no pair has {field} {value!r}{nearest(value, values)}; it has {known}"
            )
