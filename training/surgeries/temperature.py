"""Another start of the temperature, as Long-CLIP's training takes (arXiv 2403.15378, released code)."""

import copy
import math
from typing import Any

import torch

from training.specs import SetLogitScale
from training.surgeries.base import Check, Phases
from training.towers import Towers

_TOLERANCE = 1e-5  # float32 keeps ln(100) to 5e-7


def apply(spec: SetLogitScale, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:  # noqa: ARG001
    """Towers whose logit_scale gives `value`; no feature depends on it. A phase clamps it to its logit_scale_max.

    Checked: the factor is `value`, relative to it.
    """
    model: Any = copy.deepcopy(towers.model)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(spec.value))
    found = model.logit_scale.detach().exp()
    check = Check("logit_scale as asked", float((found / spec.value - 1).abs().max()), _TOLERANCE)
    return Towers(model, towers.config, towers.layout), [check]
