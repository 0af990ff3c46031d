"""LaCLIP-MT: every caption of a picture in one step (NeurIPS 2023, arXiv 2305.20088).

Shapes: B rows of this rank, R of them at a time, K text slots, G columns (of all ranks unless `gather` is local), D
embed_dim.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.names import of_slot
from training.objectives.base import Context, Loss, Names
from training.objectives.softmax import softmax_contrast
from training.objectives.tiles import mean_over_rows


class MultiTextInfoNCE:
    """Half of the images' log-likelihood averaged over their captions, plus the mean of the captions' own.

    Equal captions in all slots are InfoNCE where `candidates` is `own`; with `all` every wrong caption counts once a
    slot. The released code has no such loss: the form is unverified.
    """

    def __init__(self, spec: specs.MultiTextInfoNCE) -> None:
        self.spec = spec
        self.texts = [of_slot("text_features", slot) for slot in ("", *spec.texts)]
        self.needs = frozenset({"image_features", "logit_scale", *self.texts})

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean over the slots of both directions, which are logged."""
        image, scale = names["image_features"], names["logit_scale"]
        texts = [names[name] for name in self.texts]
        if self.spec.candidates == "own":
            return by_slot(image, texts, scale, context, self.spec)
        i2t = among_all(image, texts, scale, context, self.spec)
        t2i = torch.stack([to_images(text, image, scale, context, self.spec) for text in texts]).mean()
        return Loss((i2t + t2i) / 2, {"i2t": i2t, "t2i": t2i})


def by_slot(image: Tensor, texts: list[Tensor], scale: Tensor, context: Context, spec: specs.MultiTextInfoNCE) -> Loss:
    """InfoNCE of every slot by itself, averaged."""
    found = [softmax_contrast(image, text, scale, context, spec.gather) for text in texts]
    parts = {way: torch.stack([part[way] for _, part in found]).mean() for way in ("i2t", "t2i")}
    return Loss(torch.stack([value for value, _ in found]).mean(), parts)


def among_all(
    image_BD: Tensor, texts: list[Tensor], scale: Tensor, context: Context, spec: specs.MultiTextInfoNCE
) -> Tensor:
    """Images to each of their captions against all captions of other images; the own others are left out."""
    columns = [context.columns(text_BD, spec.gather) for text_BD in texts]
    own_B = _own(image_BD, context, spec)
    sum_of_rows = partial(_likelihood, len(texts))
    return mean_over_rows(sum_of_rows, [image_BD, own_B], [torch.cat(columns), scale], sum(map(len, columns)))


def _likelihood(slots: int, image_RD: Tensor, own_R: Tensor, text_XD: Tensor, scale: Tensor) -> Tensor:
    """Sum over rows of -log-likelihood, mean over captions; `text_XD` holds K * G texts, slot by slot."""
    logits_RKG = (scale * image_RD @ text_XD.T).view(len(image_RD), slots, -1)
    at_RK1 = own_R[:, None, None].expand(-1, slots, 1)
    right_RK = logits_RKG.gather(2, at_RK1)[..., 0]
    wrong_R = logits_RKG.scatter(2, at_RK1, -torch.inf).flatten(1).logsumexp(dim=1)
    summed: Tensor = (torch.logaddexp(right_RK, wrong_R[:, None]) - right_RK).mean(dim=1).sum()
    return summed


def to_images(
    text_BD: Tensor, image_BD: Tensor, scale: Tensor, context: Context, spec: specs.MultiTextInfoNCE
) -> Tensor:
    """Cross-entropy of captions to their image."""
    columns_GD = context.columns(image_BD, spec.gather)
    rows = [text_BD, _own(image_BD, context, spec)]
    return mean_over_rows(_cross_entropy, rows, [columns_GD, scale], len(columns_GD))


def _cross_entropy(text_RD: Tensor, own_R: Tensor, image_GD: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(scale * text_RD @ image_GD.T, own_R, reduction="sum")


def _own(rows_BD: Tensor, context: Context, spec: specs.MultiTextInfoNCE) -> Tensor:
    offset = context.offset(len(rows_BD), spec.gather)
    return torch.arange(offset, offset + len(rows_BD), device=rows_BD.device)
