"""The bench on which methods are compared: composed scenes, tiny towers trained on short captions, and what is asked.

Batch and learning rate were compared on `val`, never on `test`.
"""

from collections.abc import Mapping

from data.curation.specs import CurateSpec
from data.pools.scene_words import COLORS, NOUNS, article
from data.specs import Dial, HoldoutFraction, IngestSpec, ScenePool, SplitSpec
from evaluation.specs import CaptionSelection, EvaluateSpec, Geometry, Retrieval, Scored, Task, ZeroShot, prompts_of
from training.specs import AdamW, CosineSchedule, EmbedSpec, InfoNCE, ModelSpec, Phase, Prompts, Term, TrainSpec, View

IMAGE_SIZE = 48  # pixels, of canvas and tower: nothing is scaled
NOUN_COUNT, COLOR_COUNT = 16, 3  # few, so that a short run sees each often
SCORED = ("test",)
EMBEDDED = ("test", "val")  # `val` judges nothing: what is chosen is chosen there
# in the manner of short captions, averaged over colours: a prompt tells nothing but the noun
TEMPLATES = tuple(f"a {{c}} on {article(color)} tile" for color in list(COLORS)[:COLOR_COUNT])
MAIN = Prompts(field="main", templates=TEMPLATES)
HELDOUT = Prompts(
    field="main_class", templates=TEMPLATES, classes=tuple(noun.heldout for noun in NOUNS.values())[:NOUN_COUNT]
)
TASKS: dict[str, Task] = {
    "retrieval": Retrieval(),
    "retrieval_long": Retrieval(caption_sources=("long",)),
    "main": ZeroShot(prompts=MAIN),
    "main_heldout": ZeroShot(prompts=HELDOUT),
    "attribute": CaptionSelection(right="statement_attribute", wrong=("negative_attribute",)),
    "relation": CaptionSelection(right="statement_relation", wrong=("negative_relation",)),
    "order": CaptionSelection(right="statement_relation", wrong=("negative_order",)),
    "geometry": Geometry(),
}


def pool(count: int, min_objects: int, max_objects: int, dials: Mapping[str, Dial]) -> ScenePool:
    """Scenes in the bench's vocabulary; a grid of 2 x 2 cells."""
    return ScenePool(
        pairs=count, min_objects=min_objects, max_objects=max_objects, nouns=NOUN_COUNT, colors=COLOR_COUNT,
        canvas_pixels=IMAGE_SIZE, jitter_fraction=0.0, dials=dict(dials),
    )  # fmt: skip


def pairs(count: int = 8000, dials: Mapping[str, Dial] | None = None) -> IngestSpec:
    """Scenes of one or two objects."""
    return IngestSpec(pool=pool(count, 1, 2, dials or {}), pairs_per_shard=2048)


def long_pairs(count: int = 6000) -> IngestSpec:
    """Scenes of three or four objects: what a short caption names is the smaller part."""
    return IngestSpec(pool=pool(count, 3, 4, {}), pairs_per_shard=2048)


def split() -> SplitSpec:
    """Scenes held out for judging, and others for choosing."""
    holdouts = {"test": HoldoutFraction(field=None, fraction=0.1), "val": HoldoutFraction(field=None, fraction=0.05)}
    return SplitSpec(pairs="pairs", holdouts=dict(holdouts))


def select() -> CurateSpec:
    """All that is not held out: scenes are made, not found, so that nothing is to be cleaned."""
    return CurateSpec(pairs="pairs", split="split")


def tower(width: int = 64, layers: int = 3, text_layers: int = 2, context: int = 32) -> dict[str, object]:
    """open_clip config of a small ViT (48 px, patch 12) and text transformer with heads of 32."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 12, "width": width, "head_width": 32, "layers": layers},
        "text_cfg": {
            "context_length": context,
            "vocab_size": 49408,
            "width": width,
            "heads": width // 32,
            "layers": text_layers,
        },
    }


def model(seed: int = 0, context: int = 32) -> ModelSpec:
    """The untrained towers."""
    return ModelSpec(architecture=tower(context=context), seed=seed)


def base(
    seed: int = 0, init: str = "towers", captions: Mapping[str, float] | None = None, samples: int = 48_000
) -> TrainSpec:
    """Pretraining on short captions: where every method starts, or with other captions what it is compared with."""
    phase = Phase(
        view=View(caption_weights=dict(captions or {"alt": 1.0}), augment=None),
        objectives={"contrast": Term(loss=InfoNCE(multi_positive=True))},
        optimizer=AdamW(lr=2e-3, weight_decay=0.2),
        schedule=CosineSchedule(warmup_samples=samples // 20),
        samples_seen=samples,
        global_batch_size=64,
    )
    return TrainSpec(init=init, pairs="pairs", selection="select", phases={"pretrain": phase}, seed=seed)


def embed(checkpoint: str, tasks: Mapping[str, Task] = TASKS, splits: tuple[str, ...] = EMBEDDED) -> EmbedSpec:
    """Features of the evaluated splits and of the tasks' class prompts."""
    return EmbedSpec(
        checkpoint=checkpoint, pairs="pairs", split="split", splits=splits, prompts=prompts_of(tasks.values())
    )


def evaluate(features: str, tasks: Mapping[str, Task] = TASKS, splits: tuple[str, ...] = SCORED) -> EvaluateSpec:
    """All tasks on held-out scenes; every scene is drawn by itself, so that intervals resample single ones."""
    scored = Scored(features=features, pairs="pairs", split="split", splits=splits, tasks=dict(tasks))
    return EvaluateSpec(sets={"scenes": scored})
