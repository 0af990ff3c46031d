"""What surgeries share."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from training.towers import Towers

Phases = Mapping[str, Mapping[str, Tensor]]  # phase name -> weights of its result; `init` is the stage's start


class Check(NamedTuple):
    """A declared invariant, what was measured and the limit it must keep."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """True when the invariant holds; NaN does not."""
        return self.value <= self.limit


def random_inputs(towers: Towers, pairs: int = 4) -> dict[str, Tensor]:
    """Noise and random words that end where the context does, the same at every call."""
    random = torch.Generator().manual_seed(0)
    tower, side = towers.text_tower, towers.image_size
    words, length = tower.token_embedding.num_embeddings, len(tower.positional_embedding)
    text_BL = torch.randint(1, words - 2, (pairs, length), generator=random)
    text_BL[:, -1] = words - 1
    return {"image": torch.randn(pairs, 3, side, side, generator=random), "text": text_BL}


@torch.no_grad()
def largest_difference(before: Towers, after: Towers) -> float:
    """Largest difference of any feature on random input, both in evaluation mode."""
    inputs = random_inputs(before)
    one, two = before.eval()(inputs), after.eval()(inputs)
    return max(float((one[name] - two[name]).abs().max()) for name in ("image_features", "text_features"))
