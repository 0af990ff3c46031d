"""A mixture of expert FFNs in place of one: each token goes to k of E experts, and only those are computed.

Tokens are put in the order of their experts once, so that every expert has its own in one piece; what comes back is
put in the tokens' order and mixed. Each is a gather, forward and backward: no sum whose order changes from run to run.
Shapes: N tokens of a forward pass, W width, E experts, K experts a token, A = N * K assignments of tokens to experts.
"""

from collections import OrderedDict
from copy import deepcopy
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExpertMLP(nn.Module):
    """K of E expert FFNs a token, weighted by the router's softmax over all E, renormalised over the K.

    CLIP-MoE (arXiv 2409.19291). Exposes `router_probabilities` (..., E) and `router_top_k`, for the balance loss.
    """

    def __init__(
        self, experts: list[nn.Module], width: int, top_k: int, random: torch.Generator, router_std: float = 0.02
    ) -> None:
        """The router's weights are drawn from `random` with this standard deviation; 0: equal shares for all."""
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = nn.Linear(width, len(experts), bias=False)
        nn.init.normal_(self.router.weight, std=router_std, generator=random)
        self.top_k = top_k
        self.exposed: dict[str, Tensor] = {}

    @property
    def c_fc(self) -> nn.Module:
        """The first expert's first layer: open_clip's text tower asks the FFN for its dtype."""
        first: Any = self.experts[0]
        return first.c_fc  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        probabilities = self._probabilities(x)
        kept, chosen = probabilities.topk(self.top_k, dim=-1)
        kept = kept / kept.sum(dim=-1, keepdim=True)
        self.exposed["router_probabilities"] = probabilities
        self.exposed["router_top_k"] = torch.full((len(x),), self.top_k, device=x.device)
        mixed_NW: Tensor = self._mixed(_as_computed(x).flatten(0, -2), kept.flatten(0, -2), chosen.flatten(0, -2))
        return mixed_NW.to(x.dtype).view_as(x)

    def _probabilities(self, x: Tensor) -> Tensor:
        """(..., E) in float32 whatever the rest is computed in: who is chosen hangs on small differences."""
        with torch.autocast(x.device.type, enabled=False):
            scores: Tensor = F.linear(x.float(), self.router.weight.float())
            return scores.softmax(dim=-1)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # the experts' shares change with every batch
    def _mixed(self, x_NW: Tensor, kept_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Weighted sum (N, W) of the chosen experts' outputs. The experts' counts are the only wait for the device.

        An expert without a token computes nothing, and has a gradient of zeros: all ranks agree on who has gradients.
        """
        expert_A, order_A = chosen_NK.flatten().sort(stable=True)
        place_NK = order_A.argsort().view_as(chosen_NK)
        numbers = torch.arange(len(self.experts) - 1, device=expert_A.device)
        ends = torch.searchsorted(expert_A, numbers, right=True).tolist()
        rows_AW = _Rows.apply(x_NW, order_A // self.top_k, place_NK)
        parts = zip(self.experts, torch.tensor_split(rows_AW, ends), strict=True)
        done_AW = torch.cat([expert(rows) for expert, rows in parts])
        back_AW = _Rows.apply(done_AW, place_NK.flatten(), order_A[:, None])
        mixed_NW: Tensor = (back_AW.unflatten(0, place_NK.shape) * kept_NK[..., None]).sum(dim=1)
        return mixed_NW


class _Rows(torch.autograd.Function):
    """Rows by index, where `places_RP` says to which P rows each of the R rows went: its gradient is a gather too."""

    @staticmethod
    def forward(ctx: Any, rows_RW: Tensor, index: Tensor, places_RP: Tensor) -> Tensor:
        ctx.save_for_backward(places_RP)
        return rows_RW[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places_RP,) = ctx.saved_tensors
        return reduce(torch.add, (gradient[place_R] for place_R in places_RP.unbind(1))), None, None


def _as_computed(x: Tensor) -> Tensor:
    """In autocast's type where there is one: the experts would cast anyway, and half the bytes are moved."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def with_dropout(ffn: nn.Module, dropout: float) -> nn.Module:
    """A copy of open_clip's FFN with so much dropout before its last layer, where the released code has it."""
    layers = OrderedDict((name, deepcopy(layer)) for name, layer in ffn.named_children() if name != "dropout")
    if dropout:
        last = layers.pop("c_proj")
        layers |= OrderedDict(dropout=nn.Dropout(dropout), c_proj=last)
    return nn.Sequential(layers)
