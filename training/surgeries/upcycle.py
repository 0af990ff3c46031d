"""Dense -> mixture of experts: FFNs become experts behind a router (CLIP-MoE, arXiv 2409.19291).

Shapes: N tokens of a forward pass, W width, E experts, k experts a token.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import ModelError
from training.specs import Upcycle
from training.surgeries.base import Check, Phases
from training.towers import Towers

_TOLERANCE = 1e-5


class ExpertMLP(nn.Module):
    """k of E expert FFNs a token, weighted by the renormalised router softmax; only the chosen experts are computed."""

    def __init__(self, experts: list[nn.Module], width: int, top_k: int, random: torch.Generator) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = nn.Linear(width, len(experts), bias=False)
        nn.init.normal_(self.router.weight, std=0.02, generator=random)
        self.top_k = top_k
        self.exposed: dict[str, Tensor] = {}

    @property
    def c_fc(self) -> nn.Module:
        """The first expert's first layer: open_clip's text tower asks the FFN for its dtype."""
        first: Any = self.experts[0]
        return first.c_fc  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W). Tokens are grouped by expert; the router runs in float32."""
        probabilities = self.router(x.float()).softmax(dim=-1)
        kept, chosen = probabilities.topk(self.top_k, dim=-1)
        kept = (kept / kept.sum(dim=-1, keepdim=True)).to(x.dtype)
        self.exposed["router_probabilities"] = probabilities
        self.exposed["router_top_k"] = torch.full((len(x),), self.top_k, device=x.device)
        tokens_NW, kept_NK, chosen_NK = x.flatten(0, -2), kept.flatten(0, -2), chosen.flatten(0, -2)
        result = torch.zeros_like(tokens_NW)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen_NK == number)
            result = result.index_add(0, token, expert(tokens_NW[token]) * kept_NK[token, slot, None])
        return result.view_as(x)


def _blocks(towers: Towers, spec_image: int | None, spec_text: int | None) -> list[nn.Module]:
    """The last so many residual blocks of each tower."""
    model: Any = towers.model
    text = (
        model.transformer
        if hasattr(model, "transformer")
        else getattr(getattr(model, "text", None), "transformer", None)
    )
    image = getattr(model.visual, "transformer", None)
    if not hasattr(image, "resblocks") or not hasattr(text, "resblocks"):
        raise ModelError(
            "surgery `upcycle`: needs open_clip's own transformer towers (resblocks with an mlp); this model has others"
        )
    chosen = []
    for blocks, count in ((list(image.resblocks), spec_image), (list(text.resblocks), spec_text)):  # type: ignore[union-attr]
        chosen += blocks[-(count or len(blocks)) :]
    return chosen


def _mixture(towers: Towers, layout: dict[str, Any]) -> Towers:
    """A copy of `towers` with expert FFNs, every expert a copy of the dense FFN."""
    mixed = copy.deepcopy(towers)
    random = torch.Generator().manual_seed(0)  # the same on every rank and after every restart
    for block in _blocks(mixed, layout["image_layers"], layout["text_layers"]):
        dense: Any = block.mlp
        experts = [copy.deepcopy(dense) for _ in range(layout["num_experts"])]
        block.mlp = ExpertMLP(experts, dense.c_fc.in_features, layout["top_k"], random)
    mixed.layout = (*towers.layout, layout)
    return mixed


def rebuild_upcycled(towers: Towers, layout: dict[str, Any]) -> Towers:
    """The mixture's layout on fresh towers, for loading weights."""
    return _mixture(towers, layout)


def upcycle(spec: Upcycle, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:
    """Mixture whose expert e has the FFN weights of phase `experts[e]`; everything else comes from `towers`.

    Checked: with equal experts the mixture's features equal the dense model's.

    Raises:
        ModelError: top_k above the number of experts, or towers without FFN blocks.
    """
    if spec.top_k > len(spec.experts):
        raise ModelError(f"surgery `upcycle`: top_k {spec.top_k} is above the {len(spec.experts)} experts; lower top_k")
    layout = {
        "surgery": "upcycle", "num_experts": len(spec.experts), "top_k": spec.top_k,
        "image_layers": spec.image_layers, "text_layers": spec.text_layers,
    }  # fmt: skip
    mixed = _mixture(towers, layout)
    check = Check("equal experts equal the dense model", _largest_difference(towers, mixed), _TOLERANCE)
    state = mixed.model.state_dict()
    for name in state:
        if ".experts." in name:
            head, _, tail = name.partition(".experts.")
            number, _, weight = tail.partition(".")
            state[name] = phases[spec.experts[int(number)]][f"{head}.{weight}"]
    mixed.model.load_state_dict(state)
    return mixed, [check]


@torch.no_grad()
def _largest_difference(dense: Towers, mixed: Towers) -> float:
    """Largest difference of any feature on random input."""
    random = torch.Generator().manual_seed(0)
    side, length = dense.image_size, int(dense.config["model_cfg"]["text_cfg"].get("context_length", 77))
    image = torch.randn(4, 3, side, side, generator=random)
    text = torch.randint(1, 1000, (4, length), generator=random)
    first, second = dense.eval()(image, text), mixed.eval()(image, text)
    return max(float((first[k] - second[k]).abs().max()) for k in ("image_features", "text_features"))
