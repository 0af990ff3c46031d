"""Masked words told in the words' own embedding; the surgery `masked_language` gives states and targets.

Shapes: B pairs, L text tokens, M masked words of this rank, W width of the text tower, V words.
"""

import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.tiles import mean_over_rows


class MaskedWords:
    """Cross-entropy of the words that stood at masked places, mean over those of all ranks.

    Ranks mask unequally many words, so each gives its sum, and their mean is the mean over words. Logits live for a
    slice of words at a time and nowhere else than at masked places.
    """

    needs = frozenset({"masked_states", "masked_targets", "word_embedding"})

    def __init__(self, spec: specs.MaskedWords) -> None:
        del spec

    def __call__(self, names: Names, context: Context) -> Loss:
        """0 where no rank has a masked word."""
        target_BL, states_BLW = names["masked_targets"], names["masked_states"]
        is_masked_BL = target_BL >= 0
        rows = [states_BLW[is_masked_BL], target_BL[is_masked_BL]]
        words = context.reduced(is_masked_BL.sum(), "gather_with_grad", "sum")
        if len(rows[0]) == 0:
            return Loss(states_BLW.sum() * 0, {"words": words})  # a graph all the same: other ranks wait for gradients
        embedding_VW = names["word_embedding"]
        mean = mean_over_rows(told, rows, [embedding_VW], len(embedding_VW))
        return Loss(mean * (len(rows[0]) * context.world_size / words), {"words": words})


def told(states_MW: Tensor, target_M: Tensor, embedding_VW: Tensor) -> Tensor:
    """Cross-entropy summed over words."""
    return F.cross_entropy(states_MW @ embedding_VW.T, target_M, reduction="sum")
