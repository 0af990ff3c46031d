"""Teachers: frozen by construction; they give named tensors for a batch, prefixed by the teacher's label."""

import importlib
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from data.artifacts import Artifact
from training.loading import Batch
from training.specs import Teacher as TeacherSpec

__all__ = ["Teacher", "build_teacher"]


class Teacher(Protocol):
    """Gives targets for a batch; holds no trainable parameter."""

    def targets(self, batch: Batch) -> Mapping[str, Tensor]:
        """image_features (B, D), text_features (B, D), logit_scale () and more by kind, for a batch."""
        ...

    def digest(self) -> str:
        """Hash of everything the teacher knows; equal before and after training."""
        ...


_FILES = {"frozen_model": "frozen.FrozenTowers", "cached_features": "cached.CachedTargets"}


def build_teacher(spec: TeacherSpec, parents: Mapping[str, Artifact], role: str) -> Teacher:
    """Make the teacher a spec names; its parents' roles begin with `role`, its own place in the stage."""
    module, _, name = _FILES[spec.teacher].partition(".")
    own = {key.removeprefix(f"{role}."): parent for key, parent in parents.items() if key.startswith(f"{role}.")}
    made: Teacher = getattr(importlib.import_module(f"training.teachers.{module}"), name)(spec, own)
    return made
