"""How much of a cross-modal teacher's matching is the caption's own: its regions are taken from another picture.

DCLIP's fused vector holds the words of the caption that it is matched with. Shapes: B pairs, D embed_dim.
"""

from typing import TYPE_CHECKING

from pipelines.methods.method import Found, stage_of

if TYPE_CHECKING:
    from torch import Tensor

    from training.loading import Batch
    from training.towers import Towers

PAIRS = 128
TEACHERS = {"dclip": "teacher", "image_only": "image_teacher"}  # arm -> its teacher's stages


def matched(found: Found) -> float:
    """Share of held-out pairs whose caption is the nearest to the vector fused of it and its own picture."""
    return _share(found, pictures_away=0)


def leaked(found: Found) -> float:
    """The same with the regions of the next picture: what is above chance, 1 / PAIRS, is the caption's own."""
    return _share(found, pictures_away=1)


def _share(found: Found, pictures_away: int) -> float:
    from training.towers import load_towers

    towers = load_towers(found.artifact(stage_of(TEACHERS[found.arm], found.seed)).uri)
    batch = _held_out(found, towers)
    fused_BD, text_BD = _features(towers, batch, pictures_away)
    return hit_share(fused_BD @ text_BD.T, batch.more["text_id"])


def _held_out(found: Found, towers: "Towers") -> "Batch":
    """The first batch of the judged pairs, as training would make it."""
    from contextlib import closing

    from data.selection import read_split, uids_of
    from data.shards import ShardSet
    from training.loading import DataView, PairStore, batches
    from training.order import UniformOrder
    from training.specs import BoxField, View

    uids = uids_of(read_split(found.artifact("split")), ("test",))
    store = PairStore(ShardSet(found.artifact("pairs")), uids)
    view = View(regions=BoxField(), augment=None, decode="exact")
    data = DataView(store, towers, view, UniformOrder(len(store), seed=0), seed=0, global_batch_size=PAIRS)
    with closing(batches(data, range(1), workers=0, stall_seconds=600)) as made:
        return next(made)


def _features(towers: "Towers", batch: "Batch", pictures_away: int) -> tuple["Tensor", "Tensor"]:
    """(B, D) fused of each caption and a picture so many further on, and (B, D) of the captions."""
    import torch

    from training.inputs import model_inputs

    inputs = model_inputs(towers, batch, towers.device)
    moved = {name: inputs[name].roll(-pictures_away, dims=0) for name in ("image", "boxes", "box_valid")}
    with torch.inference_mode():
        outputs = towers.eval()({**inputs, **moved})
    return outputs["fused_features"], outputs["text_features"]


def hit_share(similarity_BB: "Tensor", text_id_B: "Tensor") -> float:
    """Share of rows whose own caption, equal ones included, is above every other; a tie is no hit."""
    is_own_BB = text_id_B[:, None] == text_id_B[None, :]
    best_own_B = similarity_BB.masked_fill(~is_own_BB, -2).amax(dim=1)
    best_other_B = similarity_BB.masked_fill(is_own_BB, -2).amax(dim=1)
    return float((best_own_B > best_other_B).float().mean())
