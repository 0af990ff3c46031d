"""Load balancing of a mixture of experts (CLIP-MoE, arXiv 2409.19291).

Shapes: B pairs, Y layers, L tokens, E experts, k chosen experts a token.
"""

import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.objectives.base import Context, Loss, Names


def load_balancing_loss(probabilities: Tensor, top_k: int) -> Tensor:
    """E * sum over k and e of (share of tokens whose k-th choice is e) * (mean probability of e); (B, Y, L, E) -> ().

    k for a uniform router, E for one that sends everything to the same expert with certainty.
    """
    flat = probabilities.flatten(0, -2)
    experts = flat.shape[1]
    chosen = F.one_hot(flat.topk(top_k, dim=1).indices, experts).to(flat.dtype)
    return experts * (chosen.mean(dim=0) * flat.mean(dim=0)).sum()


class RouterBalance:
    """Balance of the image tower's routers plus half of the text tower's, each over all its layers."""

    needs = frozenset({"image_router_probabilities", "text_router_probabilities", "image_router_top_k"})

    def __init__(self, spec: specs.RouterBalance) -> None:
        pass

    def __call__(self, names: Names, context: Context) -> Loss:  # noqa: ARG002
        """Weighted sum; the parts are the two towers' values."""
        top_k = int(names["image_router_top_k"].flatten()[0])
        image = load_balancing_loss(names["image_router_probabilities"], top_k)
        text = load_balancing_loss(names["text_router_probabilities"], top_k)
        return Loss(image + text / 2, {"image": image, "text": text})
