"""New random towers: the student of a distillation starts from nothing."""

from training.specs import Reinitialise
from training.surgeries.base import Check, Phases
from training.towers import Towers, create_towers


def apply(spec: Reinitialise, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:  # noqa: ARG001
    """Towers of another architecture. Nothing of the old model is kept, so there is no invariant."""
    return create_towers(spec.architecture, seed=spec.seed), []
