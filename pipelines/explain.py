"""What pydantic found wrong with a recipe, as one line: `path: value: what is wrong; the nearest right name`."""

import re
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError

from data.errors import RecipeError, nearest
from pipelines.schema import annotation_at, child_annotation, child_value, known_fields, spec_at, tags

_LONGEST_VALUE = 60
_SIGNED = re.compile(r"://[^/@\s]+@")  # an address with a name and a password in it
_MOST_NAMES = 12
_WORDS = {
    "Value error, ": "",
    "Input should": "should",
    "Tuple should": "should",
    "List should": "should",
    "Dictionary should": "should",
    "String should": "should",
    " after validation": "",
    "valid dictionary or object to extract fields from": "mapping",
    "valid dictionary or instance of ": "mapping of ",
    "valid dictionary": "mapping",
    "valid tuple": "list",
    "valid list": "list",
    "a valid string": "text",
}


def shown(value: Any) -> str:
    """A value, cut to a length that fits a line."""
    text = _SIGNED.sub("://***@", " ".join(repr(value).split()))
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def need(place: str, value: str, known: Collection[str], what: str) -> None:
    """Refuse a name that is not among those that are known.

    Raises:
        RecipeError: `place: value: what; the nearest right name; all of them`.
    """
    if value not in known:
        raise RecipeError(f"{place}: {value!r}: {what}{nearest(value, known)}; have {', '.join(known) or 'none'}")


def explain(error: ValidationError, root: type[BaseModel], value: Any) -> str:
    """One line for the first problem, and how many more there are."""
    lines: dict[str, str] = {}
    meanings: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path = _path(problem, root, value)
        name = ".".join(path)
        if name not in lines:
            lines[name], meanings[name] = _line(problem, path, root, value), _meaning(root, value, path)
        elif ": should be" in lines[name] and problem["msg"].startswith("Input should be"):
            lines[name] += " or" + _plain(problem["msg"]).removeprefix("should be")
    # a list that became too short because an item inside is wrong is not a second mistake
    names = [name for name in lines if not any(other.startswith(f"{name}.") for other in lines)]
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return lines[names[0]] + meanings[names[0]] + more


def _path(problem: Any, root: Any, value: Any) -> list[str]:
    """The problem's place without the names that pydantic adds for members of a union, which the data does not have."""
    path: list[str] = []
    is_family = True
    *inner, last = [str(part) for part in problem["loc"]] or [""]
    for part in inner:
        if is_family and part in tags(root):
            is_family = False  # the member's name; what follows is its field
        elif _has(value, part):
            path.append(part)
            root, value, is_family = child_annotation(root, value, part), child_value(value, part), True
    is_named = problem["type"] in ("missing", "extra_forbidden") or _has(value, last)
    return [*path, last] if is_named and last else path


def _has(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list | tuple) and key.isdigit() and int(key) < len(value)


def _line(problem: Any, path: list[str], root: type[BaseModel], value: Any) -> str:
    place, kind, context = ".".join(path) or "the recipe", problem["type"], problem.get("ctx", {})
    known = known_fields(root, value, path[:-1])
    if kind == "extra_forbidden":
        return f"{place}: {shown(problem['input'])}: unknown field{_suggest(path[-1], known)}"
    if kind == "missing":
        return f"{place}: missing; add it"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_line(place, list(tags(annotation_at(root, value, path))), context, problem)
    return f"{place}: {shown(problem['input'])}: {_plain(problem['msg'])}"


def _plain(message: str) -> str:
    """Pydantic's words in those of a YAML file."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _tag_line(place: str, allowed: list[str], context: Any, problem: Any) -> str:
    """The field that says which member of a family this is (`kind`, `objective` ...) is missing or unknown."""
    field, one_of = context["discriminator"].strip("'"), f"one of {', '.join(allowed)}"
    if field not in problem["input"]:
        return f"{place}.{field}: missing; add it: {one_of}"
    tag = str(problem["input"][field])
    return f"{place}.{field}: {tag!r}: unknown {field}{nearest(tag, allowed)}; {one_of}"


def _suggest(name: str, known: list[str]) -> str:
    guess = nearest(name, known)
    if guess or not known:
        return guess or "; remove it"
    return f"; known here: {', '.join(known[:_MOST_NAMES])}{', ...' if len(known) > _MOST_NAMES else ''}"


def _meaning(root: type[BaseModel], value: Any, path: list[str]) -> str:
    """What the field is for, in brackets, where its spec says it."""
    if not path:
        return ""
    owner, annotation = value, annotation_at(root, value, path[:-1])
    for key in path[:-1]:
        owner = child_value(owner, key)
    spec = spec_at(annotation, owner)
    field = spec.model_fields.get(path[-1]) if spec else None
    return f" ({field.description})" if field and field.description else ""
