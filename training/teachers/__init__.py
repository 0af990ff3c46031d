"""Teachers: frozen by construction; they give named tensors for a batch, prefixed by the teacher's label."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from data.artifacts import Artifact
from training.loading import Batch
from training.specs import FrozenModel
from training.specs import Teacher as TeacherSpec

__all__ = ["Teacher", "build_teacher"]


class Teacher(Protocol):
    """Gives targets for a batch; holds no trainable parameter."""

    def targets(self, batch: Batch) -> Mapping[str, Tensor]:
        """image_features (B, D), text_features (B, D) and logit_scale () for a batch."""
        ...

    def digest(self) -> str:
        """Hash of everything the teacher knows; equal before and after training."""
        ...


def build_teacher(spec: TeacherSpec, parents: Mapping[str, Artifact], role: str) -> Teacher:
    """Make the teacher a spec names; `role` is the dotted path of its reference among the stage's parents."""
    if isinstance(spec, FrozenModel):
        from training.teachers.frozen import FrozenTowers

        return FrozenTowers(parents[f"{role}.checkpoint"])
    from training.teachers.cached import CachedTargets

    return CachedTargets(parents[f"{role}.features"])
