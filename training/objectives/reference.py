"""RaFA: random feature alignment of CLIP-Refine (arXiv 2504.12717)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training import specs
from training.objectives.base import Context, Loss, Names


class RandomReference:
    """1/(2B) sum_i |image_i - r_i|^2 + |text_i - r_i|^2 with one reference r_i ~ N(0, I_D) per pair.

    The reference is shared by both features. Equal to mean |image - text|^2 / 4 + |(image + text) / 2 - r|^2.
    References are drawn for the global batch, so the result does not depend on the number of ranks. Whether the paper
    normalises them and the features is unverified: both are options.
    """

    def __init__(self, spec: specs.RandomReference) -> None:
        self.spec = spec
        prefix = "raw_" if spec.features == "raw" else ""
        self.names = [f"{prefix}{modality}_features" for modality in ("image", "text")]
        self.needs = frozenset(self.names)

    def __call__(self, names: Names, context: Context) -> Loss:
        """The alignment and the pull to the prior, logged apart."""
        image, text = (names[name] for name in self.names)
        reference = self._reference(len(image), image.shape[1], context).to(image)
        reference = F.normalize(reference, dim=1) if self.spec.normalised else reference
        value = ((image - reference).square().sum(1) + (text - reference).square().sum(1)).mean() / 2
        return Loss(value, {"alignment": (image - text).square().sum(1).mean() / 4})

    def _reference(self, rows: int, width: int, context: Context) -> Tensor:
        """(rows, width) of this rank, or (1, width) where all pairs share one."""
        if self.spec.reference == "fixed":
            return torch.randn(1, width, generator=torch.Generator().manual_seed(0))
        drawn = torch.randn(rows * context.world_size, width, generator=context.generator)
        return drawn[context.rank * rows : (context.rank + 1) * rows]


class Alignment:
    """Mean squared distance between the two features of a pair, halved: RaFA's limit without a prior would have 1/4."""

    needs = frozenset({"image_features", "text_features"})

    def __init__(self, spec: specs.Alignment) -> None:
        del spec

    def __call__(self, names: Names, context: Context) -> Loss:  # noqa: ARG002
        """|image - text|^2 / 2, mean over pairs: 1 - cosine for features of length 1."""
        difference = names["image_features"] - names["text_features"]
        return Loss(difference.square().sum(1).mean() / 2, {})
