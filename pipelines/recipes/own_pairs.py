"""A starting point for your own pictures and captions: ingest, split, curate, pretrain, evaluate, report.

Hardware: as small as 2 CPU cores; size the model and samples_seen to yours. Command: clipworks run own_pairs
--set stages.pairs.pool.images=FOLDER --set stages.pairs.pool.captions=FILE.csv
"""

from data.curation.specs import (
    AspectRatio,
    Balance,
    CaptionLength,
    CurateSpec,
    Decodable,
    DedupSpec,
    InspectSpec,
    MatchSpec,
    PoolNgrams,
)
from data.specs import FolderPool, HoldoutFraction, IngestSpec, SplitSpec
from data.stage import StageSpec
from evaluation.specs import EvaluateSpec, Geometry, ReportSpec, Retrieval, Scored, Shown
from pipelines.recipe import Recipe
from pipelines.recipes import _emoji as small
from training.specs import AdamW, CosineSchedule, EmbedSpec, InfoNCE, ModelSpec, Phase, Term, TrainSpec

HELD_OUT = ("test", "val")
LABELS = {"untrained": "init", "pretrained": "pretrain"}


def pretrain() -> TrainSpec:
    """InfoNCE from random towers; equal captions share the target."""
    phase = Phase(
        objectives={"contrast": Term(loss=InfoNCE(multi_positive=True))},
        optimizer=AdamW(lr=1e-3),
        schedule=CosineSchedule(warmup_samples=5_120),
        samples_seen=102_400,
        global_batch_size=128,
    )
    return TrainSpec(init="init", pairs="pairs", selection="curate", phases={"pretrain": phase})


def stages() -> dict[str, StageSpec]:
    """Every stage but the report."""
    made: dict[str, StageSpec] = {
        "pairs": IngestSpec(pool=FolderPool(images="my/pictures", captions="my/captions.csv")),
        "split": SplitSpec(pairs="pairs", holdouts={name: HoldoutFraction(fraction=0.1) for name in HELD_OUT}),
        "inspect": InspectSpec(pairs="pairs"),
        "dedup": DedupSpec(pairs="pairs", split="split", inspection="inspect"),
        "match": MatchSpec(pairs="pairs", split="split", metadata=(PoolNgrams(min_count=1),)),
        "curate": CurateSpec(
            pairs="pairs",
            split="split",
            filters=(Decodable(), AspectRatio(max_ratio=4), CaptionLength()),
            inspection="inspect",
            duplicates="dedup",
            balance=Balance(matches="match", t=1_000),
        ),
        "init": ModelSpec(architecture=small.tower(128, 4, 2)),
        "pretrain": pretrain(),
    }
    for label, checkpoint in LABELS.items():
        made[f"features_{label}"] = EmbedSpec(checkpoint=checkpoint, pairs="pairs", split="split", splits=HELD_OUT)
        scored = Scored(
            features=f"features_{label}",
            pairs="pairs",
            split="split",
            splits=("test",),
            tasks={"retrieval": Retrieval(), "geometry": Geometry()},
        )
        made[f"evaluate_{label}"] = EvaluateSpec(sets={"own": scored})
    return made


def recipe() -> Recipe:
    """A first CLIP of your own pairs."""
    title = "A first CLIP of my own pairs"
    report = ReportSpec(
        title=title,
        sets={"own": Shown(pairs="pairs")},
        split="split",
        selection="curate",
        evaluations={label: f"evaluate_{label}" for label in LABELS},
        controls=("untrained",),
        compare={"pretrained": "untrained"},
        checkpoints={"pretrained": "pretrain"},
        headline=("own", "test", "retrieval", "image_to_text_R@10"),
    )
    return Recipe(
        name="own_pairs",
        title=title,
        purpose="From a folder of pictures and a file of captions to an evaluated CLIP; a place to start from.",
        hardware="2 CPU cores for the small towers it starts with; a GPU for larger ones",
        expect="Retrieval on held-out pairs above the untrained control; how far depends on your pairs.",
        stages={**stages(), "report": report},
    )
