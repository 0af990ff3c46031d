"""LightCLIP: small towers learn more from each pair: softer targets, matched patches and words, masked words.

Three additions to CLIP's contrast, none of which is left in the result (arXiv 2312.00674): targets that soften as
training goes on, contrast of patches and words by a relaxed matching, and masked words told with the picture's help.
The paper's equations, weights, data (YFCC15M) and encoders (MobileNetV2, ResNet18, Swin-Nano) are unverified: form and
numbers here are ours, and training goes on from a checkpoint, where the paper pretrains. Patches and words are told by
open_clip's own ViT and causal text tower; other towers are refused.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run lightclip
Any checkpoint and pairs: clipworks run lightclip --set init=ViT-B-32:openai --set pairs=FOLDER
"""

from collections.abc import Mapping

from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import (
    AdamW,
    CosineSchedule,
    InfoNCE,
    MaskedLanguage,
    MaskedWords,
    Phase,
    SoftInfoNCE,
    Surgery,
    Term,
    TokenMatching,
    Tokens,
    TrainSpec,
)

PAIRS, BATCH, LR = 6_400, 128, 5e-4
CLIP = {"contrast": Term(loss=InfoNCE())}
SOFT = {"contrast": Term(loss=SoftInfoNCE(max_softness=0.2))}
MATCHED = {"tokens": Term(weight=0.5, loss=TokenMatching())}
MASKED = {"words": Term(weight=0.1, loss=MaskedWords())}


def trained(
    init: str = "init", seed: int = 0, terms: Mapping[str, Term] | None = None, fusion_layers: int = 1,
    pairs: int = PAIRS,
) -> TrainSpec:  # fmt: skip
    """Training on short captions with some of the terms (None: all), and the surgeries that these need."""
    chosen = {**SOFT, **MATCHED, **MASKED} if terms is None else dict(terms)
    surgeries: dict[str, Surgery] = {
        "tokens": Tokens(),
        "words": MaskedLanguage(fusion_layers=fusion_layers, num_heads=2, seed=seed),
    }
    phase = Phase(
        surgeries=tuple(surgery for term, surgery in surgeries.items() if term in chosen),
        view=scenes.base().phases["pretrain"].view,
        objectives=chosen,
        optimizer=AdamW(lr=LR, weight_decay=0.2),
        schedule=CosineSchedule(warmup_samples=pairs // 10),
        samples_seen=pairs,
        global_batch_size=BATCH,
    )
    return TrainSpec(
        init=init, pairs="pairs", selection="select", phases={"lightclip": phase}, seed=seed, log_every_steps=5
    )


def recipe() -> Recipe:
    """A small CLIP of composed scenes, trained on as a LightCLIP."""
    return method_recipe(
        name="lightclip",
        title="LightCLIP: soft targets, matched tokens, masked words",
        purpose="Get more out of few pairs and small towers, at the price of training time alone.",
        expect="Retrieval above that of the start; what comes out is an ordinary CLIP, without any of the additions.",
        tasks={name: scenes.TASKS[name] for name in ("main", "attribute")},
        trained={"lightclip": trained()},
    )
