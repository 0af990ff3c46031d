"""Load balancing of a mixture of experts (CLIP-MoE, arXiv 2409.19291).

Shapes: B pairs of this rank, Y layers, L tokens, E experts, K chosen experts a token.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.names import of_slot
from training.objectives.base import Context, Loss, Names


def load_balancing_loss(
    probabilities: Tensor, top_k: int, over_ranks: Callable[[Tensor], Tensor] = lambda shares: shares
) -> Tensor:
    """E * sum over k and e of (share of tokens whose k-th choice is e) * (mean probability of e); (B, Y, L, E) -> ().

    K for a uniform router, E for one that sends everything to the same experts with certainty. Who is chosen has no
    gradient: with shares of all ranks (`over_ranks`), the ranks' losses average to that of all tokens, gradients too.
    """
    flat = probabilities.flatten(0, -2)
    experts = flat.shape[1]
    chosen = F.one_hot(flat.topk(top_k, dim=1).indices, experts).to(flat.dtype)
    return experts * (over_ranks(chosen.mean(dim=0)) * flat.mean(dim=0)).sum()


class RouterBalance:
    """Balance of the image tower's routers plus half of the text tower's, each over all its layers."""

    def __init__(self, spec: specs.RouterBalance) -> None:
        self.spec = spec
        self.texts = [of_slot("text_router_probabilities", slot) for slot in ("", *spec.texts)]
        self.needs = frozenset({"image_router_probabilities", "image_router_top_k", *self.texts})

    def __call__(self, names: Names, context: Context) -> Loss:
        """Weighted sum; the parts are the towers' values."""
        top_k = int(names["image_router_top_k"].flatten()[0])

        def over_ranks(shares: Tensor) -> Tensor:
            alone = self.spec.scope == "rank" or context.world_size == 1
            return shares if alone else context.reduced(shares, "gather_without_grad", "sum") / context.world_size

        def balance(name: str) -> Tensor:
            return load_balancing_loss(names[name], top_k, over_ranks)

        parts = {name.replace("_router_probabilities", ""): balance(name) for name in self.texts}
        image = balance("image_router_probabilities")
        value = image + sum(parts.values()) / 2
        return Loss(value / context.world_size if self.spec.per_rank else value, {"image": image, **parts})
