"""What the recipes on the quickstart's pairs share: pool, splits, towers, evaluation."""

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
from evaluation.specs import Bootstrap, EvaluateSpec, Retrieval, ZeroShot
from training.specs import EmbedSpec, ModelSpec, Prompts

HELD_OUT = ("unseen_vendor", "unseen_concepts")
EVALUATED = (*HELD_OUT, "val")
GROUPS = Prompts(field="group", templates=("{c}", "an emoji of {c}", "a picture of {c}", "a symbol for {c}"))
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


def embed(checkpoint: str, splits: tuple[str, ...] = EVALUATED, caption_layers: tuple[str, ...] = ()) -> EmbedSpec:
    """Features of the evaluated splits, class prompts and queries."""
    return EmbedSpec(
        checkpoint=checkpoint, pairs="pairs", split="split", splits=splits, caption_layers=caption_layers,
        prompts=(GROUPS,), queries=QUERIES,
    )  # fmt: skip


def evaluate(features: str) -> EvaluateSpec:
    """Retrieval and zero-shot classification; intervals resample base concepts, because their pictures are alike."""
    return EvaluateSpec(
        features=features, pairs="pairs", split="split", splits=EVALUATED,
        tasks={"retrieval": Retrieval(), "groups": ZeroShot(prompts=GROUPS)}, bootstrap=Bootstrap(cluster_field="base"),
    )  # fmt: skip
