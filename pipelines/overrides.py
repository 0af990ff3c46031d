"""`--set a.b=c`: a recipe with one value changed, the path checked against the tree, the value read as YAML."""

import difflib
from collections.abc import Iterable
from typing import Any

from data.errors import RecipeError, nearest
from pipelines.explain import shown
from pipelines.recipe import Recipe, parse_recipe
from pipelines.schema import annotation_at, child_value, known_fields, literal_fields, paths_of, spec_at
from pipelines.starting_point import MAKES, with_start
from pipelines.yaml_text import parse_yaml


def override(recipe: Recipe, assignments: Iterable[str], root: str = "runs") -> Recipe:
    """Return a copy of the recipe with each `path=value` applied in order.

    `init=...` and `pairs=...` replace these stages whole (`pipelines.starting_point`): a checkpoint below `root` is
    taken as it is.

    Raises:
        RecipeError: no such path (with the nearest right one), or the result is not a recipe.
    """
    value, changed = recipe.to_dict(), False
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise RecipeError(f"--set {assignment}: write path=value, e.g. --set stages.pretrain.seed=1")
        if path.strip() in MAKES:
            value, changed = with_start(value, path.strip(), text, root), True
        else:
            value, changed = _assign(value, path.strip(), parse_yaml(text, f"--set {assignment}")), True
    return parse_recipe(value) if changed else recipe


def _assign(tree: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    keys = path.split(".")
    for depth in range(len(keys)):
        if not _may_stand(tree, keys[: depth + 1], last=depth == len(keys) - 1):
            raise RecipeError(f"--set {path}: {_why_not(tree, keys, depth)}")
    result: dict[str, Any] = _replaced(tree, keys, new)
    return _without_other_members(result, keys, new)


def _at(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = child_value(tree, key)
    return tree


def _may_stand(tree: Any, keys: list[str], last: bool) -> bool:
    """True where the key exists, and at the end of the path also where a field or a free key may be added."""
    parent = _at(tree, keys[:-1])
    if isinstance(parent, dict) and keys[-1] in parent:
        return True
    if isinstance(parent, list) and keys[-1].isdigit():
        return int(keys[-1]) < len(parent) or (last and int(keys[-1]) == len(parent))
    free = isinstance(parent, dict) and not known_fields(Recipe, tree, keys[:-1])
    return free and last and keys[:-1] != ["stages"]


def _why_not(tree: dict[str, Any], keys: list[str], depth: int) -> str:
    """What is wrong with the key at `depth`, with the nearest right path."""
    before, key, after = keys[:depth], keys[depth], keys[depth + 1 :]
    if depth == 0 and key in tree["stages"]:
        return _under_stages(tree, ["stages", *keys])
    parent, place = _at(tree, before), ".".join(before)
    if isinstance(parent, list):
        return f"{place} has {len(parent)} values, 0 to {len(parent) - 1}; {key!r} is not one of them"
    if not isinstance(parent, dict):
        return f"{place} is {shown(parent)}, so nothing lies below it; set it whole: --set '{place}={{...}}'"
    close = difflib.get_close_matches(key, list(parent), n=1, cutoff=0.5)
    if close:
        return f"no such path; did you mean {'.'.join([*before, close[0], *after])!r}?"
    if before == ["stages"]:
        return f"no such stage; have {', '.join(parent)}"
    paths = [path for path in paths_of(tree) if path.startswith(place)]
    ending = [path for path in paths if path.endswith("." + ".".join([key, *after]))]
    if ending:
        return f"no such path; did you mean {ending[0]!r}?"
    return f"no such path{nearest('.'.join(keys), paths) or '; at this place: ' + ', '.join(list(parent)[:12])}"


def _under_stages(tree: dict[str, Any], keys: list[str]) -> str:
    """The leading `stages.` was left out."""
    for depth in range(1, len(keys)):
        if not _may_stand(tree, keys[: depth + 1], last=depth == len(keys) - 1):
            return _why_not(tree, keys, depth)
    return f"no such path; did you mean {'.'.join(keys)!r}?"


def _replaced(value: Any, keys: list[str], new: Any) -> Any:
    """A copy with the value at `keys` replaced."""
    if not keys:
        return new
    key, *rest = keys
    if isinstance(value, dict):
        return {**value, key: _replaced(value.get(key), rest, new)}
    number = int(key)
    return [*value[:number], _replaced(child_value(value, key), rest, new), *value[number + 1 :]]


def _without_other_members(tree: dict[str, Any], keys: list[str], new: Any) -> dict[str, Any]:
    """After `llm.backend=endpoint`, drop what only the former member of the family had."""
    owner = _at(tree, keys[:-1])
    spec = spec_at(annotation_at(Recipe, tree, keys[:-1]), owner) if len(keys) > 1 else None
    if spec is None or keys[-1] not in literal_fields(spec) or not isinstance(owner, dict):
        return tree
    kept = {name: value for name, value in owner.items() if name in spec.model_fields}
    result: dict[str, Any] = _replaced(tree, keys[:-1], {**kept, keys[-1]: new})
    return result
