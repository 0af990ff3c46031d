"""Captions of a chosen quality: which facts of a scene are mentioned, and which of those are wrong.

A fact is the noun, colour or size of a group. The order in which facts are left out, and the draw that makes one
wrong, are the scene's own: more of a dial never mentions less, and a higher rate never mends a fact.
"""

from data.pools.scene_layout import Draws, Group, Scene, vocabulary
from data.pools.scene_words import SIZES, article, listing, number, plural
from data.specs import Dial, ScenePool

_KINDS = ("noun", "color", "size")
Facts = dict[str, str]  # kind of fact -> what is said


def dialled(scene: Scene, pool: ScenePool, dial: Dial, draws: Draws) -> str:
    """The scene's statement with only some of its facts, some of them wrong; all words are the pool's."""
    facts = [(group, kind) for group in range(len(scene.told)) for kind in _KINDS]
    ranked = draws.some(facts, len(facts))
    said: list[Facts] = [{} for _ in scene.told]
    kept = int(dial.mentioned_fraction * len(facts) + 0.5)
    for place, (group, kind) in enumerate(ranked):
        is_wrong, wrong = draws.happens(dial.swap_rate), draws.one(_wrong(scene, pool, group, kind))
        if place < kept:
            said[group][kind] = wrong if is_wrong else getattr(scene.told[group], kind)
    told = [_told(group, own) for group, own in zip(scene.told, said, strict=True) if own]
    return listing(told) if told else "a picture"


def _wrong(scene: Scene, pool: ScenePool, group: int, kind: str) -> list[str]:
    """What is not so: nouns that nothing in the scene has (of eight there may be none left), other colours, sizes."""
    nouns, colors = vocabulary(pool)
    if kind == "noun":
        return [noun for noun in nouns if all(noun != other.noun for other in scene.groups)] or ["thing"]
    options, own = (colors if kind == "color" else list(SIZES)), getattr(scene.told[group], kind)
    return [option for option in options if option != own]


def _told(group: Group, facts: Facts) -> str:
    named = " ".join([*([facts["size"]] if "size" in facts else []), facts.get("noun", "thing")])
    square = f"{facts['color']} tile" if "color" in facts else ""
    if group.count == 1:
        return article(named) + (f" on {article(square)}" if square else "")
    return f"{number(group.count)} {plural(named)}" + (f" on {plural(square)}" if square else "")
