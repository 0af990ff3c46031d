"""Class weights beside the towers, for objectives that tell classes apart (MCIP, arXiv 2409.01936).

Shapes: C classes, D embed_dim.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data.errors import ModelError
from training.specs import Classifier
from training.surgeries.aids import Aid, attach, seeded
from training.surgeries.base import Check, Phases
from training.towers import Towers

NAME = "classifier"


class ClassWeights(Aid):
    """One direction of the shared space a class; how long it is means nothing."""

    shared: ClassVar[frozenset[str]] = frozenset({"class_weights"})

    def __init__(self, classes: int, embed_dim: int, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.weight = nn.Parameter(torch.randn(classes, embed_dim) / embed_dim**0.5)

    def outputs(self, model: Any, inputs: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`class_weights` (C, D), as they are stored: objectives take them to length 1."""
        del model, inputs, seen
        # a copy: DDP takes a parameter that is itself an output for one that no graph uses
        return {"class_weights": self.weight.clone()}


def _with_weights(towers: Towers, layout: dict[str, Any]) -> Towers:
    aid = ClassWeights(layout["classes"], towers.embed_dim, layout["seed"])
    return attach(towers, NAME, aid, layout)


def rebuild(towers: Towers, layout: dict[str, Any]) -> Towers:
    """The same classes on fresh towers, for loading weights."""
    return _with_weights(towers, layout)


def apply(spec: Classifier, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:
    """Towers with random class weights by the spec's seed; the towers' own weights are what they were.

    Raises:
        ModelError: the towers have class weights already.
    """
    del phases
    if NAME in towers.aids:
        raise ModelError("surgery `classifier`: these towers have class weights already; remove the surgery")
    return _with_weights(towers, {"surgery": NAME, **spec.model_dump(include={"classes", "seed", "keep"})}), []
