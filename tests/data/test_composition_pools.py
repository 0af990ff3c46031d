"""Compositional benchmarks from their authors' own files, word order, and the colour probe's pictures."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.errors import ShardError
from data.place import Place
from data.pools import association, composition
from data.pools.order import other_orders
from data.shards import ShardSet
from data.sources import pool_identity
from data.specs import AssociationPool, CompositionPool, IngestSpec
from data.stage import run_stage

MOST = 1000


def picture(path, size=(40, 30), color=(200, 10, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def pool(tmp_path, layout, content, names=(), file="a.json"):
    """A pool of a file with this content and plain pictures of these names."""
    (tmp_path / "images").mkdir(exist_ok=True)
    for name in names:
        picture(tmp_path / "images" / name)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / file).write_text(text)
    return CompositionPool(layout=layout, annotations=str(tmp_path / file), images=str(tmp_path / "images"))


def planned(found):
    return {pair.uid: (dict(pair.captions), dict(pair.meta)) for pair in found.pairs}


def reasons(found):
    return Counter(row.reason for row in found.dropped)


def test_sugar_crepe(tmp_path):
    content = {
        "0": {"filename": "1.jpg", "caption": "a blue cup", "negative_caption": "a red cup"},
        "1": {"filename": "1.jpg", "caption": "a cup", "negative_caption": " "},
        "2": {"filename": "gone.jpg", "caption": "a", "negative_caption": "b"},
        "3": {"filename": "1.jpg", "caption": "a"}, "4": 5,
        "5": {"filename": "1.jpg", "caption": "a", "negative_caption": "b" * 2000},
    }  # fmt: skip
    found = composition.plan(pool(tmp_path, "sugar_crepe", content, ["1.jpg"], "swap_att.json"), MOST)
    assert planned(found) == {
        "swap_att-0": ({"alt": "a blue cup", "negative": "a red cup"}, {"category": "swap_att"}),
    }
    assert reasons(found) == {"empty_caption": 1, "missing_image": 1, "bad_entry": 2, "caption_too_large": 1}
    assert "MIT" in found.data_card["licence"]


def vg(**changes):
    entry = {
        "image_path": "1.png", "bbox_x": 5, "bbox_y": 2, "bbox_w": 10, "bbox_h": 20, "true_caption": "a on b",
        "false_caption": "b on a", "relation_name": "on", "attributes": ["open", "white"],
    }  # fmt: skip
    return entry | changes


def test_aro_cuts_the_picture_to_the_box(tmp_path):
    content = [
        vg(), vg(bbox_w=0), vg(bbox_x="5.5.5"), vg(relation_name=None), vg(bbox_x=30),
        vg(bbox_w=10**6), vg(bbox_x=float("inf")),
    ]  # fmt: skip
    spec = pool(tmp_path, "aro_relation", content)
    picture(tmp_path / "images" / "1.png")
    whole = np.asarray(Image.open(tmp_path / "images" / "1.png")).copy()
    whole[2:22, 5:15] = (0, 255, 0)
    Image.fromarray(whole).save(tmp_path / "images" / "1.png")
    found = composition.plan(spec, MOST)
    assert planned(found)["relation-0"] == (
        {"alt": "a on b", "negative": "b on a"}, {"relation": "on", "box": [5, 2, 15, 22]},
    )  # fmt: skip
    assert reasons(found) == {"empty_box": 1, "bad_entry": 3}
    artifact = run_stage("pairs", IngestSpec(pool=spec), {}, Place(root=str(tmp_path / "runs")))
    pairs = ShardSet(artifact)
    rows = {row["uid"]: row for row in pairs.index().to_pylist()}
    assert set(rows) == {"relation-0", "relation-4"}  # a box of a million pixels is no picture
    assert pairs.dropped().to_pylist()[-1]["reason"] == "unreadable_image"
    row = rows["relation-0"]
    assert row["ext"] == "png"
    stored = np.asarray(Image.open(io.BytesIO(pairs.read_image(0, row["offset"], row["bytes"]))))
    assert stored.shape == (20, 10, 3)
    assert (stored == (0, 255, 0)).all()
    row = rows["relation-4"]  # its right half lies outside: black, as ARO's own crop
    stored = np.asarray(Image.open(io.BytesIO(pairs.read_image(0, row["offset"], row["bytes"]))))
    assert stored.shape == (20, 10, 3)
    captions = {(c["uid"], c["source"]): c["caption"] for c in pairs.captions().to_pylist()}
    assert captions["relation-0", "negative"] == "b on a"


def test_aro_attributes_are_one_value_a_pair(tmp_path):
    found = composition.plan(pool(tmp_path, "aro_attribution", [vg()], ["1.png"]), MOST)
    assert planned(found)["attributes-0"][1] == {"attributes": "open_white", "box": [5, 2, 15, 22]}


def test_caption_order_has_four_other_orders_of_the_same_words(tmp_path):
    caption = "a big dog  runs after the small red ball"
    long = " ".join(["word"] * 31)
    content = [{"image": "val2014/1.jpg", "caption": [caption, "dog", "dog dog", long]}, {"image": 5, "caption": "a b"}]
    found = composition.plan(pool(tmp_path, "caption_order", content, ["val2014/1.jpg"]), MOST)
    ((uid, (captions, meta)),) = planned(found).items()
    assert (uid, meta) == ("order-0-0", {"image": 0})
    assert captions["alt"] == " ".join(caption.split())
    assert list(captions) == ["alt", "negative", "negative2", "negative3", "negative4"]
    assert len(set(captions.values())) == 5
    assert {tuple(sorted(text.split())) for text in captions.values()} == {tuple(sorted(caption.split()))}
    assert reasons(found) == {"no_other_order": 2, "too_many_words": 1, "bad_entry": 1}
    assert "spaCy" in found.data_card["notes"][0]


def test_each_order_is_what_it_says():
    words = [str(number) for number in range(9)]
    within, trigrams, _, neighbours = (text.split() for text in other_orders(words, "name"))
    for start in (0, 3, 6):
        assert sorted(within[start : start + 3]) == words[start : start + 3]
        assert trigrams[start : start + 3] in (words[:3], words[3:6], words[6:])
    moved = [place for place, (one, other) in enumerate(zip(words, neighbours, strict=True)) if one != other]
    assert len(moved) == 2
    assert moved[1] - moved[0] == 1
    assert other_orders(words, "name") == other_orders(words, "name") != other_orders(words, "other")
    assert other_orders(["a", "b"], "x") == ["b a"]
    assert other_orders(["a", "a", "a"], "x") == []


def test_winoground(tmp_path):
    lines = [
        {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "a in b", "caption_1": "b in a",
         "tag": "Noun", "secondary_tag": "", "collapsed_tag": "Object", "num_main_preds": 1},
        {"id": 1, "image_0": "gone", "image_1": "ex_0_img_1", "caption_0": "c", "caption_1": "d"},
    ]  # fmt: skip
    text = "\n".join([*map(json.dumps, lines), "{broken", ""])
    found = composition.plan(pool(tmp_path, "winoground", text, ["ex_0_img_0.png", "ex_0_img_1.png"]), MOST)
    assert planned(found) == {
        "winoground-0-0": ({"alt": "a in b"}, {"item": "0", "side": 0, "tag": "Noun", "collapsed_tag": "Object"}),
        "winoground-0-1": ({"alt": "b in a"}, {"item": "0", "side": 1, "tag": "Noun", "collapsed_tag": "Object"}),
        "winoground-1-1": ({"alt": "d"}, {"item": "1", "side": 1}),  # the task drops an item of one picture
    }
    assert reasons(found) == {"missing_image": 1, "bad_entry": 1}


def test_mmvp_pairs_two_rows(tmp_path):
    text = "Question ID,Type,Statement\n1,Texts,a sign\n2,Texts,no sign\n3,Texts,left over\n"
    found = composition.plan(pool(tmp_path, "mmvp", text, ["Texts/1.jpg", "Texts/2.jpg"], "Questions.csv"), MOST)
    assert planned(found) == {
        "mmvp-1": ({"alt": "a photo of a sign"}, {"item": "0", "side": 0, "pattern": "Texts"}),
        "mmvp-2": ({"alt": "a photo of no sign"}, {"item": "0", "side": 1, "pattern": "Texts"}),
    }
    assert reasons(found) == {"bad_entry": 1}


def test_winogavil_has_a_pair_a_picture_with_its_items(tmp_path):
    text = (
        ",candidates,cue,associations,num_associations,ID\n"
        '0,"[""eagle"", ""tea party""]",bald,"[""eagle""]",1,0\n'
        '1,"[""eagle"", ""ash""]",West,"[""ash""]",1,1\n'
        '2,"[""eagle"", ""ash""]",again,"[""ash""]",1,1\n'
        '3,"[""eagle""]",odd,"[""other""]",1,3\n'
        "4,[,odd,[],1,4\n5\n"
    )
    spec = pool(tmp_path, "winogavil", text, ["eagle.jpg", "tea party.png", "ash.jpg"], "w.csv")
    found = composition.plan(spec, MOST)
    pairs = planned(found)
    assert pairs["winogavil-eagle"] == (
        {}, {"item": ["0", "1"], "cue": ["bald", "West"], "is_answer": [True, False], "candidates": [2, 2]},
    )  # fmt: skip
    assert [uid for uid in pairs if uid.startswith("winogavil-tea_party-")]
    assert reasons(found) == {"duplicate_item": 1, "bad_entry": 3}


@pytest.mark.parametrize(
    ("layout", "content", "message"),
    [
        ("sugar_crepe", "[]", r"a\.json is not an object of entries by number, as sugar_crepe has it"),
        ("aro_relation", "{}", r"a\.json is not a list of entries, as aro_relation has it"),
        ("aro_relation", "[" * 200, r"a\.json is not JSON \(nested deeper than 100 levels\)"),
        ("caption_order", "no json", r"a\.json is not JSON \("),
        ("winogavil", "cue,candidates\n", r"has no column 'associations', only 'cue', 'candidates'"),
        ("winogavil", "", r"has no column 'cue', only nothing"),
    ],
)
def test_another_file_is_one_line(tmp_path, layout, content, message):
    with pytest.raises(ShardError, match=message) as error:
        composition.plan(pool(tmp_path, layout, content), MOST)
    assert "\n" not in str(error.value)


def test_identity_follows_the_file_and_the_pictures_and_not_their_place(tmp_path):
    content = {"0": {"filename": "1.jpg", "caption": "a", "negative_caption": "b"}}
    one, other = (pool(tmp_path / place, "sugar_crepe", content, ["1.jpg"]) for place in _folders(tmp_path))
    first = pool_identity(one)
    assert first == pool_identity(other)
    (tmp_path / "y" / "a.json").write_text(json.dumps(content | {"1": {}}))
    assert pool_identity(other) != first


def _folders(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        yield name


# ------------------------------------------------------------------------------------------- concept association bias


@pytest.fixture(scope="module", params=["Goog", "Twtr"])
def colors(request):
    pytest.importorskip("emoji")
    return association.plan(AssociationPool(vendor=request.param))


def test_every_two_objects_of_two_colours_stand_in_both_orders(colors):
    doubles = [pair.meta for pair in colors.pairs if pair.meta["layout"] == "double"]
    singles = [pair.meta for pair in colors.pairs if pair.meta["layout"] == "single"]
    assert (len(singles), len(doubles)) == (16, 16 * 14)
    assert Counter(meta["color"] for meta in singles) == dict.fromkeys(set(association.OBJECTS.values()), 2)
    orders = {(meta["object"], meta["other_object"]) for meta in doubles}
    assert len(orders) == len(doubles)
    assert {(right, left) for left, right in orders} == orders
    assert all(meta["color"] != meta["other_color"] for meta in doubles)
    assert Counter(meta["pair"] for meta in doubles) == dict.fromkeys({meta["pair"] for meta in doubles}, 2)
    assert all(meta["color"] == association.OBJECTS[meta["object"]] for meta in (*singles, *doubles))
    assert not [name for name in association.OBJECTS if any(color in name for color in association.OBJECTS.values())]


def test_an_object_looks_the_same_alone_on_the_left_and_on_the_right(colors):
    shown = {
        (pair.meta["object"], pair.meta.get("other_object")): np.asarray(Image.open(io.BytesIO(pair.content)), int)
        for pair in colors.pairs
    }
    alone, left, right = shown["lemon", None], shown["lemon", "tomato"], shown["tomato", "lemon"]
    assert {one.shape for one in (alone, left, right)} == {(160, 160, 3)}
    assert np.array_equal(alone[:, 40:120], left[:, :80])
    assert np.array_equal(alone[:, 40:120], right[:, 80:])
    assert (alone[:, :40] == 255).all()


def test_the_colours_are_those_they_are_said_to_be(colors):
    """The mean of the coloured pixels lies nearest its own colour's name, by hue; brown is a dark red or orange."""
    hues = {"red": 0, "brown": 15, "orange": 33, "yellow": 47, "green": 110, "blue": 210, "purple": 275, "pink": 350}
    for pair in colors.pairs:
        if pair.meta["layout"] == "single":
            hsv = np.asarray(Image.open(io.BytesIO(pair.content)).convert("HSV"), float).reshape(-1, 3)
            painted = hsv[hsv[:, 1] > 60]
            angle = np.angle(np.exp(2j * np.pi * painted[:, 0] / 255).mean(), deg=True) % 360
            away = {color: abs((angle - hue + 180) % 360 - 180) for color, hue in hues.items()}
            assert away[pair.meta["color"]] <= min(away.values()) + 25, (pair.uid, angle)


def test_the_association_pool_goes_through_ingest(tmp_path):
    pytest.importorskip("emoji")
    artifact = run_stage("pairs", IngestSpec(pool=AssociationPool()), {}, Place(root=str(tmp_path)))
    assert artifact.record.counts == {"pairs": 240, "shards": 1, "dropped": 0}
    assert artifact.record.metrics["data_card"]["licence"] == "derived from Twemoji, CC-BY-4.0"
    assert pool_identity(AssociationPool()) == {"packages": association.package_versions()}
