"""LaCLIP: the original caption or one of its rewrites, drawn anew at every visit of a pair.

No new loss and no new weights: text is augmented as pictures are (arXiv 2305.20088). The paper pretrains from nothing,
e.g. on CC12M with four rewrites a caption: lr 1e-3, weight decay 0.5, warm-up of one epoch and cosine to 1e-5, 35
epochs, batch 8,192, AdamW (0.9, 0.98), crops of half to all of a picture, logit_scale clamped to [1, 100]. Here: a
checkpoint that knows originals only is trained on, with the rewrites that composed scenes have.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run laclip
Any checkpoint and pairs: clipworks run laclip --set init=ViT-B-32:openai --set pairs=FOLDER --set \
'stages.laclip.phases.laclip.view.caption_weights={alt: 1, rewrite: 1}'
with the names of your own caption sources.
"""

from collections.abc import Mapping

from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import (
    AdamW,
    CosineSchedule,
    Fallback,
    InfoNCE,
    MultiTextInfoNCE,
    Objective,
    Phase,
    Term,
    TextSlot,
    TrainSpec,
    View,
)

REWRITES = ("rewrite1", "rewrite2", "rewrite3", "rewrite4")
UNIFORM = dict.fromkeys(("alt", *REWRITES), 1.0)
FALLBACK = Fallback(source="alt", min_words=2)
PAIRS, BATCH, LR = 12_800, 128, 1e-3


def tuned(
    init: str = "init", seed: int = 0, captions: Mapping[str, float] = UNIFORM, slots: Mapping[str, str] = {},
) -> TrainSpec:  # fmt: skip
    """Training with one caption a visit by these weights; `slots` (slot -> source): LaCLIP-MT, all of them at once."""
    loss: Objective = MultiTextInfoNCE(texts=tuple(slots)) if slots else InfoNCE()
    texts = {slot: TextSlot(caption_weights={source: 1.0}) for slot, source in slots.items()}
    phase = Phase(
        view=View(caption_weights=dict(captions), fallback=FALLBACK, texts=texts, augment=None),
        objectives={"contrast": Term(loss=loss)},
        optimizer=AdamW(lr=LR, betas=(0.9, 0.98), weight_decay=0.2),
        schedule=CosineSchedule(warmup_samples=PAIRS // 10),
        samples_seen=PAIRS,
        global_batch_size=BATCH,
    )
    return TrainSpec(init=init, pairs="pairs", selection="select", phases={"laclip": phase}, seed=seed)


def recipe() -> Recipe:
    """From a checkpoint that knows one way of saying it to one that knows several."""
    return method_recipe(
        name="laclip",
        title="LaCLIP: rewritten captions, one a visit",
        purpose="Train on originals and rewrites, so that other words for the same things are understood too.",
        expect="Zero-shot with names that no caption has, made of words of the rewrites, far above the start.",
        tasks={name: scenes.TASKS[name] for name in ("main", "main_heldout")},
        trained={"laclip": tuned()},
    )
