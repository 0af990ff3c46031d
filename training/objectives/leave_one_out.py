"""InfoLOOB over Hopfield-retrieved features: CLOOB (NeurIPS 2022, arXiv 2110.11316).

Shapes: B rows of this rank, R of them at a time, G columns (of all ranks unless `gather` is local), D embed_dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from data.errors import ModelError
from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.tiles import mean_over_rows, spans, tile_edge


class InfoLOOB:
    """L(U_x, U_y) + L(V_y, V_x), with U retrieved from the pictures' memory and V from the texts' (section 3).

    A row's cosine to its own column has gradient -1/B whatever the others are, which a softmax's would lose as the
    pair is learnt. Under `gather_without_grad` every rank computes the whole loss of features of which only its own
    carry gradient, as the released code does: averaged over ranks, features then get 1 / world_size of the gradient.
    """

    def __init__(self, spec: specs.InfoLOOB) -> None:
        self.spec = spec
        self.needs = frozenset({"image_features", "text_features"} | ({"logit_scale"} if spec.scale is None else set()))

    def __call__(self, names: Names, context: Context) -> Loss:
        """The sum of the two memories' losses; both are logged.

        Raises:
            ModelError: a row has no column but its own.
        """
        gather = self.spec.gather
        own = [names["image_features"], names["text_features"]]
        memories = [context.columns(rows_BD, gather) for rows_BD in own]
        is_whole = gather == "gather_without_grad"
        rows, offset = (memories, 0) if is_whole else (own, context.offset(len(own[0]), gather))
        if len(memories[0]) < 2:
            raise ModelError("info_loob: contrasts single pairs; raise global_batch_size, or take gather_with_grad")
        scale = names["logit_scale"] if self.spec.scale is None else own[0].new_tensor(self.spec.scale)
        parts = {}
        for side, name in enumerate(("image_memory", "text_memory")):
            anchors, others = (self.retrieved(rows[from_], memories[side]) for from_ in (side, 1 - side))
            candidates = others if is_whole else context.columns(others, gather)
            parts[name] = self.contrast(anchors, candidates, offset, scale)
        return Loss(parts["image_memory"] + parts["text_memory"], parts)

    def retrieved(self, rows_BD: Tensor, memory_GD: Tensor) -> Tensor:
        """What the rows recall of a memory, or the rows themselves where there is no Hopfield layer."""
        beta = self.spec.hopfield_beta
        return rows_BD if beta is None else retrieve(rows_BD, memory_GD, beta)

    def contrast(self, anchors_BD: Tensor, candidates_GD: Tensor, offset: int, scale: Tensor) -> Tensor:
        """Mean over rows of (log-sum-exp over the columns - own) / scale; an anchor's own column is `offset` on."""
        own_B = torch.arange(offset, offset + len(anchors_BD), device=anchors_BD.device)
        summed = _without_own if self.spec.leave_one_out else _with_own
        mean = mean_over_rows(summed, [anchors_BD, own_B], [candidates_GD, scale], len(candidates_GD))
        return mean / scale


def retrieve(rows_BD: Tensor, memory_GD: Tensor, beta: float) -> Tensor:
    """(B, D) of length 1: one step of a modern Hopfield network, softmax(beta rows @ memory.T) @ memory (equation 2).

    beta 0 is the memory's mean, beta -> inf the pattern that is nearest.
    """
    edge = tile_edge(rows_BD.device)
    slices = spans(0, len(rows_BD), max(1, edge * edge // len(memory_GD)))
    if len(slices) == 1:
        return _recall(rows_BD, memory_GD, beta)
    # the backward pass makes each slice's (R, G) again, so that no matrix of all pairs lives between the passes
    parts: Sequence[Tensor] = [
        checkpoint(_recall, rows_BD[span], memory_GD, beta, use_reentrant=False) for span in slices
    ]
    return torch.cat(list(parts))


def _recall(rows_RD: Tensor, memory_GD: Tensor, beta: float) -> Tensor:
    return F.normalize((beta * rows_RD @ memory_GD.T).softmax(dim=1) @ memory_GD, dim=1)


def _without_own(anchors_RD: Tensor, own_R: Tensor, candidates_GD: Tensor, scale: Tensor) -> Tensor:
    """Sum over rows, the own column out of the denominator."""
    logits_RG = scale * anchors_RD @ candidates_GD.T
    own_R1 = own_R[:, None]
    others_RG = logits_RG.scatter(1, own_R1, -torch.inf)
    return (others_RG.logsumexp(dim=1) - logits_RG.gather(1, own_R1)[:, 0]).sum()


def _with_own(anchors_RD: Tensor, own_R: Tensor, candidates_GD: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(scale * anchors_RD @ candidates_GD.T, own_R, reduction="sum")
