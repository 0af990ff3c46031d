"""Replayed vocabulary: what the old model says of a picture in many texts is kept (VR-LwF, arXiv 2207.09248).

Shapes: B pairs of this rank, V texts of the vocabulary, D embed_dim.
"""

import torch
from torch import Tensor

from data.errors import ModelError
from training import specs
from training.objectives.base import Context, Loss, Names


class ReplayedVocabulary:
    """T^2 * cross-entropy between the old and the new model's distribution over the replayed texts, mean over pictures.

    Both models' pictures are scored against the *old* model's texts with the student's present logit_scale, as in the
    implementation of ZSCL. Direction `old_to_new` weighs by the old distribution, which is a constant: new = old has
    gradient 0 there, and the value is T^2 * the old entropy. `new_to_old` weighs by the new one, so that it also
    lowers the new entropy and pulls where nothing was forgotten. A vocabulary of one text, however often, says nothing.

    `texts_too` adds each text's distribution over the pictures, mean over texts; those pictures are the rank's own
    with gather `local`, whose result then depends on the number of ranks, else all ranks'.
    """

    def __init__(self, spec: specs.ReplayedVocabulary) -> None:
        self.spec = spec
        self.old = {"image": f"{spec.teacher}.image_features", "texts": f"{spec.teacher}.vocabulary_features"}
        self.needs = frozenset({"image_features", "logit_scale", *self.old.values()})

    def __call__(self, names: Names, context: Context) -> Loss:
        """The cross-entropies' sum; parts: each of them, and what of it is divergence from the old model.

        Raises:
            ModelError: the models differ in width.
        """
        _require_one_width(names["image_features"], names[self.old["image"]])
        scale_VD = names["logit_scale"] / self.spec.temperature * names[self.old["texts"]]
        new_BV = names["image_features"] @ scale_VD.T
        with torch.no_grad():
            old_BV = names[self.old["image"]] @ scale_VD.T
        images = self._entropies(old_BV.log_softmax(dim=1), new_BV.log_softmax(dim=1)) / len(new_BV)
        value, parts = images[0], {"images": images[0], "divergence": images[1]}
        if self.spec.texts_too:
            over_pictures = [self._over_pictures(scores_BV, context) for scores_BV in (old_BV, new_BV)]
            ranks = 1 if context.is_alone(self.spec.gather) else context.world_size  # the ranks' mean is the whole sum
            texts = self._entropies(*over_pictures) * ranks / new_BV.shape[1]
            value, parts = value + texts[0], {**parts, "texts": texts[0]}
        return Loss(value, parts)

    def _entropies(self, old: Tensor, new: Tensor) -> Tensor:
        """(2,) T^2 times the summed cross-entropy of log probabilities, and times the divergence in it."""
        weights, told = (old, new) if self.spec.direction == "old_to_new" else (new, old)
        probability = weights.exp()
        entropy, divergence = -(probability * told).sum(), (probability * (weights - told)).sum()
        return torch.stack([entropy, divergence]) * self.spec.temperature**2

    def _over_pictures(self, scores_BV: Tensor, context: Context) -> Tensor:
        """(B, V) log of each text's share for every picture of this rank, of all pictures that gather reaches."""
        gather = self.spec.gather
        highest_V = context.reduced(scores_BV.amax(dim=0), gather, "max")
        total_V = context.summed((scores_BV - highest_V).exp().sum(dim=0), gather)
        return scores_BV - highest_V - total_V.log()


def _require_one_width(new_BD: Tensor, old_BD: Tensor) -> None:
    if new_BD.shape[1] != old_BD.shape[1]:
        raise ModelError(
            f"objective replayed_vocabulary: the model has {new_BD.shape[1]} values a picture, its teacher "
            f"{old_BD.shape[1]}; take the checkpoint that training starts from as teacher"
        )
