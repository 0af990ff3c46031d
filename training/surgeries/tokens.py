"""Patches and words in the shared space beside the features, for token-level objectives; nothing is added to the model.

Shapes: B pairs, P patches, L text tokens, D embed_dim.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from training.specs import Tokens
from training.surgeries.aids import Aid, attach
from training.surgeries.base import Check, Phases, largest_difference
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
    """That a surgery which only adds an aid left the features alone."""
    return Check("features are what they were", largest_difference(before, after), _TOLERANCE)
