"""Dense -> mixture of experts: FFNs become experts behind a router (CLIP-MoE, arXiv 2409.19291)."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data.errors import ModelError
from training.specs import Upcycle
from training.surgeries.base import Check, Phases, largest_difference
from training.surgeries.experts import ExpertMLP, with_dropout
from training.towers import Towers

_TOLERANCE = 1e-5


def apply(spec: Upcycle, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:
    """Mixture whose expert e has the FFN weights of phase `experts[e]`; everything else comes from `towers`.

    Of towers that are a mixture already, every block goes back to its first expert before.
    Checked: with equal experts the mixture's features equal the dense model's.

    Raises:
        ModelError: top_k above the number of experts, `numbers` that do not fit, or towers without FFN blocks.
    """
    if spec.top_k > len(spec.experts):
        raise ModelError(f"surgery `upcycle`: top_k {spec.top_k} is above the {len(spec.experts)} experts; lower top_k")
    layout = {
        "surgery": "upcycle", "num_experts": len(spec.experts), "top_k": spec.top_k,
        "image_layers": spec.image_layers, "text_layers": spec.text_layers, "dropout": spec.dropout,
    }  # fmt: skip
    dense = _dense(towers)
    mixed = _mixture(dense, layout, spec.router_std)
    check = Check("equal experts equal the dense model", largest_difference(dense, mixed), _TOLERANCE)
    mixed.model.load_state_dict(mixed.model.state_dict() | _expert_weights(spec, mixed, phases))
    return mixed, [check]


def rebuild(towers: Towers, layout: dict[str, Any]) -> Towers:
    """The mixture's layout on fresh towers, for loading weights."""
    return _mixture(towers, layout)


def _expert_weights(spec: Upcycle, mixed: Towers, phases: Phases) -> dict[str, Tensor]:
    """Every expert's weights by their names in the mixture."""
    given = {name: phases[name] for name in dict.fromkeys(spec.experts)}  # once each: they may be read from disk
    numbers = spec.numbers or (None,) * len(spec.experts)
    found = {}
    for name in mixed.model.state_dict():
        head, _, tail = name.partition(".experts.")
        if tail:
            expert, _, weight = tail.partition(".")
            phase = spec.experts[int(expert)]
            found[name] = _weight(given[phase], phase, head, weight, numbers[int(expert)])
    return found


def _weight(weights: Mapping[str, Tensor], phase: str, ffn: str, weight: str, number: int | None) -> Tensor:
    """One FFN weight of a phase, or of its expert `number`.

    Raises:
        ModelError: the phase's FFN is a mixture and no expert is named, or the other way round, or it has fewer.
    """
    of_expert = f"{ffn}.experts.{number}.{weight}"
    is_mixture = f"{ffn}.router.weight" in weights
    if is_mixture and number is not None and of_expert in weights:
        return weights[of_expert]
    if is_mixture:
        count = len(weights[f"{ffn}.router.weight"])
        said = "say with `numbers` which" if number is None else f"it has no expert {number}"
        raise ModelError(f"surgery `upcycle`: {phase!r} is a mixture of {count} experts, 0 to {count - 1}: {said}")
    if number is not None:
        raise ModelError(f"surgery `upcycle`: {phase!r} is no mixture at {ffn}, so it has no expert {number}; use null")
    return weights[f"{ffn}.{weight}"]


def _towers_blocks(towers: Towers) -> tuple[list[Any], list[Any]]:
    """Residual blocks of the image and of the text tower."""
    model: Any = towers.model
    text = getattr(towers.text_tower, "transformer", None)
    image = getattr(model.visual, "transformer", None)
    if not hasattr(image, "resblocks") or not hasattr(text, "resblocks"):
        raise ModelError(
            "surgery `upcycle`: needs open_clip's own transformer towers (resblocks with an mlp); this model has others"
        )
    return list(image.resblocks), list(text.resblocks)  # type: ignore[union-attr]


def _mixture(towers: Towers, layout: dict[str, Any], router_std: float = 0.0) -> Towers:
    """A copy of `towers` with expert FFNs, every expert a copy of the dense FFN."""
    mixed = copy.deepcopy(towers)
    random = torch.Generator().manual_seed(0)  # the same on every rank and after every restart
    counts = (layout["image_layers"], layout["text_layers"])
    for blocks, count in zip(_towers_blocks(mixed), counts, strict=True):
        for block in blocks[-(count or len(blocks)) :]:
            width, dropout = block.mlp.c_fc.in_features, layout.get("dropout", 0.0)
            experts = [with_dropout(block.mlp, dropout) for _ in range(layout["num_experts"])]
            block.mlp = ExpertMLP(experts, width, layout["top_k"], random, router_std)
    mixed.layout = (*towers.layout, layout)
    return mixed


def _dense(towers: Towers) -> Towers:
    """A copy in which every mixture is its first expert."""
    dense = copy.deepcopy(towers)
    for blocks in _towers_blocks(dense):
        for block in blocks:
            if isinstance(block.mlp, ExpertMLP):
                block.mlp = with_dropout(block.mlp.experts[0], 0.0)
    dense.layout = tuple(entry for entry in towers.layout if entry["surgery"] != "upcycle")
    return dense
