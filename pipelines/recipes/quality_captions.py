"""CLIP with Quality Captions: the plain recipe, and nothing but better captions.

Two captions a pair, the real one and a synthetic one, each with a contrast of its own; the terms are added (arXiv
2405.08911; this form is that of the authors' sibling code, and mixing by caption weights is its other one). That code's
baseline: ViT-B/16, batch 8,192, 30,000 steps, warm-up of 1,000, lr 1e-3, weight decay 0.2, AdamW (0.9, 0.95), gradients
clipped at 1. Here: small towers on composed scenes, `statement` as synthetic caption, which says all of a scene.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run quality_captions
Any checkpoint and pairs: clipworks run quality_captions --set init=ViT-B-32:openai --set pairs=FOLDER --set \
'stages.quality_captions.phases.pretrain.view.texts.synthetic.caption_weights={rewrite: 1}'
with the names of your own caption sources.
"""

from collections.abc import Mapping

from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import AdamW, CosineSchedule, InfoNCE, Phase, Term, TextSlot, TrainSpec, View

PAIRS, BATCH, LR = 19_200, 128, 2e-3


def trained(
    init: str = "init", seed: int = 0, real: Mapping[str, float] = {"alt": 1.0},
    synthetic: Mapping[str, float] | None = None, noise: float = 0.0, pairs: int = PAIRS,
) -> TrainSpec:  # fmt: skip
    """Pretraining on captions drawn by weight; with `synthetic`, a second term on another caption of the pair.

    `noise`: fraction of pairs that get another pair's captions.
    """
    second = {"synthetic": TextSlot(caption_weights=dict(synthetic))} if synthetic else {}
    terms = {"real": Term(loss=InfoNCE()), "synthetic": Term(loss=InfoNCE(text="text_features.synthetic"))}
    phase = Phase(
        view=View(caption_weights=dict(real), texts=second, caption_noise=noise, augment=None),
        objectives=terms if synthetic else {"contrast": terms["real"]},
        optimizer=AdamW(lr=LR, betas=(0.9, 0.95), weight_decay=0.2, clip_grad_norm=1.0),
        schedule=CosineSchedule(warmup_samples=pairs // 30),
        samples_seen=pairs,
        global_batch_size=BATCH,
    )
    return TrainSpec(init=init, pairs="pairs", selection="select", phases={"pretrain": phase}, seed=seed)


def recipe() -> Recipe:
    """From random towers to a CLIP of real and synthetic captions."""
    return method_recipe(
        name="quality_captions",
        title="Quality Captions: a real and a synthetic caption of every pair",
        purpose="Pretrain on captions of two sources at once, to see what captions alone are worth.",
        expect="Retrieval and zero-shot above those of untrained towers; how far depends on the captions.",
        start="random",
        tasks={name: scenes.TASKS[name] for name in ("main", "attribute")},
        trained={"quality_captions": trained(synthetic={"statement": 1.0})},
    )
