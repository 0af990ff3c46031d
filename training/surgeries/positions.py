"""Long-CLIP's stretch of the text positions, which leaves short texts' features alone (arXiv 2403.15378, section 3.1).

Shapes: B texts, L positions before, K of them kept, M positions after, W width.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import ModelError
from training.specs import StretchPositions
from training.surgeries.base import Check, Phases
from training.towers import Towers

_SHORTEST = 2  # a text has a start and an end
_ROUNDING = 1e-5  # of features of length 1, where all columns of a text are looked at


def apply(spec: StretchPositions, towers: Towers, phases: Phases) -> tuple[Towers, list[Check]]:  # noqa: ARG001
    """Towers with `factor` * (L - keep) + keep text positions; open_clip's layout, with a longer context_length.

    Checked: texts of at most `keep` tokens have the features they had, to the bit where towers look at a text's own
    columns only. A `keep` below 2 leaves no text unchanged, so there is nothing to check.

    Raises:
        ModelError: the text tower has no such positions, or fewer than `keep` leaves to stretch.
    """
    _require_stretchable(towers, spec.keep)
    long = _with_positions(towers, stretched(towers.text_tower.positional_embedding, spec.keep, spec.factor))
    if spec.keep < _SHORTEST:
        return long, []
    limit = 0.0 if towers.trims_text else _ROUNDING
    return long, [Check("short texts unchanged", _largest_difference(towers, long, spec.keep), limit)]


def stretched(position_LW: Tensor, keep: int, factor: int) -> Tensor:
    """(M, W): the first K rows, then row n is the old table at K + (n - K) / factor, linear between rows.

    Past the last row the last difference goes on.
    """
    rows = len(position_LW)
    at = keep + torch.arange(factor * (rows - keep), device=position_LW.device) / factor
    low = at.long()
    steps_LW = position_LW.diff(dim=0)[[*range(rows - 1), rows - 2]]
    weight = (at - low).to(position_LW.dtype)
    return torch.cat([position_LW[:keep], position_LW[low] + weight[:, None] * steps_LW[low]]).detach()


def _require_stretchable(towers: Towers, keep: int) -> None:
    reason = _obstacle(towers)
    if reason:
        raise ModelError(
            f"surgery `stretch_positions`: {reason}, so that no text would keep its features; start from a causal text "
            "tower of open_clip that reads at the end-of-text token, such as ViT-B-32's"
        )
    positions = len(towers.text_tower.positional_embedding)
    if keep >= positions:
        raise ModelError(
            f"surgery `stretch_positions`: keep {keep} leaves none of the {positions} text positions to stretch; "
            "lower keep"
        )


def _obstacle(towers: Towers) -> str:
    """Why short texts could not keep their features; empty where they do."""
    tower = towers.text_tower
    if towers.walks_text:
        return ""
    if getattr(tower, "positional_embedding", None) is None:
        return f"text tower {type(tower).__name__} has no table of learned positions"
    if getattr(tower, "attn_mask", None) is None:
        return "its text tower is not causal: every token sees all positions, also those behind the text"
    if getattr(tower, "cls_emb", None) is not None:
        return "its text tower reads at a class token behind the last position"
    return f"text tower {type(tower).__name__} does not read at the end-of-text token"


def _with_positions(towers: Towers, position_MW: Tensor) -> Towers:
    model: Any = copy.deepcopy(towers.model)
    context = len(position_MW)
    long = Towers(model, _with_context(towers.config, context), towers.layout)
    tower = long.text_tower
    tower.positional_embedding = nn.Parameter(position_MW)
    tower.attn_mask = torch.full((context, context), -torch.inf, device=position_MW.device).triu(1)
    tower.context_length = context
    if hasattr(tower, "num_pos"):
        tower.num_pos = context
    return long


def _with_context(config: dict[str, Any], context: int) -> dict[str, Any]:
    model = config["model_cfg"]
    text = {**model["text_cfg"], "context_length": context}
    return {**config, "model_cfg": {**model, "text_cfg": text}}


@torch.no_grad()
def _largest_difference(short: Towers, long: Towers, keep: int) -> float:
    """Largest difference of any text feature between the two, over texts of 2 to `keep` tokens."""
    text_BL = _texts(keep, short.text_tower.token_embedding.num_embeddings)
    features = []
    for towers in (short, long):
        behind = 0 if towers.trims_text else len(towers.text_tower.positional_embedding) - keep
        features.append(towers.eval().encode_text(nn.functional.pad(text_BL, (0, behind))))
    return float((features[0] - features[1]).abs().max())


def _texts(longest: int, vocabulary: int) -> Tensor:
    """One text of every length: random words, the end where it is read, nothing behind."""
    random = torch.Generator().manual_seed(0)
    text_BL = torch.randint(1, vocabulary - 2, (longest - 1, longest), generator=random).tril(1)
    return text_BL.diagonal_scatter(torch.full((longest - 1,), vocabulary - 1), 1)
