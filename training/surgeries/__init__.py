"""Surgeries: pure changes model -> model, each with checks that the run makes and logs at its first step.

To add one: a spec in `training/specs/surgeries.py`, a file here with `apply` and, where saved weights need another
layout than open_clip's, `rebuild`; a line in `_FILES`, a test.
"""

import importlib
from typing import Any

from training.specs import Surgery
from training.surgeries.base import Check, Phases
from training.towers import Towers

__all__ = ["Check", "Phases", "apply", "rebuild"]

_FILES = {
    "upcycle": "upcycle",
    "reinitialise": "reinitialise",
    "stretch_positions": "positions",
    "set_logit_scale": "temperature",
    "tokens": "tokens",
    "masked_language": "masked_language",
    "cross_modal": "cross_modal",
    "classifier": "classifier",
}


def apply(spec: Surgery, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:
    """Return the changed model and the invariants that were checked on it.

    Raises:
        ModelError: the surgery does not fit this model.
    """
    made: tuple[Towers, list[Check]] = _module(spec.surgery).apply(spec, towers, phases)
    return made


def rebuild(towers: Towers, layout: dict[str, Any]) -> Towers:
    """Repeat a surgery's change of layout on a freshly made model, so that saved weights fit."""
    made: Towers = _module(layout["surgery"]).rebuild(towers, layout)
    return made


def _module(surgery: str) -> Any:
    return importlib.import_module(f"training.surgeries.{_FILES[surgery]}")
