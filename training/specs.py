"""What a training stage is made of: models, surgeries, objectives, teachers, views. No torch, no ray.

stage = initial checkpoint + phases; phase = start + surgeries + trainable rule + data view + weighted objectives
+ teachers + optimiser + schedule. A new method is a spec here, an implementation file, a recipe and a test; the loop
does not change.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data.spec import (
    CaptionLayerRef,
    CheckpointRef,
    FeatureSetRef,
    Operational,
    SelectionRef,
    ShardSetRef,
    Spec,
    SplitRef,
)
from data.stage import StageFunction, StageSpec

# ------------------------------------------------------------------------------------------------------------- model


class ModelSpec(StageSpec):
    """An initial checkpoint: an open_clip architecture (name or config), random or pretrained."""

    MAKES: ClassVar[str] = "checkpoint"
    kind: Literal["model"] = "model"
    architecture: str | dict[str, Any] = Field(description="open_clip model name, or an open_clip model config")
    pretrained: str | None = Field(default=None, description="open_clip tag (needs a hub) or a local .safetensors file")
    seed: int = 0

    def build(self) -> StageFunction:
        """The function that makes the initial checkpoint."""
        from training.towers import run

        return run


# --------------------------------------------------------------------------------------------------------- surgeries


class Upcycle(Spec):
    """FFN -> mixture of expert FFNs with a bias-free router (CLIP-MoE, arXiv 2409.19291).

    Experts are earlier phases.
    """

    surgery: Literal["upcycle"] = "upcycle"
    experts: tuple[str, ...] = Field(min_length=1, description="phase names (or `init`), one per expert")
    top_k: int = Field(default=2, ge=1)
    image_layers: int | None = Field(default=None, ge=1, description="last so many blocks; None: all")
    text_layers: int | None = Field(default=None, ge=1)


class Reinitialise(Spec):
    """New random towers of another architecture: the student of a distillation."""

    surgery: Literal["reinitialise"] = "reinitialise"
    architecture: str | dict[str, Any]
    seed: int = 0


Surgery = Annotated[Upcycle | Reinitialise, Field(discriminator="surgery")]

# -------------------------------------------------------------------------------------------------------- objectives

Gather = Literal["local", "gather_with_grad", "gather_without_grad"]


class InfoNCE(Spec):
    """Symmetric contrast with softmax; `multi_positive` shares the target among pairs with equal captions."""

    objective: Literal["info_nce"] = "info_nce"
    multi_positive: bool = False
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    gather: Gather = "gather_with_grad"


class SigLIP(Spec):
    """Pairwise sigmoid contrast (arXiv 2303.15343); needs a model with logit_bias."""

    objective: Literal["siglip"] = "siglip"
    multi_positive: bool = False
    gather: Gather = "gather_with_grad"


class HybridDistillation(Spec):
    """HyCD of CLIP-Refine: KL to `hard` * one-hot + (1 - hard) * teacher rows (arXiv 2504.12717)."""

    objective: Literal["hybrid_distillation"] = "hybrid_distillation"
    teacher: str
    hard: float = Field(default=0.5, ge=0, le=1)
    multi_positive: bool = False
    gather: Gather = "gather_with_grad"


class RandomReference(Spec):
    """RaFA of CLIP-Refine: both features of a pair are pulled to one shared random reference vector."""

    objective: Literal["random_reference"] = "random_reference"
    normalised: bool = Field(default=True, description="reference on the unit sphere; False: N(0, I) as it is drawn")


class FeatureCosine(Spec):
    """1 - cosine between student and teacher features, mean over images and texts."""

    objective: Literal["feature_cosine"] = "feature_cosine"
    teacher: str


class SimilarityRows(Spec):
    """KL between teacher's and student's similarity rows, both directions."""

    objective: Literal["similarity_rows"] = "similarity_rows"
    teacher: str
    temperature: float = Field(default=1.0, gt=0)
    gather: Gather = "gather_with_grad"


class RouterBalance(Spec):
    """Load-balancing loss of CLIP-MoE: k for a uniform router, E for a collapsed one; images + texts / 2."""

    objective: Literal["router_balance"] = "router_balance"


Objective = Annotated[
    InfoNCE | SigLIP | HybridDistillation | RandomReference | FeatureCosine | SimilarityRows | RouterBalance,
    Field(discriminator="objective"),
]


class Term(Spec):
    """One weighted objective. `end_weight` makes the weight move linearly from `weight` over the phase."""

    weight: float = 1.0
    end_weight: float | None = None
    loss: Objective


# ---------------------------------------------------------------------------------------------------------- teachers


class FrozenModel(Spec):
    """A frozen checkpoint that sees the student's own batch."""

    teacher: Literal["frozen_model"] = "frozen_model"
    checkpoint: CheckpointRef


class CachedFeatures(Spec):
    """Features computed once by `embed`, looked up by uid and caption."""

    teacher: Literal["cached_features"] = "cached_features"
    features: FeatureSetRef


Teacher = Annotated[FrozenModel | CachedFeatures, Field(discriminator="teacher")]

# --------------------------------------------------------------------------------------------------------- data view


class UniformSampler(Spec):
    """Every pair once an epoch, in a new random order each epoch."""

    sampler: Literal["uniform"] = "uniform"


class ClusterSampler(Spec):
    """Every batch from one cell of the product of image and text clusters (CLIP-MoE's MCL).

    The cells are accumulated over `phases`.
    """

    sampler: Literal["cluster"] = "cluster"
    phases: tuple[str, ...] = Field(min_length=1, description="whose features are clustered: `init` or earlier phases")
    clusters: int = Field(default=3, ge=2)


Sampler = Annotated[UniformSampler | ClusterSampler, Field(discriminator="sampler")]


class Augment(Spec):
    """Random resized crop; no flip, because direction carries meaning in captions."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (0.9, 1.11)


class View(Spec):
    """Order of pairs and choice of captions: a pure function of (seed, samples seen)."""

    caption_weights: dict[str, float] = Field(default_factory=lambda: {"alt": 1.0}, min_length=1)
    caption_noise: float = Field(default=0.0, ge=0, le=1, description="fraction of pairs given another pair's captions")
    sampler: Sampler = UniformSampler()
    augment: Augment | None = Augment()
    decode: Literal["fast", "exact"] = Field(
        default="fast",
        description="exact: open_clip's very pixels at half the speed; fast differs from them by rounding",
    )


# ------------------------------------------------------------------------------------------------------------- train


class AdamW(Spec):
    """AdamW; no weight decay on norms, biases, positions' 1-d parameters and logit_scale."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = Field(default=0.2, ge=0)
    clip_grad_norm: float | None = Field(default=1.0, gt=0)


class CosineSchedule(Spec):
    """Linear warm-up over `warmup_samples`, then cosine to `final_lr_fraction` of the peak."""

    warmup_samples: int = Field(default=0, ge=0)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)


class Phase(Spec):
    """One continuous piece of training."""

    start: str = Field(default="init", description="`init` or an earlier phase of this stage")
    surgeries: tuple[Surgery, ...] = ()
    trainable: tuple[str, ...] = Field(default=("*",), min_length=1, description="glob patterns of parameter names")
    view: View = View()
    objectives: dict[str, Term] = Field(min_length=1)
    teachers: dict[str, Teacher] = Field(default_factory=dict)
    optimizer: AdamW
    schedule: CosineSchedule = CosineSchedule()
    samples_seen: int = Field(ge=0, description="training length in pairs")
    global_batch_size: int = Field(ge=2, description="pairs per optimizer step, over all ranks")
    chunk_pairs: Annotated[int | None, Operational] = Field(
        default=None, ge=1, description="pairs per forward pass; smaller batches accumulate exactly"
    )
    logit_scale_max: float = Field(default=100.0, gt=1)
    result: Literal["last", "best"] = Field(
        default="last", description="best: the weights of the lowest validation loss, on pairs that judge nothing"
    )

    @property
    def steps(self) -> int:
        """Optimizer steps: whole global batches only."""
        return self.samples_seen // self.global_batch_size


class Validation(Spec):
    """Contrastive loss on held-out pairs during training; of every phase, at its end too."""

    split: SplitRef
    name: str = Field(description="which split of it; never `train`, and not the headline's where it chooses weights")
    every_samples: int = Field(ge=1, description="pairs trained on between validations")
    pairs: int = Field(default=1024, ge=2, description="the first so many by a hash of the uid")
    source: str = Field(default="alt", description="caption source")


class TrainSpec(StageSpec):
    """One training stage: an initial checkpoint, pairs and captions, and its phases; the last phase is the result."""

    MAKES: ClassVar[str] = "checkpoint"
    REVISION: ClassVar[int] = 2  # crops of the full picture, decoded at the smallest sufficient scale
    kind: Literal["train"] = "train"
    init: CheckpointRef
    pairs: ShardSetRef
    selection: SelectionRef
    caption_layers: tuple[CaptionLayerRef, ...] = ()
    phases: dict[str, Phase] = Field(min_length=1)
    validation: Validation | None = None
    seed: int = 0
    checkpoint_every_samples: Annotated[int, Operational] = Field(default=25_600, ge=1)
    log_every_steps: Annotated[int, Operational] = Field(default=10, ge=1)

    def build(self) -> StageFunction:
        """The training function."""
        from training.fit import run

        return run


# ------------------------------------------------------------------------------------------------------------- embed


class Prompts(Spec):
    """Zero-shot classes from a metadata field, each put into every template in place of {c}."""

    field: str
    templates: tuple[str, ...] = Field(default=("{c}",), min_length=1)


class EmbedSpec(StageSpec):
    """Embed pairs, captions, class prompts and queries with a checkpoint, once for everybody."""

    MAKES: ClassVar[str] = "feature_set"
    kind: Literal["embed"] = "embed"
    checkpoint: CheckpointRef
    pairs: ShardSetRef
    split: SplitRef
    splits: tuple[str, ...] = Field(min_length=1)
    caption_layers: tuple[CaptionLayerRef, ...] = ()
    prompts: tuple[Prompts, ...] = ()
    queries: tuple[str, ...] = ()
    chunk_pairs: Annotated[int, Operational] = Field(default=256, ge=1)

    def build(self) -> StageFunction:
        """The embed function."""
        from training.embed import run

        return run
