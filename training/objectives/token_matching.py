"""Contrast of matched patches and words: LightCLIP's token-level alignment (arXiv 2312.00674).

Which relaxation of the assignment the paper takes is unverified; ours drops one of its two constraints.
Shapes: B pairs of this rank, G of all ranks (B where `gather` is local), A pictures and T texts that are compared, R
pictures at a time, P patches, L words, D embed_dim.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training import specs
from training.objectives.base import Context, Loss, Names
from training.objectives.tiles import spans, tile_edge

_OUT_OF_REACH = -2.0  # below every cosine
_TILES = 4  # so many tiles' worth of similarities of patches and words are alive at a time

Matching = Callable[[Tensor, Tensor], Tensor]  # similarities (R, P, T, L) and is_word (T, L) -> (R, T)


class TokenMatching:
    """InfoNCE, both directions, on the mean similarity of matched patches and words, for all pairs of the batch.

    relaxed: each word (or patch, by `takers`) takes its best partner, several may take the same. exact: one to one, as
    many as there are of the fewer; no gradient goes through the choice, and it is B * G assignments on the CPU a
    direction, for small batches. Tokens of all ranks are gathered: G * (P + L) * D numbers.
    """

    def __init__(self, spec: specs.TokenMatching) -> None:
        self.spec = spec
        scale = {"logit_scale"} if spec.scale is None else set()
        self.needs = frozenset({"image_tokens", "text_tokens", "text_mask"} | scale)

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean of the two cross-entropies over this rank's pictures and texts."""
        gather = self.spec.gather
        patches, is_word = names["image_tokens"], names["text_mask"]
        words, is_word = _cut(names["text_tokens"], is_word, context)
        own = torch.arange(len(patches), device=patches.device) + context.offset(len(patches), gather)
        all_words, all_masks = context.columns(words, gather), context.gathered(is_word, gather)
        i2t_BG = self._similarities(patches, all_words, all_masks)
        t2i_BG = i2t_BG.T
        if not context.is_alone(gather):
            t2i_BG = self._similarities(context.columns(patches, gather), words, is_word).T
        scale = names["logit_scale"] if self.spec.scale is None else self.spec.scale
        parts = {"i2t": F.cross_entropy(scale * i2t_BG, own), "t2i": F.cross_entropy(scale * t2i_BG, own)}
        return Loss((parts["i2t"] + parts["t2i"]) / 2, parts)

    def _similarities(self, patches_APD: Tensor, words_TLD: Tensor, is_word_TL: Tensor) -> Tensor:
        match = assigned if self.spec.matching == "exact" else BEST[self.spec.takers]
        return matched_similarities(patches_APD, words_TLD, is_word_TL, match)


def _cut(words_BLD: Tensor, is_word_BL: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Only the columns up to the longest caption's last word, of all ranks: most places of a context are empty."""
    columns = torch.arange(1, is_word_BL.shape[1] + 1, device=is_word_BL.device)
    longest = max(1, int(context.reduced((is_word_BL * columns).amax(), "gather_with_grad", "max")))
    return words_BLD[:, :longest], is_word_BL[:, :longest]


def matched_similarities(patches_APD: Tensor, words_TLD: Tensor, is_word_TL: Tensor, match: Matching) -> Tensor:
    """(A, T) similarities of pictures and texts, made a few pictures at a time and again in the backward pass."""

    def some(patches_RPD: Tensor, words_TLD: Tensor) -> Tensor:
        flat = patches_RPD.flatten(0, 1) @ words_TLD.flatten(0, 1).T
        return match(flat.view(*patches_RPD.shape[:2], *words_TLD.shape[:2]), is_word_TL)

    a_picture = patches_APD.shape[1] * is_word_TL.numel()
    slices = spans(0, len(patches_APD), max(1, _TILES * tile_edge(patches_APD.device) ** 2 // a_picture))
    if len(slices) == 1:
        return some(patches_APD, words_TLD)
    return torch.cat([checkpoint(some, patches_APD[part], words_TLD, use_reentrant=False) for part in slices])


def best_patches(similarity_RPTL: Tensor, is_word_TL: Tensor) -> Tensor:
    """Mean over words of the best patch; 0 for a text without words."""
    best_RTL = similarity_RPTL.max(dim=1).values * is_word_TL
    return best_RTL.sum(dim=2) / is_word_TL.sum(dim=1).clamp(min=1)


def best_words(similarity_RPTL: Tensor, is_word_TL: Tensor) -> Tensor:
    """Mean over patches of the best word; 0 for a text without words."""
    best_RPT = similarity_RPTL.masked_fill(~is_word_TL, _OUT_OF_REACH).max(dim=3).values
    return best_RPT.mean(dim=1) * is_word_TL.any(dim=1)


def best_both(similarity_RPTL: Tensor, is_word_TL: Tensor) -> Tensor:
    """Mean of the two."""
    return (best_patches(similarity_RPTL, is_word_TL) + best_words(similarity_RPTL, is_word_TL)) / 2


BEST: dict[str, Matching] = {"words": best_patches, "patches": best_words, "both": best_both}


def assigned(similarity_RPTL: Tensor, is_word_TL: Tensor) -> Tensor:
    """Mean over the best one-to-one assignment of patches and words; 0 for a text without words."""
    is_match_RPTL = assignments(similarity_RPTL, is_word_TL)
    total_RT = (similarity_RPTL * is_match_RPTL).sum(dim=(1, 3))
    return total_RT / is_match_RPTL.sum(dim=(1, 3)).clamp(min=1)


@torch.no_grad()
def assignments(similarity_RPTL: Tensor, is_word_TL: Tensor) -> Tensor:
    """(R, P, T, L) True where a patch and a word are matched (the Hungarian problem, by SciPy)."""
    from scipy.optimize import linear_sum_assignment

    similarity, is_word = similarity_RPTL.float().cpu().numpy(), is_word_TL.cpu().numpy()
    is_match = np.zeros(similarity.shape, bool)
    columns = [np.flatnonzero(row) for row in is_word]
    for picture in range(len(similarity)):
        for text, words in enumerate(columns):
            patch, word = linear_sum_assignment(similarity[picture, :, text, words].T, maximize=True)
            is_match[picture, patch, text, words[word]] = True
    return torch.from_numpy(is_match).to(similarity_RPTL.device)
