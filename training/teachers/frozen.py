"""A frozen checkpoint that sees the student's own batch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from data.artifacts import Artifact
from training.inputs import model_inputs
from training.loading import Batch
from training.specs import FrozenModel
from training.teachers.vocabulary import token_ids
from training.towers import load_towers
from training.weights import weights_digest


class FrozenTowers:
    """All named outputs for the very pixels, captions and regions the student gets. The tokenizers must agree.

    With a vocabulary, `vocabulary_features` (V, D) as well, computed once.
    """

    def __init__(self, spec: FrozenModel, parents: Mapping[str, Artifact]) -> None:
        self.towers = load_towers(parents["checkpoint"].uri).requires_grad_(False).eval()
        self.vocabulary = None if spec.vocabulary is None else token_ids(spec.vocabulary, self.towers)
        self._vocabulary_VD: Tensor | None = None

    @torch.no_grad()
    def targets(self, batch: Batch) -> Mapping[str, Tensor]:
        """One forward pass without gradient."""
        device = batch.image.device
        self.towers.to(device)
        named = self.towers(model_inputs(self.towers, batch, device))
        return named if self.vocabulary is None else {**named, "vocabulary_features": self._of_vocabulary(device)}

    def _of_vocabulary(self, device: torch.device) -> Tensor:
        assert self.vocabulary is not None
        if self._vocabulary_VD is None:
            chunks = torch.split(self.vocabulary, 256)
            parts = [self.towers.encode_text(ids.to(device)) for ids in chunks]
            self._vocabulary_VD = torch.cat(parts)
        return self._vocabulary_VD

    def digest(self) -> str:
        """Hash of the teacher's weights."""
        return weights_digest(self.towers.model.state_dict())
