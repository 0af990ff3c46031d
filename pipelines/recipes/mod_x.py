"""Mod-X: learn from new pairs while their similarities stay what the old model had right (arXiv 2305.07437).

No old data is needed. Rows of the old model's similarity matrix that rank their own pair first are kept; the others are
left to the new pairs. For another session run it again with the last result as `init`; the teacher is always the
checkpoint that training starts from.
The paper, by its code: COCO, then Flickr30k in five sessions; RN50 or ViT-B/32, weight 20, a sum over rows of cosines,
AdamW with lr 5e-4, 35 epochs a session, a fifth of them warm-up, weight decay 0.1, batch 280.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run mod_x
Any checkpoint and pairs: clipworks run mod_x --set init=ViT-B-32:openai --set pairs=FOLDER
"""

from typing import Literal

from pipelines.recipe import Recipe
from pipelines.recipes._method import method_recipe
from pipelines.recipes.vr_lwf import PAIRS, update
from training.specs import FrozenModel, SimilarityRows, Term, TrainSpec

WEIGHT = 20.0


def kept(
    init: str, selection: str = "select", seed: int = 0, pairs: int = PAIRS,
    rows: Literal["all", "correct"] = "correct",
) -> TrainSpec:  # fmt: skip
    """A session that keeps similarity rows: those the old model has right, or all of them."""
    loss = SimilarityRows(teacher="old", rows=rows, use_scale=False, reduction="sum")
    terms = {"rows": Term(weight=WEIGHT, loss=loss)}
    return update(terms, {"old": FrozenModel(checkpoint=init)}, init, selection, seed, pairs)


def recipe() -> Recipe:
    """An update of any checkpoint on any pairs."""
    return method_recipe(
        name="mod_x", title="Mod-X: an update that keeps right similarities",
        purpose="Teach a checkpoint new pairs without the pairs it was made of.",
        expect="Retrieval on the new pairs above the start; `reproduce` measures what a stream of tasks forgets.",
        trained={"mod_x": kept("init")},
    )  # fmt: skip
