"""Give every pair one split, by what it is and never by where it lies: neither shards nor order change a split."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from data.artifacts import open_artifact
from data.errors import RecipeError, nearest
from data.selection import SPLIT_SCHEMA, write_split
from data.shards import ShardSet, read_parquet
from data.shardwise import Summary, each_shard
from data.specs import Holdout, HoldoutFraction, HoldoutRest, HoldoutValues, SplitSpec
from data.stage import Outcome, Work

TRAIN = "train"
_SHOWN_VALUES = 12
_KEPT_VALUES = 1_000  # of a field and shard: to say what there is, not to decide


class Described(NamedTuple):
    """A pair's uid and metadata."""

    uid: str
    meta: Mapping[str, Any]


class Seen(NamedTuple):
    """What some pairs were, for messages and counts; adds up over shards."""

    splits: Counter[str]
    with_field: Counter[str]  # pairs whose metadata has the field
    lacking: Counter[str]  # pairs without a value of a field that a holdout reads
    wanted: dict[str, list[str]]  # holdout -> those of its values that occur, sorted
    values: dict[str, list[str]]  # field that a holdout reads values of -> its first values, sorted

    def plus(self, other: "Seen") -> "Seen":
        """Both together."""
        values = {field: found[:_KEPT_VALUES] for field, found in _joined(self.values, other.values).items()}
        return Seen(
            self.splits + other.splits,
            self.with_field + other.with_field,
            self.lacking + other.lacking,
            _joined(self.wanted, other.wanted),
            values,
        )

    @classmethod
    def read(cls, summary: Sequence[Any]) -> "Seen":
        """As JSON gives it back."""
        splits, with_field, lacking, wanted, values = summary
        return cls(Counter(splits), Counter(with_field), Counter(lacking), wanted, values)


def _joined(mine: Mapping[str, list[str]], theirs: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted({*mine.get(name, ()), *theirs.get(name, ())}) for name in {**mine, **theirs}}


NOTHING = Seen(Counter(), Counter(), Counter(), {}, {})


def run(spec: SplitSpec, work: Work) -> Outcome:
    """Write `split/<shard>.parquet`: uid, split.

    Raises:
        RecipeError: a field or value that no pair has, or a holdout that ends empty.
    """
    pairs = work.parents["pairs"]
    names = [shard.name for shard in ShardSet(pairs).shards]
    seen = NOTHING
    for summary in each_shard(work, "split", names, partial(_split_shard, spec, pairs.uri, names, work.out.uri)):
        seen = seen.plus(Seen.read(summary["seen"]))
    check(seen, spec.holdouts)
    counts = {"pairs": seen.splits.total(), **{name: seen.splits[name] for name in (*spec.holdouts, TRAIN)}}
    return Outcome(counts | {f"without_{field}": count for field, count in sorted(seen.lacking.items()) if count})


def _split_shard(spec: SplitSpec, pairs_uri: str, names: Sequence[str], out_uri: str, number: int) -> Summary:
    index = read_parquet(open_artifact(pairs_uri).at("index", f"{names[number]}.parquet"), ["uid", "meta"])
    columns = zip(index["uid"].to_pylist(), index["meta"].to_pylist(), strict=True)
    splits, seen = split_pairs([Described(uid, json.loads(meta)) for uid, meta in columns], spec.holdouts, spec.seed)
    write_split(out_uri, pa.table([index["uid"], splits], schema=SPLIT_SCHEMA), names[number])
    return {"seen": list(seen)}


def split_pairs(pairs: Sequence[Described], holdouts: Mapping[str, Holdout], seed: int) -> tuple[list[str], Seen]:
    """Each pair's split, the first holdout that applies, else `train`; and what was seen, for `check`.

    Who lacks a field is not held out by it.
    """
    splits = [_split_of(pair, holdouts, seed) for pair in pairs]
    fields = {holdout.field for holdout in holdouts.values() if holdout.field is not None}
    of_field = {field: [_value(pair, field) for pair in pairs] for field in sorted(fields)}
    distinct = {field: sorted({value for value in found if value is not None}) for field, found in of_field.items()}
    by_values = {name: each for name, each in holdouts.items() if isinstance(each, HoldoutValues)}
    return splits, Seen(
        Counter(splits),
        Counter(key for pair in pairs for key in pair.meta),
        Counter({field: found.count(None) for field, found in of_field.items()}),
        {name: sorted({*each.values} & {*distinct[each.field]}) for name, each in by_values.items()},
        {each.field: distinct[each.field][:_KEPT_VALUES] for each in by_values.values()},
    )


def _split_of(pair: Described, holdouts: Mapping[str, Holdout], seed: int) -> str:
    return next((name for name, holdout in holdouts.items() if _applies(pair, name, holdout, seed)), TRAIN)


def _applies(pair: Described, name: str, holdout: Holdout, seed: int) -> bool:
    if isinstance(holdout, HoldoutRest):
        return True
    value = _value(pair, holdout.field)
    if isinstance(holdout, HoldoutValues):
        return value in holdout.values
    return _draw(value, name, seed) < holdout.fraction


def check(seen: Seen, holdouts: Mapping[str, Holdout]) -> None:
    """Refuse holdouts that do not fit what was seen of all pairs.

    Raises:
        RecipeError: a field or value that no pair has, or a holdout that ends empty.
    """
    for name, holdout in holdouts.items():
        if name == TRAIN:
            raise RecipeError(f"holdouts.{TRAIN}: {TRAIN!r} is what no holdout takes; choose another name")
        if not isinstance(holdout, HoldoutRest) and holdout.field is not None:
            _check_field(seen, name, holdout)
    for name in holdouts:
        if not seen.splits[name]:
            fix = "raise its fraction, or put it before the holdouts that take its pairs"
            raise RecipeError(f"holdouts.{name}: no pair of {seen.splits.total()} is left for it; {fix}")


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


def _check_field(seen: Seen, name: str, holdout: HoldoutValues | HoldoutFraction) -> None:
    field = str(holdout.field)
    if field not in seen.with_field:
        fields = sorted(seen.with_field)
        known = ", ".join(fields) or "none"
        raise RecipeError(f"holdouts.{name}.field: no pair has {field!r}{nearest(field, fields)}; fields are {known}")
    if isinstance(holdout, HoldoutFraction):
        return
    values = seen.values[field]
    for value in holdout.values:
        if value not in seen.wanted[name]:
            more = f" ... ({len(values)} or more in all)" if len(values) > _SHOWN_VALUES else ""
            known = ", ".join(values[:_SHOWN_VALUES]) + more
            raise RecipeError(
                f"holdouts.{name}.values: no pair has {field} {value!r}{nearest(value, values)}; it has {known}"
            )
