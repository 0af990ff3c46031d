"""Rules for gradients between backward pass and optimizer step, and proof of what they must keep."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data.errors import ModelError
from training.parallel import local
from training.specs import FrozenRows, GradientRule, Phase
from training.weights import decays


def check_rules(phase: Phase, model: nn.Module) -> None:
    """Refuse a rule that no trainable parameter obeys, or that weight decay breaks.

    Raises:
        ModelError: names the rule's pattern.
    """
    for rule in phase.gradients:
        obeying = list(_obeying(rule, model))
        for name, parameter in obeying:
            if phase.optimizer.weight_decay and decays(name, parameter):
                raise ModelError(
                    f"gradients frozen_rows {rule.parameter!r}: weight decay would shrink the rows of {name}; set "
                    "optimizer.weight_decay 0, or leave the parameter out of `trainable`"
                )
        if not obeying:
            raise ModelError(
                f"gradients frozen_rows {rule.parameter!r}: no trainable parameter of more than {rule.rows} rows has "
                "such a name; look at the model's parameter names"
            )


@torch.no_grad()
def apply_rules(rules: Sequence[GradientRule], model: nn.Module) -> None:
    """Set the gradients of frozen rows to 0; AdamW then leaves them, where the parameter has no weight decay."""
    for rule in rules:
        for _, parameter in _obeying(rule, model):
            if parameter.grad is not None:
                local(parameter.grad)[: _rows_here(parameter, rule.rows)] = 0


def frozen_parts(rules: Sequence[FrozenRows], model: nn.Module) -> dict[str, Tensor]:
    """This rank's rows that must not change, by parameter name."""
    return {
        name: local(parameter.detach())[: _rows_here(parameter, rule.rows)]
        for rule in rules
        for name, parameter in _obeying(rule, model)
    }


def _obeying(rule: FrozenRows, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and fnmatchcase(name, rule.parameter) and _is_longer(parameter, rule.rows):
            yield name, parameter


def _is_longer(parameter: Tensor, rows: int) -> bool:
    return parameter.ndim > 0 and parameter.shape[0] > rows


def _rows_here(parameter: Tensor, rows: int) -> int:
    """How many of the first `rows` this rank holds; FSDP2 shards the first dimension in equal chunks."""
    if not isinstance(parameter, DTensor):
        return rows
    chunk = -(-parameter.shape[0] // parameter.device_mesh.size())
    return max(0, min(rows - parameter.device_mesh.get_local_rank() * chunk, chunk))
