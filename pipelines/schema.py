"""Which fields a recipe may have at a dotted path: the type behind `stages.pretrain.phases.p.optimizer`.

Unions are followed by the literal field in the data (`kind`, `objective`, `by` ...), so that an error can say which
names would have been right at that very place.
"""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def _members(annotation: Any) -> list[Any]:
    """Alternatives of a union, without `Annotated` and None; a type that is no union is its own only member."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for part in get_args(annotation) if part is not type(None) for m in _members(part)]
    return [annotation]


def is_spec(annotation: Any) -> bool:
    """True for a pydantic class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def literal_fields(spec: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """Fields of a spec that tell it from its siblings, with the values they may have."""
    return {
        name: get_args(field.annotation)
        for name, field in spec.model_fields.items()
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }


def tags(annotation: Any) -> dict[str, str]:
    """Of a family of specs: the values that tell its members apart, each with the name of the field that holds it."""
    specs = [member for member in _members(annotation) if is_spec(member)]
    if len(specs) < 2:
        return {}
    named = ((name, value) for spec in specs for name, values in literal_fields(spec).items() for value in values)
    return {value: name for name, value in named if isinstance(value, str)}


def spec_at(annotation: Any, value: Any) -> type[BaseModel] | None:
    """The spec class that `value` is meant to be, or None where it is none or cannot be told."""
    specs: list[type[BaseModel]] = [member for member in _members(annotation) if is_spec(member)]
    if len(specs) == 1:
        return specs[0]
    for spec in specs:
        literals = literal_fields(spec)
        if (
            isinstance(value, dict)
            and literals
            and all(value.get(name) in allowed for name, allowed in literals.items())
        ):
            return spec
    return None


def child_annotation(annotation: Any, value: Any, key: str) -> Any:
    """Type of what lies below `key` of a value of this type; None where there is no such thing."""
    spec = spec_at(annotation, value)
    if spec is not None:
        field = spec.model_fields.get(key)
        return field.annotation if field else None
    for member in _members(annotation):
        arguments = get_args(member)
        if get_origin(member) is dict:
            return arguments[1]
        if get_origin(member) in (tuple, list) and key.isdigit():
            fixed = get_origin(member) is tuple and Ellipsis not in arguments
            return arguments[int(key)] if fixed and int(key) < len(arguments) else arguments[0]
    return None


def child_value(value: Any, key: str) -> Any:
    """`value[key]` of a dict, `value[int(key)]` of a list, else None."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list | tuple) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    return None


def annotation_at(root: Any, value: Any, path: list[str]) -> Any:
    """Type at a path below `root`, following the unions by the data in `value`."""
    for key in path:
        root, value = child_annotation(root, value, key), child_value(value, key)
    return root


def known_fields(root: Any, value: Any, path: list[str]) -> list[str]:
    """Names of the fields that may stand at a path; empty where any name may, or none."""
    annotation = annotation_at(root, value, path)
    for key in path:
        value = child_value(value, key)
    spec = spec_at(annotation, value)
    return list(spec.model_fields) if spec else []


def paths_of(value: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted path in nested dicts and lists, outer ones first."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, child in children:
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path
        yield from paths_of(child, path)
