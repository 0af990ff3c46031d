"""What is said of a composed scene: true in many forms, and wrong in exactly one way.

Every caption depends on the scene and its uid alone. A source that a scene cannot have, such as a relation where there
is one object, is left out.
"""

from collections.abc import Mapping

from data.pools.scene_dials import dialled
from data.pools.scene_layout import Draws, Group, Scene
from data.pools.scene_words import NOUNS, OPPOSITE, RELATION_REWRITES, article, listing, number, plural
from data.specs import ScenePool

REWRITES = 4
# true of every scene; about as long as what a text tower reads of a caption at first, so that details come late
_PREAMBLES = (
    "This is a flat square picture put together from simple little drawings, each of which has been placed on its own "
    "plain coloured tile, and the tiles have been laid out so that none of them hides any other one from the view; "
    "what they are, how large they are and where they can be found is told now, one by one.",
    "Whoever made this plain square picture took a few simple drawings, gave each one of them a coloured tile of its "
    "own to stand on, and then laid the tiles out with care so that no tile comes to lie over another one; the things "
    "in it, with their sizes and where they have been put, are listed here in turn.",
    "All that can be seen in this square picture are simple drawings without any people or writing around them, each "
    "one drawn upon a tile of one single colour, and the tiles are laid out so that not one of them is covered; what "
    "follows says of every one of them how large it is and in which part it is.",
)  # fmt: skip
_OPENINGS = ("", "", "a picture of ", "a drawing with ", "here we see ", "this shows ")
_JOINS = ("and", "together with", "along with", "as well as")


def captions_of(scene: Scene, pool: ScenePool, uid: str) -> dict[str, str]:
    """Caption source -> caption."""
    found = {"alt": _short(scene), "long": _long(scene, Draws(f"{uid} long"))}
    found |= {f"rewrite{n}": _rewrite(scene, Draws(f"{uid} rewrite{n}")) for n in range(1, REWRITES + 1)}
    found["heldout"] = _short(scene, {name: noun.heldout for name, noun in NOUNS.items()})
    each = [group for group in scene.groups for _ in group.boxes]
    found |= {f"region{n}": phrase(group, count=1, sized=True) for n, group in enumerate(each, start=1)}
    found |= _contrasts(scene)
    found["statement"] = statement(scene)
    return found | {name: dialled(scene, pool, dial, Draws(f"{uid} dial")) for name, dial in pool.dials.items()}


def phrase(
    group: Group, noun: str = "", color: str = "", count: int = 0, sized: bool = False, tile: str = "tile"
) -> str:
    """`a small dog on a red tile`, `three dogs on red tiles`; what is given stands in for the group's own."""
    count, name = count or group.count, noun or group.noun
    named = f"{group.size} {name}" if sized else name
    square = f"{color or group.color} {tile}"
    if count == 1:
        return f"{article(named)} on {article(square)}"
    return f"{number(count)} {plural(named)} on {plural(square)}"


def statement(scene: Scene) -> str:
    """Noun, colour and size of everything."""
    return listing([phrase(group, sized=True) for group in scene.told])


def _short(scene: Scene, names: Mapping[str, str] | None = None) -> str:
    """The first two groups, with their relation where there is one; of a single group its size."""
    joined, told = _in_front(scene)
    nouns = [(names or {}).get(group.noun, group.noun) for group in told]
    phrases = [phrase(group, noun, sized=len(told) == 1) for group, noun in zip(told, nouns, strict=True)]
    return f" {joined} ".join(phrases)


def _in_front(scene: Scene) -> tuple[str, list[Group]]:
    """What a short caption names, and the word between: a relation, which needs both to be single, or `and`."""
    if scene.relation and {scene.relation.left, scene.relation.right} == {0, 1}:
        name, left, right = scene.relation
        return name, [scene.groups[left], scene.groups[right]]
    return "and", list(scene.told[:2])


def _rewrite(scene: Scene, draws: Draws) -> str:
    """What `alt` says, in the words of rewrites, in either order."""
    joined, told = _in_front(scene)
    opening, is_turned = draws.one(_OPENINGS), draws.happens(0.5)
    phrases = [_reworded(group, draws, sized=len(told) == 1) for group in (reversed(told) if is_turned else told)]
    name = OPPOSITE.get(joined, joined) if is_turned else joined
    return opening + f" {draws.one(RELATION_REWRITES.get(name, _JOINS))} ".join(phrases)


def _reworded(group: Group, draws: Draws, sized: bool) -> str:
    name, tile = draws.one(NOUNS[group.noun].rewrites), draws.one(("square", "card", "tile"))
    if draws.happens(0.5):
        return phrase(group, name, sized=sized, tile=tile)
    named = f"{group.size} {name}" if sized else name
    if group.count == 1:
        return f"{article(f'{group.color} {tile}')} with {article(named)}"
    return f"{number(group.count)} {plural(f'{group.color} {tile}')} with {plural(named)}"


def _contrasts(scene: Scene) -> dict[str, str]:
    """Right captions, and wrong ones that differ from them in one swap."""
    found: dict[str, str] = {}
    if len(scene.groups) > 1 and scene.groups[0].color != scene.groups[1].color:
        one, other = scene.told[:2]
        found["statement_attribute"] = f"{phrase(one)} and {phrase(other)}"
        found["negative_attribute"] = f"{phrase(one, color=other.color)} and {phrase(other, color=one.color)}"
    if scene.relation:
        name, left, right = scene.relation
        one_told, other_told = phrase(scene.groups[left]), phrase(scene.groups[right])
        found["statement_relation"] = f"{one_told} {name} {other_told}"
        found["negative_relation"] = f"{one_told} {OPPOSITE[name]} {other_told}"
        found["negative_order"] = f"{other_told} {name} {one_told}"
    return found


def _long(scene: Scene, draws: Draws) -> str:
    """`alt`, then what is true of every scene, then every object with its size, colour and place, the rest last."""
    told = [f"{phrase(group, sized=True)} {_stands(group)} {listing(group.places)}" for group in scene.told]
    if scene.relation:
        name, left, right = scene.relation
        told.append(f"the {scene.groups[left].noun} is {name} the {scene.groups[right].noun}")
    things = "one object" if scene.count == 1 else f"{number(scene.count)} objects"
    told.append(f"with {things} in all, the background is plain {scene.background}")
    return " ".join((f"{_short(scene)}.", draws.one(_PREAMBLES), *(f"{sentence}." for sentence in told)))


def _stands(group: Group) -> str:
    return "is" if group.count == 1 else "are"
