"""Identity: what may change the bytes of a result is in it, and nothing else."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from data.spec import (
    CaptionLayerRef,
    CheckpointRef,
    FeatureSetRef,
    Operational,
    Spec,
    canonical_json,
    digest,
    identity,
    orders,
    references,
)


class Frozen(Spec):
    teacher: Literal["frozen"] = "frozen"
    checkpoint: CheckpointRef


class Cached(Spec):
    teacher: Literal["cached"] = "cached"
    features: FeatureSetRef
    rows: Annotated[int, Operational] = 8


class Phase(Spec):
    lr: float = 0.1
    teachers: dict[str, Annotated[Frozen | Cached, Field(discriminator="teacher")]] = Field(default_factory=dict)
    log_every: Annotated[int | None, Operational] = Field(default=None, ge=1)


class Train(Spec):
    init: CheckpointRef
    layers: tuple[CaptionLayerRef, ...] = ()
    gallery: FeatureSetRef | None = None
    extra: list[CheckpointRef] = Field(default_factory=list)
    labelled: dict[str, CheckpointRef] = Field(default_factory=dict)
    phases: dict[str, Phase] = Field(default_factory=dict)
    steps: tuple[Phase, ...] = ()
    architecture: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)


FULL = Train(
    init="a",
    layers=("b", "c"),
    gallery="g",
    extra=["d"],
    labelled={"second": "e", "first": "f"},
    phases={
        "one": Phase(teachers={"old": Frozen(checkpoint="p"), "new": Cached(features="q")}),
        "two": Phase(lr=0.2, log_every=3),
    },
    steps=(Phase(teachers={"t": Frozen(checkpoint="r")}),),
)


def test_references_carry_dotted_role_stage_and_kind() -> None:
    assert list(references(FULL)) == [
        ("init", "a", "checkpoint"),
        ("layers.0", "b", "caption_layer"),
        ("layers.1", "c", "caption_layer"),
        ("gallery", "g", "feature_set"),
        ("extra.0", "d", "checkpoint"),
        ("labelled.second", "e", "checkpoint"),
        ("labelled.first", "f", "checkpoint"),
        ("phases.one.teachers.old.checkpoint", "p", "checkpoint"),
        ("phases.one.teachers.new.features", "q", "feature_set"),
        ("steps.0.teachers.t.checkpoint", "r", "checkpoint"),
    ]


def test_an_absent_optional_reference_is_no_parent() -> None:
    assert list(references(Train(init="a"))) == [("init", "a", "checkpoint")]


def test_identity_leaves_out_references_and_operational_fields_at_every_depth() -> None:
    found = identity(FULL)
    assert found.keys() == {"phases", "steps", "architecture", "weights"}
    assert found["phases"]["one"] == {
        "lr": 0.1,
        "teachers": {"old": {"teacher": "frozen"}, "new": {"teacher": "cached"}},
    }
    assert found["phases"]["two"] == {"lr": 0.2, "teachers": {}}
    assert found["steps"] == [{"lr": 0.1, "teachers": {"t": {"teacher": "frozen"}}}]


def test_operational_fields_and_stage_names_do_not_change_the_digest_but_numbers_do() -> None:
    base = digest(identity(Train(init="a", phases={"p": Phase()})))
    assert digest(identity(Train(init="renamed", phases={"p": Phase(log_every=99)}))) == base
    assert digest(identity(Train(init="a", phases={"p": Phase(lr=0.1000001)}))) != base
    assert digest(identity(Train(init="a", phases={"q": Phase()}))) != base


def test_key_order_of_plain_values_does_not_count() -> None:
    one = Train(init="a", architecture={"width": 8, "depth": 2}, weights={"alt": 1, "rewrite": 2})
    two = Train(init="a", architecture={"depth": 2, "width": 8}, weights={"rewrite": 2, "alt": 1})
    assert digest(identity(one)) == digest(identity(two))
    assert dict(orders(one)) == dict(orders(two)) == {}


def test_order_of_named_specs_and_references_is_told() -> None:
    assert dict(orders(FULL)) == {
        "labelled": ["second", "first"],
        "phases": ["one", "two"],
        "phases.one.teachers": ["old", "new"],
    }


def test_integers_given_for_floats_are_the_same_spec() -> None:
    assert digest(identity(Phase(lr=1))) == digest(identity(Phase(lr=1.0)))


def test_canonical_json_is_sorted_compact_and_keeps_unicode() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"é","b":[1,2.5,null,true]}'


def test_digest_is_the_known_sha256() -> None:
    # printf '{"a":1}' | sha256sum
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_have_no_digest(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": value})


def test_specs_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Phase().lr = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Phase(lrr=1)  # type: ignore[call-arg]


def test_a_spec_comes_back_from_json_the_same() -> None:
    assert Train.model_validate_json(FULL.model_dump_json()) == FULL
    assert list(orders(Train.model_validate_json(FULL.model_dump_json()))) == list(orders(FULL))
