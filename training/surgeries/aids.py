"""Aids: modules that stand beside the towers while a phase trains, and are left out of its result unless kept.

An aid reads the model's inputs and named outputs and adds named outputs of its own; objectives see only those.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from training.towers import Towers


class Aid(nn.Module):
    """Base of every aid.

    `reads_tokens`: it gets `image_tokens` (B, P, D) and `text_tokens` (B, L, D), projected to the shared space and not
    normalised, `image_states` (B, P, W) before the projection, and `text_mask` (B, L), True for a caption's own words,
    without start, end and padding. `shared` names outputs whose rows are not the batch's pairs.
    """

    reads_tokens: ClassVar[bool] = False
    shared: ClassVar[frozenset[str]] = frozenset()

    def outputs(self, model: Any, inputs: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named outputs from the model's `inputs` (training/inputs.py) and what the towers made of them."""
        raise NotImplementedError


def attach(towers: Towers, name: str, aid: Aid, layout: dict[str, Any]) -> Towers:
    """Towers with an aid of this name; `layout` says how to make it again, and with `keep` whether results have it."""
    model: Any = copy.deepcopy(towers.model)
    if not hasattr(model, "aids"):
        model.aids = nn.ModuleDict()
    model.aids[name] = aid
    return Towers(model, towers.config, (*towers.layout, layout))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights by a seed, the same on every rank and after every restart; the global state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
