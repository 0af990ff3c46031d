"""Frozen, typed specs: what a recipe is made of, and the part of it that is identity.

A spec holds no torch and no ray. `identity` is what may change the bytes of a stage's result: fields marked
`Operational` (log intervals, checkpoint intervals, rates) and references to other stages are left out; references
come back as `references`, because a parent counts by its fingerprint, not by its name.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from data.errors import RecipeError

_WITH_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s]*:[^/?#@\s]*@")


class Spec(BaseModel):
    """Base of everything in a recipe: frozen, keyword-only, unknown fields refused; no password in an address."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")

    @model_validator(mode="after")
    def _refuse_passwords(self) -> Self:
        for name, value in self.__dict__.items():
            if isinstance(value, str) and "://" in value and _WITH_PASSWORD.match(value):
                raise RecipeError(  # and not ValueError, with which pydantic would show the value
                    f"{name}: holds a user and a password, which would reach logs and records; leave them out of the "
                    "address and give them by the environment"
                )
        return self


class Operational:
    """Marks a field that cannot change the bytes of a result; it is left out of the fingerprint."""


class Reference:
    """Marks a field that names another stage, and the kind of artifact that stage must make."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


ShardSetRef = Annotated[str, Reference("shard_set")]
SplitRef = Annotated[str, Reference("split")]
MatchesRef = Annotated[str, Reference("matches")]
InspectionRef = Annotated[str, Reference("inspection")]
DuplicatesRef = Annotated[str, Reference("duplicates")]
SelectionRef = Annotated[str, Reference("selection")]
CaptionLayerRef = Annotated[str, Reference("caption_layer")]
CheckpointRef = Annotated[str, Reference("checkpoint")]
FeatureSetRef = Annotated[str, Reference("feature_set")]
EvaluationRef = Annotated[str, Reference("evaluation")]


def _marker(annotation_metadata: list[Any], kind: type) -> Any | None:
    return next((item for item in annotation_metadata if isinstance(item, kind) or item is kind), None)


def _nested_reference(annotation: Any) -> Reference | None:
    """Find a `Reference` inside `list[Ref]`, `dict[str, Ref]` or `Ref | None`."""
    found = _marker(list(getattr(annotation, "__metadata__", ())), Reference)
    if isinstance(found, Reference):
        return found
    for argument in getattr(annotation, "__args__", ()):
        nested = _nested_reference(argument)
        if nested:
            return nested
    return None


def _field_reference(spec: BaseModel, name: str) -> Reference | None:
    field = type(spec).model_fields[name]
    found = _marker(field.metadata, Reference)
    return found if isinstance(found, Reference) else _nested_reference(field.annotation)


def references(spec: Any, role: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (role, stage name, artifact kind) for every reference below `spec`, in field order.

    The role is the dotted path of the field: ``init``, ``captions.0``, ``teachers.pretrained.features``.
    """
    if isinstance(spec, BaseModel):
        for name in type(spec).model_fields:
            value, path = getattr(spec, name), f"{role}.{name}" if role else name
            reference = _field_reference(spec, name)
            if reference is None:
                yield from references(value, path)
            elif value is not None:
                for label, stage in _labelled(path, value):
                    yield label, stage, reference.kind
    elif isinstance(spec, dict):
        for key, value in spec.items():
            yield from references(value, f"{role}.{key}")
    elif isinstance(spec, list | tuple):
        for number, value in enumerate(spec):
            yield from references(value, f"{role}.{number}")


def _labelled(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        yield from ((f"{path}.{key}", stage) for key, stage in value.items())
    else:
        yield from ((f"{path}.{number}", stage) for number, stage in enumerate(value))


def identity(spec: Any) -> Any:
    """Return the JSON-able part of `spec` that may change the bytes of its result."""
    if isinstance(spec, BaseModel):
        return {
            name: identity(getattr(spec, name))
            for name, field in type(spec).model_fields.items()
            if _marker(field.metadata, Operational) is None and _field_reference(spec, name) is None
        }
    if isinstance(spec, dict):
        return {str(key): identity(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [identity(value) for value in spec]
    return spec


def orders(spec: Any, role: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield (dotted path, names in order) of every mapping of specs or references; canonical JSON sorts order away.

    The last phase of a training stage is its result, so two recipes that differ in this order are two recipes.
    Mappings of plain values (weights, a model's config) have no order that counts.
    """
    if isinstance(spec, BaseModel):
        for name in type(spec).model_fields:
            value, path = getattr(spec, name), f"{role}.{name}" if role else name
            if isinstance(value, dict) and len(value) > 1 and _holds_named_things(spec, name, value):
                yield path, list(value)
            yield from orders(value, path)
    elif isinstance(spec, dict):
        for key, value in spec.items():
            yield from orders(value, f"{role}.{key}")
    elif isinstance(spec, list | tuple):
        for number, value in enumerate(spec):
            yield from orders(value, f"{role}.{number}")


def _holds_named_things(spec: BaseModel, name: str, value: dict[str, Any]) -> bool:
    return _field_reference(spec, name) is not None or all(isinstance(item, Spec) for item in value.values())


def canonical_json(value: Any) -> str:
    """Serialise with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
