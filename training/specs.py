"""What a training stage is made of: models, surgeries, objectives, teachers, views. No torch, no ray.

stage = initial checkpoint + phases; phase = start + surgeries + trainable rule + data view + weighted objectives
+ teachers + optimiser + schedule. A new method is a spec here, an implementation file, a recipe and a test; the loop
does not change.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

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
    """An initial checkpoint: an open_clip architecture, random or pretrained, or a checkpoint that exists already.

    `artifact` takes a finished checkpoint as it is, so that all that was made of it is reused and its training stays
    known; `folder` copies one from elsewhere.
    """

    MAKES: ClassVar[str] = "checkpoint"
    ON_RAY: ClassVar[bool] = False
    kind: Literal["model"] = "model"
    architecture: str | dict[str, Any] | None = Field(
        default=None, description="open_clip model name, or an open_clip model config"
    )
    pretrained: str | None = Field(default=None, description="open_clip tag (needs a hub) or a local .safetensors file")
    seed: int = 0
    artifact: Annotated[str | None, Operational] = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="fingerprint of a finished checkpoint below the root"
    )
    folder: Annotated[str | None, Operational] = Field(
        default=None, description="checkpoint folder: of another root, or any in open_clip's local-dir layout"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("architecture", "artifact", "folder") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given; give one of architecture, artifact, folder")
        if self.pretrained is not None and self.architecture is None:
            raise ValueError("pretrained goes with an architecture only; remove it")
        return self

    @property
    def weights_file(self) -> str | None:
        """`pretrained` where it is a file."""
        return self.pretrained if self.pretrained and self.pretrained.endswith(".safetensors") else None

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int:
        """Its time does not depend on pairs."""
        del parents
        return 0

    def source_identity(self) -> dict[str, Any]:
        """Digests of the folder or the weights file that it reads."""
        from training.checkpoint_folder import open_folder, weights_file_identity

        if self.folder is not None:
            return open_folder(self.folder).identity()
        return {"weights": weights_file_identity(self.weights_file)} if self.weights_file else {}

    def resolved(self) -> dict[str, Any]:
        """The config that counts: of a weights file its name and content, not its path."""
        config = super().resolved()
        return {**config, "pretrained": self.weights_file.rpartition("/")[2]} if self.weights_file else config

    def fingerprint(self, parents: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
        """That of the artifact itself, where it names one."""
        return self.artifact or super().fingerprint(parents, config)

    def build(self) -> StageFunction:
        """The function that makes the initial checkpoint."""
        from training.towers import run

        return run


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

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int:
        """Pairs of all optimizer steps."""
        del parents
        return sum(phase.steps * phase.global_batch_size for phase in self.phases.values())

    def build(self) -> StageFunction:
        """The training function."""
        from training.fit import run

        return run


# ------------------------------------------------------------------------------------------------------------- embed


class Prompts(Spec):
    """Zero-shot classes, each put into every template in place of {c}.

    `classes` None: the values of metadata field `field` over the whole shard set. Else the names in order; a pair's
    value of `field` is then its class's name or its number in `classes`. A list of values makes the task multi-label.
    """

    field: str
    templates: tuple[str, ...] = Field(default=("{c}",), min_length=1)
    classes: tuple[str, ...] | None = Field(default=None, min_length=2)


Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur", "zoom_blur", "snow", "fog",
    "brightness", "contrast", "elastic", "pixelate", "jpeg",
]  # fmt: skip


class Corrupted(Spec):
    """Every picture damaged in one way, its randomness by uid (the families of Hendrycks & Dietterich 2019)."""

    view: Literal["corrupted"] = "corrupted"
    kind: Corruption
    severity: int = Field(ge=1, le=5)


class Cropped(Spec):
    """A random resized crop by (seed, uid), mirrored with probability `flip`: one of few-shot heads' training views."""

    view: Literal["cropped"] = "cropped"
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    flip: float = Field(default=0.5, ge=0, le=1)
    seed: int = 0


ImageView = Annotated[Corrupted | Cropped, Field(discriminator="view")]


class Patches(Spec):
    """Patch tokens of at most so many pairs a split, with the share of each patch that is foreground.

    The mask is the picture's own alpha channel; a picture without one is left out.
    """

    pairs_per_split: int = Field(default=512, ge=1, description="the first so many by a hash of the uid")


class EmbedSpec(StageSpec):
    """Embed pairs, captions, class prompts and queries with a checkpoint, once for everybody."""

    REVISION: ClassVar[int] = 2  # checksums of pictures; views and patch tokens
    MAKES: ClassVar[str] = "feature_set"
    kind: Literal["embed"] = "embed"
    checkpoint: CheckpointRef
    pairs: ShardSetRef
    split: SplitRef
    splits: tuple[str, ...] = Field(min_length=1)
    plain: bool = Field(default=True, description="the pictures as they are, with their captions; False: `views` only")
    views: dict[str, ImageView] = Field(default_factory=dict, description="more looks at every picture, by name")
    patches: Patches | None = None
    caption_layers: tuple[CaptionLayerRef, ...] = ()
    prompts: tuple[Prompts, ...] = ()
    queries: tuple[str, ...] = ()
    chunk_pairs: Annotated[int, Operational] = Field(default=256, ge=1)

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int | None:
        """Pairs of its splits; where the split is not made yet, all pairs: at most so many."""
        counts = parents.get("split", {})
        if all(name in counts for name in self.splits):
            return sum(counts[name] for name in self.splits)
        return super().workload(parents)

    def build(self) -> StageFunction:
        """The embed function."""
        from training.embed import run

        return run
