"""The whole chain on real pairs that packages ship: curate, rewrite, pretrain, post-train, upcycle, distil, evaluate.

Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run quickstart
"""

from collections.abc import Mapping
from typing import NamedTuple

from data.specs import EmbeddedLLM, RewriteSpec
from data.stage import StageSpec
from evaluation.specs import Gallery, ReportSpec, Shown, Task
from pipelines.recipe import Recipe
from pipelines.recipes import _emoji as emoji
from training.specs import (
    AdamW,
    Augment,
    CachedFeatures,
    ClusterSampler,
    CosineSchedule,
    FeatureCosine,
    FrozenModel,
    HybridDistillation,
    InfoNCE,
    Phase,
    RandomReference,
    Reinitialise,
    RouterBalance,
    SimilarityRows,
    Term,
    TrainSpec,
    Upcycle,
    View,
)

CAPTIONS = {"alt": 3.0, "alias": 1.0, "rewrite": 1.0}
AUGMENT = Augment(crop_scale=(0.8, 1.0), crop_ratio=(0.85, 1.18))
CAPTION_LAYERS = ("rewrite",)


class Size(NamedTuple):
    """How much of everything; lengths in pairs."""

    concepts: int | None = None
    t: int = 30
    rewritten_captions: int = 200
    pretrain: int = 139_520
    refine: int = 9_600
    expert: int = 5_120
    router: int = 5_120
    distil: int = 38_400
    batch: int = 128
    expert_batch: int = 128
    tasks: Mapping[str, Task] = {**emoji.TASKS, **emoji.MORE_TASKS}


def rewrite(size: Size) -> RewriteSpec:
    """LaCLIP's rewriting with the embedded model."""
    return RewriteSpec(
        pairs="pairs",
        selection="curate",
        llm=EmbeddedLLM(),
        examples="labels",
        max_captions=size.rewritten_captions,
        shots=6,
        max_tokens=32,
        temperature=0.4,
    )


def pretrain(size: Size, caption_noise: float = 0.0) -> TrainSpec:
    """InfoNCE from random towers; equal captions share the target."""
    phase = Phase(
        view=View(caption_weights=CAPTIONS, caption_noise=caption_noise, augment=AUGMENT),
        objectives={"contrast": Term(loss=InfoNCE(multi_positive=True))},
        optimizer=AdamW(lr=2e-3, weight_decay=0.2),
        schedule=CosineSchedule(warmup_samples=size.pretrain // 20),
        samples_seen=size.pretrain,
        global_batch_size=size.batch,
    )
    return TrainSpec(
        init="init", pairs="pairs", selection="curate", caption_layers=CAPTION_LAYERS, phases={"pretrain": phase}
    )


def refine(size: Size) -> TrainSpec:
    """CLIP-Refine: HyCD against the frozen pretrained model, and RaFA."""
    phase = Phase(
        view=View(caption_weights=CAPTIONS, augment=AUGMENT),
        objectives={
            "hybrid": Term(loss=HybridDistillation(teacher="pretrained", multi_positive=True)),
            "reference": Term(loss=RandomReference()),
        },
        teachers={"pretrained": FrozenModel(checkpoint="pretrain")},
        optimizer=AdamW(lr=2e-4, weight_decay=0.2),
        schedule=CosineSchedule(warmup_samples=size.refine // 5),
        samples_seen=size.refine,
        global_batch_size=size.batch,
    )
    return TrainSpec(
        init="pretrain", pairs="pairs", selection="curate", caption_layers=CAPTION_LAYERS, phases={"refine": phase}
    )


def upcycle(size: Size) -> TrainSpec:
    """CLIP-MoE: two more FFN experts from single-cluster batches, then a mixture whose routers alone train."""
    view = View(caption_weights={"alt": 1.0}, augment=AUGMENT)
    contrast = InfoNCE(multi_positive=True, label_smoothing=0.1)
    seen, phases = ["init"], {}
    for number in (1, 2):
        sampler = ClusterSampler(phases=tuple(seen), clusters=2)
        phases[f"expert_{number}"] = Phase(
            trainable=("*.mlp.*",),
            view=view.model_copy(update={"sampler": sampler}),
            objectives={"contrast": Term(loss=contrast)},
            optimizer=AdamW(lr=3e-4, weight_decay=0.2),
            schedule=CosineSchedule(warmup_samples=size.expert // 5),
            samples_seen=size.expert,
            global_batch_size=size.expert_batch,
        )
        seen.append(f"expert_{number}")
    phases["router"] = Phase(
        surgeries=(Upcycle(experts=tuple(seen), top_k=2),),
        trainable=("*.router.weight",),
        view=view,
        objectives={"contrast": Term(loss=contrast), "balance": Term(weight=0.01, loss=RouterBalance())},
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        schedule=CosineSchedule(warmup_samples=size.router // 5),
        samples_seen=size.router,
        global_batch_size=size.batch,
    )
    return TrainSpec(init="refine", pairs="pairs", selection="curate", phases=phases)


def distil(size: Size) -> TrainSpec:
    """A smaller student: contrast, feature cosine and similarity rows from the cached mixture."""
    phase = Phase(
        surgeries=(Reinitialise(architecture=emoji.tower(64, 3, 1)),),
        view=View(caption_weights=CAPTIONS, augment=AUGMENT),
        objectives={
            "contrast": Term(loss=InfoNCE(multi_positive=True)),
            "features": Term(weight=4.0, loss=FeatureCosine(teacher="mixture")),
            "rows": Term(loss=SimilarityRows(teacher="mixture")),
        },
        teachers={"mixture": CachedFeatures(features="features_moe")},
        optimizer=AdamW(lr=2e-3, weight_decay=0.2),
        schedule=CosineSchedule(warmup_samples=size.distil // 20),
        samples_seen=size.distil,
        global_batch_size=size.batch,
    )
    return TrainSpec(
        init="moe", pairs="pairs", selection="curate", caption_layers=CAPTION_LAYERS, phases={"distil": phase}
    )


LABELS = {"untrained": "init", "pretrained": "pretrain", "refined": "refine", "moe": "moe", "distilled": "distil"}


def measured(size: Size, checkpoint: str, label: str, for_students: bool = False) -> dict[str, StageSpec]:
    """Features and evaluation of one checkpoint; a teacher's features cover the training pairs and rewrites too."""
    splits = (*emoji.EMBEDDED, "train") if for_students else emoji.EMBEDDED
    return {
        f"features_{label}": emoji.embed(checkpoint, splits, CAPTION_LAYERS if for_students else (), size.tasks),
        f"evaluate_{label}": emoji.evaluate(f"features_{label}", size.tasks),
    }


def stages(size: Size = Size()) -> dict[str, StageSpec]:  # noqa: B008 - a frozen value
    """Every stage but the report, in the order they run."""
    return {
        "pairs": emoji.pairs(size.concepts),
        "split": emoji.split(),
        "inspect": emoji.inspect(),
        "dedup": emoji.dedup(),
        "match": emoji.match(),
        "curate": emoji.curate(size.t),
        "rewrite": rewrite(size),
        "init": emoji.model(),
        **measured(size, "init", "untrained"),
        "pretrain": pretrain(size),
        **measured(size, "pretrain", "pretrained"),
        "refine": refine(size),
        **measured(size, "refine", "refined"),
        "moe": upcycle(size),
        **measured(size, "moe", "moe", for_students=True),
        "distil": distil(size),
        **measured(size, "distil", "distilled"),
    }


def report(title: str, **controls: str) -> ReportSpec:
    """One page over all of it; `controls` are more labels and the checkpoint stages behind them."""
    labels = {**LABELS, **controls}
    compare = {"pretrained": "untrained", "refined": "pretrained", "moe": "refined", "distilled": "moe"}
    return ReportSpec(
        title=title,
        sets={"emoji": Shown(pairs="pairs", vendors=emoji.SHOWN)},
        split="split",
        selection="curate",
        rewrites="rewrite",
        evaluations={label: f"evaluate_{label}" for label in labels},
        controls=("untrained", *controls),
        compare={**compare, **dict.fromkeys(controls, "pretrained")},
        checkpoints={label: stage for label, stage in labels.items() if label != "untrained"},
        gallery=Gallery(features="features_pretrained", split="unseen_vendor", queries=emoji.QUERIES),
        headline=("emoji", "unseen_vendor", "retrieval", "image_to_text_R@10"),
    )


def recipe() -> Recipe:
    """The quickstart."""
    return Recipe(
        name="quickstart",
        title="A CLIP of emoji, from pool to distilled student",
        purpose="Show every stage of the chain on real pairs, on a laptop, with an honest evaluation.",
        hardware="2 CPU cores, 8 GB of memory",
        minutes=15,
        expect="R@10 above 40 % on a vendor never trained on (chance 0.3 %); the report says which stages helped.",
        stages={**stages(), "report": report("A CLIP of emoji, from pool to distilled student")},
    )
