"""A frozen checkpoint that sees the student's own batch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from data.artifacts import Artifact
from training.loading import Batch
from training.towers import load_towers
from training.weights import weights_digest


class FrozenTowers:
    """Teacher features of the very pixels and captions the student gets. The tokenizers must agree."""

    def __init__(self, checkpoint: Artifact) -> None:
        self.towers = load_towers(checkpoint.uri).requires_grad_(False).eval()

    @torch.no_grad()
    def targets(self, batch: Batch) -> Mapping[str, Tensor]:
        """One forward pass without gradient."""
        self.towers.to(batch.image.device)
        text = self.towers.trimmed(batch.text).to(batch.image.device)
        features = self.towers(self.towers.normalise(batch.image), text)
        return {name: features[name] for name in ("image_features", "text_features", "logit_scale")}

    def digest(self) -> str:
        """Hash of the teacher's weights."""
        return weights_digest(self.towers.model.state_dict())
