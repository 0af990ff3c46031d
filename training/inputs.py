"""What a batch becomes for a model, by name: `image`, `text`, `text.<slot>`, `boxes`, `box_valid`, `position`."""

import torch
from torch import Tensor

from training.loading import Batch
from training.towers import Towers


def model_inputs(towers: Towers, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The batch on a device: pictures in the towers' input range, each text slot cut to what can matter."""
    texts = {name: towers.trimmed(ids_BL).to(device, non_blocking=True) for name, ids_BL in batch.texts.items()}
    return {"image": towers.normalise(batch.image), **texts, **batch.more}
