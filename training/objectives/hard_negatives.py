"""Wrong captions that were written for a picture, among the texts it is contrasted with (NegCLIP, arXiv 2210.01936)."""

import torch
import torch.nn.functional as F

from training import specs
from training.names import of_slot
from training.objectives.base import Context, Loss, Names


class HardNegatives:
    """InfoNCE whose image->text rows also hold every picture's wrong captions; text->image is InfoNCE's own."""

    def __init__(self, spec: specs.HardNegatives) -> None:
        self.gather = spec.gather
        self.texts = [of_slot("text_features", slot) for slot in ("", *spec.texts)]
        self.needs = frozenset({"image_features", "logit_scale", *self.texts})

    def __call__(self, names: Names, context: Context) -> Loss:
        """Mean of the two directions' cross-entropies to the own pair."""
        image, text, scale = names["image_features"], names["text_features"], names["logit_scale"]
        own = torch.arange(len(image), device=image.device) + context.offset(len(image), self.gather)
        texts = torch.cat([context.columns(names[name], self.gather) for name in self.texts])
        i2t = F.cross_entropy(scale * image @ texts.T, own)
        t2i = F.cross_entropy(scale * text @ context.columns(image, self.gather).T, own)
        return Loss((i2t + t2i) / 2, {"i2t": i2t, "t2i": t2i})
