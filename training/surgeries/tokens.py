"""Patches and words in the shared space beside the features, for token-level objectives; nothing is added to the model.

Shapes: B pairs, P patches, L text tokens, D embed_dim.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from training.specs import Tokens
from training.surgeries.aids import Aid, attach
from training.surgeries.base import Check, Phases
from training.towers import Towers

_TOLERANCE = 1e-5


class SharedTokens(Aid):
    """`image_tokens` (B, P, D) and `text_tokens` (B, L, D) of length 1, `text_mask` (B, L): True for words."""

    reads_tokens: ClassVar[bool] = True

    def outputs(self, model: Any, inputs: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """The towers' own tokens, brought to length 1."""
        tokens = {name: F.normalize(seen[name], dim=-1) for name in ("image_tokens", "text_tokens")}
        return {**tokens, "text_mask": seen["text_mask"]}


def apply(spec: Tokens, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:  # noqa: ARG001
    """Towers that tell their patches and words while they train.

    Checked: their features are what they were.

    Raises:
        ModelError: a tower is not open_clip's own transformer, whose tokens could be told.
    """
    towers.require_tokens("surgery `tokens`")
    changed = attach(towers, "tokens", SharedTokens(), spec.model_dump())
    return changed, [features_stay(towers, changed)]


def features_stay(before: Towers, after: Towers) -> Check:
    """Largest difference of any feature on random input."""
    inputs = random_inputs(before)
    with torch.no_grad():
        one, two = before.eval()(inputs), after.eval()(inputs)
    moved = max(float((one[name] - two[name]).abs().max()) for name in ("image_features", "text_features"))
    return Check("features are what they were", moved, _TOLERANCE)


def random_inputs(towers: Towers, pairs: int = 4) -> dict[str, Tensor]:
    """Noise and random words that end where the context does, the same at every call."""
    random = torch.Generator().manual_seed(0)
    tower, side = towers.text_tower, towers.image_size
    words, length = tower.token_embedding.num_embeddings, len(tower.positional_embedding)
    text_BL = torch.randint(1, words - 2, (pairs, length), generator=random)
    text_BL[:, -1] = words - 1
    return {"image": torch.randn(pairs, 3, side, side, generator=random), "text": text_BL}
