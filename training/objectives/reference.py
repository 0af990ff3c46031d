"""RaFA: random feature alignment of CLIP-Refine (arXiv 2504.12717)."""

import torch
import torch.nn.functional as F

from training import specs
from training.objectives.base import Context, Loss, Names


class RandomReference:
    """1/(2B) sum_i |image_i - r_i|^2 + |text_i - r_i|^2 with one reference r_i ~ N(0, I_D) per pair.

    The reference is shared by both features. Equal to mean |image - text|^2 / 4 + |(image + text) / 2 - r|^2.
    References are drawn for the global batch, so the result does not depend on the number of ranks. Whether the paper
    normalises them is unverified: `normalised` is an option.
    """

    needs = frozenset({"image_features", "text_features"})

    def __init__(self, spec: specs.RandomReference) -> None:
        self.normalised = spec.normalised

    def __call__(self, names: Names, context: Context) -> Loss:
        """The alignment and the pull to the prior, logged apart."""
        image, text = names["image_features"], names["text_features"]
        rows, width = image.shape
        drawn = torch.randn(rows * context.world_size, width, generator=context.generator)
        reference = drawn[context.rank * rows : (context.rank + 1) * rows].to(image)
        reference = F.normalize(reference, dim=1) if self.normalised else reference
        value = ((image - reference).square().sum(1) + (text - reference).square().sum(1)).mean() / 2
        return Loss(value, {"alignment": (image - text).square().sum(1).mean() / 4})
