"""Splits depend on what a pair is, never on shards or order; mistakes are one line."""

import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from data.errors import RecipeError
from data.place import Place
from data.selection import read_split, uids_of
from data.shards import Pair, ShardSet, write_shard
from data.specs import Holdout, HoldoutFraction, HoldoutRest, HoldoutValues, IngestSpec, ShardPool, SplitSpec
from data.split import NOTHING, Described, check, split_pairs
from data.stage import run_stage

PAIRS = [Described(f"u{n}", {"vendor": "abc"[n % 3], "base": f"b{n // 4}", "year": n % 2}) for n in range(2000)]


def split(holdouts: dict[str, Holdout], pairs: list[Described] = PAIRS, seed: int = 0) -> dict[str, str]:
    found, seen = split_pairs(pairs, holdouts, seed)
    check(seen, holdouts)
    return dict(zip((pair.uid for pair in pairs), found, strict=True))


def test_without_holdouts_everything_is_train() -> None:
    assert set(split({}).values()) == {"train"}


def test_values_hold_out_exactly_their_pairs() -> None:
    found = split({"unseen": HoldoutValues(field="vendor", values=("b",))})
    assert {uid for uid, name in found.items() if name == "unseen"} == {p.uid for p in PAIRS if p.meta["vendor"] == "b"}


def test_numbers_are_matched_as_they_are_written() -> None:
    found = split({"odd": HoldoutValues(field="year", values=("1",))})
    assert [found["u0"], found["u1"]] == ["train", "odd"]


def test_a_fraction_holds_out_whole_values_and_about_as_many_as_asked() -> None:
    found = split({"bases": HoldoutFraction(field="base", fraction=0.25)})
    by_base: dict[str, set[str]] = {}
    for pair in PAIRS:
        by_base.setdefault(pair.meta["base"], set()).add(found[pair.uid])
    assert all(len(names) == 1 for names in by_base.values())
    held = sum(names == {"bases"} for names in by_base.values())
    assert 125 - 40 < held < 125 + 40  # four standard deviations of a binomial (500, 1/4)


def test_a_fraction_of_uids_splits_single_pairs() -> None:
    held = sum(name == "val" for name in split({"val": HoldoutFraction(fraction=0.1)}).values())
    assert 200 - 54 < held < 200 + 54


def test_the_rest_is_what_no_earlier_holdout_takes() -> None:
    found = split({"unseen": HoldoutValues(field="vendor", values=("b",)), "test": HoldoutRest()})
    assert {uid for uid, name in found.items() if name == "unseen"} == {p.uid for p in PAIRS if p.meta["vendor"] == "b"}
    assert set(found.values()) == {"unseen", "test"}
    with pytest.raises(RecipeError, match=r"holdouts\.late: no pair of 2000 is left"):
        split({"test": HoldoutRest(), "late": HoldoutFraction(fraction=0.5)})


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out() -> None:
    small, large = (split({"val": HoldoutFraction(fraction=f)}) for f in (0.05, 0.2))
    assert {u for u in small if small[u] == "val"} < {u for u in large if large[u] == "val"}


def test_seed_and_name_change_the_draw() -> None:
    held = [
        {uid for uid, name in split({label: HoldoutFraction(fraction=0.3)}, seed=seed).items() if name == label}
        for label, seed in (("val", 0), ("val", 1), ("test", 0))
    ]
    assert held[0] != held[1] and held[0] != held[2]


def test_the_first_holdout_wins() -> None:
    vendor, bases = HoldoutValues(field="vendor", values=("a",)), HoldoutFraction(field="base", fraction=0.5)
    first, second = split({"v": vendor, "b": bases}), split({"b": bases, "v": vendor})
    both = {p.uid for p in PAIRS if first[p.uid] == "v" and second[p.uid] == "b"}
    assert both
    assert {u for u in first if first[u] == "train"} == {u for u in second if second[u] == "train"}


def test_order_of_pairs_changes_nothing() -> None:
    holdouts: dict[str, Holdout] = {
        "v": HoldoutValues(field="vendor", values=("a",)),
        "f": HoldoutFraction(fraction=0.3),
    }
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    assert split(holdouts, shuffled) == split(holdouts)


def test_pairs_that_lack_the_field_stay_in_train() -> None:
    bare = [Described(f"x{n}", {"base": None} if n % 2 else {}) for n in range(50)]
    found = split({"bases": HoldoutFraction(field="base", fraction=0.9)}, [*PAIRS, *bare])
    assert {found[pair.uid] for pair in bare} == {"train"}


@pytest.mark.parametrize(
    ("holdout", "text"),
    [
        (
            HoldoutValues(field="vendr", values=("a",)),
            r"holdouts.h.field: .*'vendr'; did you mean 'vendor'\?; fields are base, vendor",
        ),
        (HoldoutFraction(field="nothing", fraction=0.1), "fields are base, vendor, year"),
        (HoldoutValues(field="vendor", values=("a", "z")), r"holdouts.h.values: no pair has vendor 'z'.*a, b, c"),
        (HoldoutFraction(field="vendor", fraction=1e-9), "holdouts.h: no pair of 2000 is left"),
    ],
)
def test_mistakes_are_one_line(holdout: Holdout, text: str) -> None:
    with pytest.raises(RecipeError, match=text) as caught:
        split({"h": holdout})
    assert "\n" not in str(caught.value)


def test_a_holdout_that_earlier_ones_emptied_is_an_error() -> None:
    values = HoldoutValues(field="vendor", values=("a",))
    with pytest.raises(RecipeError, match=r"holdouts\.second: no pair"):
        split({"first": values, "second": values})
    with pytest.raises(RecipeError, match="choose another name"):
        split({"train": values})


def test_what_was_seen_of_parts_adds_up_to_what_was_seen_of_all() -> None:
    holdouts: dict[str, Holdout] = {
        "v": HoldoutValues(field="vendor", values=("a", "z")),
        "b": HoldoutFraction(field="base", fraction=0.3),
    }
    bare = [Described("x", {"vendor": None, "more": 1})]
    parts = [split_pairs(part, holdouts, 0)[1] for part in (PAIRS[:7], PAIRS[7:], bare)]
    whole = split_pairs([*PAIRS, *bare], holdouts, 0)[1]
    assert NOTHING.plus(parts[0]).plus(parts[1]).plus(parts[2]) == whole
    assert whole.wanted == {"v": ["a"]}
    assert whole.lacking["vendor"] == 1


def test_the_stage_writes_the_same_split_whatever_the_shards(tmp_path: Path) -> None:
    holdouts: dict[str, Holdout] = {
        "v": HoldoutValues(field="vendor", values=("a",)),
        "f": HoldoutFraction(fraction=0.4),
    }
    splits = []
    for per_shard in (7, 30):
        pool, place = tmp_path / f"pool{per_shard}", Place(root=str(tmp_path / f"runs{per_shard}"))
        pairs = [Pair(f"u{n}", TINY_PNG, "png", {"alt": "x"}, {"vendor": "abc"[n % 3]} if n else {}) for n in range(30)]
        for start in range(0, 30, per_shard):
            write_shard(str(pool), f"{start:05d}", pairs[start : start + per_shard])
        shards = run_stage("pairs", IngestSpec(pool=ShardPool(url=str(pool / "shards"))), {}, place)
        assert len(ShardSet(shards).shards) == -(-30 // per_shard)
        made = run_stage("split", SplitSpec(pairs="pairs", holdouts=holdouts), {"pairs": shards.uri}, place)
        splits.append(read_split(made))
        counts = made.record.counts
        assert counts["v"] == 9 and counts["v"] + counts["f"] + counts["train"] == counts["pairs"] == 30
        assert counts["without_vendor"] == 1
    assert splits[0].equals(splits[1])
    assert uids_of(splits[0], ("v",)) == sorted(f"u{n}" for n in range(3, 30, 3))
    assert json.dumps(splits[0]["uid"].to_pylist()) == json.dumps(sorted(splits[0]["uid"].to_pylist()))


def tiny_png() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (2, 2)).save(sink, "PNG")
    return sink.getvalue()


TINY_PNG = tiny_png()
