"""NegCLIP: train on with a wrong caption beside each right one, so that order and relations count (arXiv 2210.01936).

The paper: OpenAI's ViT-B/32 on COCO with generated swaps, 5 epochs, batch 256.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run neg_clip
"""

from data.curation.specs import CurateSpec, MetaValue
from data.pools.scene_words import OPPOSITE
from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import AdamW, CosineSchedule, HardNegatives, Objective, Phase, Term, TextSlot, TrainSpec, View

RELATED = CurateSpec(pairs="pairs", split="split", filters=(MetaValue(field="relation", values=tuple(OPPOSITE)),))
WRONG = TextSlot(caption_weights={"negative_relation": 1.0, "negative_order": 1.0})


def train_on(loss: Objective, init: str = "init", seed: int = 0) -> TrainSpec:
    """Right captions in the main place, wrong ones in slot `negative`; what is made of them is the loss."""
    phase = Phase(
        view=View(caption_weights={"statement_relation": 1.0}, texts={"negative": WRONG}, augment=None),
        objectives={"contrast": Term(loss=loss)}, optimizer=AdamW(lr=5e-4), global_batch_size=128, samples_seen=12_800,
        schedule=CosineSchedule(warmup_samples=1_280),
    )  # fmt: skip
    return TrainSpec(init=init, pairs="pairs", selection="related", phases={"neg_clip": phase}, seed=seed)


def recipe() -> Recipe:
    """From any checkpoint to one that tells a relation from its reverse."""
    return method_recipe(
        name="neg_clip", title="NegCLIP: hard negative captions", more={"related": RELATED},
        purpose="Make order and relations count by wrong captions in the batch.",
        expect="Relation and order above the start; colours, which no wrong caption names, much as before.",
        tasks={name: scenes.TASKS[name] for name in ("relation", "order", "attribute")},
        trained={"neg_clip": train_on(HardNegatives(texts=("negative",)))},
    )  # fmt: skip
