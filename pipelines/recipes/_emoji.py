"""What the recipes on the quickstart's pairs share: pool, splits, towers, evaluation."""

from collections.abc import Mapping

from data.curation.specs import (
    Balance,
    CurateSpec,
    Decodable,
    DedupSpec,
    ExactImages,
    InspectSpec,
    MatchSpec,
    PoolNgrams,
    WordFrequencies,
)
from data.specs import EmojiPool, HoldoutFraction, HoldoutValues, IngestSpec, SplitSpec
from evaluation.specs import (
    Calibration,
    CaptionSelection,
    EvaluateSpec,
    Geometry,
    Retrieval,
    Scored,
    Task,
    ZeroShot,
    prompts_of,
)
from training.specs import EmbedSpec, ModelSpec, Prompts

SCORED = ("unseen_vendor", "unseen_concepts")
EMBEDDED = (*SCORED, "val")  # `val` judges nothing: what is fitted or chosen is fitted or chosen there
SHOWN = ("Goog", "Twtr")  # vendors whose art is under an open licence
GROUPS = Prompts(field="group", templates=("{c}", "an emoji of {c}", "a picture of {c}", "a symbol for {c}"))
SUBGROUPS = Prompts(field="subgroup", templates=("{c}", "an emoji of {c}"))
SKIN_TONES = Prompts(field="skin_tone", templates=("{c} skin tone", "a person with {c} skin tone"))
GENDERS = Prompts(field="gender", templates=("{c}", "a {c} person", "an emoji of a {c} person"))
TASKS: dict[str, Task] = {
    "retrieval": Retrieval(),
    "groups": ZeroShot(prompts=GROUPS),
    "calibration": Calibration(prompts=GROUPS, fit="val"),
    "geometry": Geometry(),
}
# what a miniature of the pool has too few pairs for
MORE_TASKS: dict[str, Task] = {
    "retrieval_alias": Retrieval(caption_sources=("alias",)),  # the same pictures by another caption source
    "subgroups": ZeroShot(prompts=SUBGROUPS),
    "skin_tone": ZeroShot(prompts=SKIN_TONES),
    "gender": ZeroShot(prompts=GENDERS),
    "swapped_gender": CaptionSelection(wrong=("swap_gender",)),
    "swapped_skin_tone": CaptionSelection(wrong=("swap_skin_tone",)),
}
QUERIES = ("red apple", "happy face", "flag", "a man with a beard", "music", "rainy weather", "cat", "train")


def tower(width: int, layers: int, text_layers: int) -> dict[str, object]:
    """open_clip config of a small ViT (48 px, patch 8) and text transformer (24 tokens) with heads of 32."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 48, "patch_size": 8, "width": width, "head_width": 32, "layers": layers},
        "text_cfg": {
            "context_length": 24,
            "vocab_size": 49408,
            "width": width,
            "heads": width // 32,
            "layers": text_layers,
        },
    }


def pairs(max_concepts: int | None = None) -> IngestSpec:
    """Every picture of seven vendors."""
    return IngestSpec(pool=EmojiPool(max_concepts=max_concepts), pairs_per_shard=4096)


def split() -> SplitSpec:
    """Two held-out axes and a validation split: base concepts never trained on, then a vendor never trained on."""
    return SplitSpec(
        pairs="pairs",
        holdouts={
            "unseen_concepts": HoldoutFraction(field="base", fraction=0.1),
            "unseen_vendor": HoldoutValues(field="vendor", values=("Twtr",)),
            "val": HoldoutFraction(field=None, fraction=0.03),
        },
    )


def inspect() -> InspectSpec:
    """Every picture and caption looked at once."""
    return InspectSpec(pairs="pairs")


def dedup() -> DedupSpec:
    """One of each group of equal pictures, and none that a held-out split has: near ones may differ in colour only."""
    return DedupSpec(pairs="pairs", split="split", inspection="inspect", alike=(ExactImages(),), protect_distance=0)


def match() -> MatchSpec:
    """MetaCLIP's matching, entries from word frequencies and the pool's own n-grams."""
    metadata = (WordFrequencies(top=50_000), PoolNgrams(max_words=2, min_count=3))
    return MatchSpec(pairs="pairs", split="split", metadata=metadata)


def curate(t: int) -> CurateSpec:
    """What decodes, once, and no copy of what is held out; then MetaCLIP's balancing."""
    return CurateSpec(
        pairs="pairs", split="split", filters=(Decodable(),), inspection="inspect", duplicates="dedup",
        balance=Balance(matches="match", t=t),
    )  # fmt: skip


def model() -> ModelSpec:
    """The untrained towers."""
    return ModelSpec(architecture=tower(96, 4, 1))


def embed(
    checkpoint: str,
    splits: tuple[str, ...] = EMBEDDED,
    caption_layers: tuple[str, ...] = (),
    tasks: Mapping[str, Task] = TASKS,
) -> EmbedSpec:
    """Features of the evaluated splits, of the tasks' class prompts and of the queries."""
    return EmbedSpec(
        checkpoint=checkpoint, pairs="pairs", split="split", splits=splits, caption_layers=caption_layers,
        prompts=prompts_of(tasks.values()), queries=QUERIES,
    )  # fmt: skip


def evaluate(features: str, tasks: Mapping[str, Task] = TASKS) -> EvaluateSpec:
    """All tasks on both held-out axes; intervals resample base concepts, because their pictures are alike."""
    scored = Scored(
        features=features, pairs="pairs", split="split", splits=SCORED, tasks=dict(tasks), cluster_field="base"
    )
    return EvaluateSpec(sets={"emoji": scored})
