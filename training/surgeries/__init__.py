"""Surgeries: pure changes model -> model, each with checks that the run makes and logs at its first step."""

from typing import Any

from training.specs import Reinitialise, Upcycle
from training.surgeries.base import Check, Phases
from training.towers import Towers

__all__ = ["Check", "Phases", "apply", "rebuild"]


def apply(spec: Upcycle | Reinitialise, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:
    """Return the changed model and the invariants that were checked on it.

    Raises:
        ModelError: the surgery does not fit this model.
    """
    if isinstance(spec, Upcycle):
        from training.surgeries.upcycle import upcycle

        return upcycle(spec, towers, phases)
    from training.surgeries.reinitialise import reinitialise

    return reinitialise(spec)


def rebuild(towers: Towers, layout: dict[str, Any]) -> Towers:
    """Repeat a surgery's change of layout on a freshly made model, so that saved weights fit."""
    from training.surgeries.upcycle import rebuild_upcycled

    assert layout["surgery"] == "upcycle"
    return rebuild_upcycled(towers, layout)
