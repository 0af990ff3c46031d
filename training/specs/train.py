"""The training stage: phases, optimiser, schedule, validation. No torch.

stage = initial checkpoint + phases; phase = start + surgeries + trainable rule + data view + weighted objectives
+ teachers + optimiser + schedule. A new method is a spec here, an implementation file, a recipe and a test; the loop
does not change.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.spec import CaptionLayerRef, CheckpointRef, Operational, SelectionRef, ShardSetRef, Spec, SplitRef
from data.stage import StageFunction, StageSpec
from training.specs.objectives import Term
from training.specs.surgeries import Surgery
from training.specs.teachers import Teacher
from training.specs.views import View


class AdamW(Spec):
    """AdamW; no weight decay on norms, biases, positions' 1-d parameters and logit_scale."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = Field(default=0.2, ge=0)
    clip_grad_norm: float | None = Field(default=1.0, gt=0)


class CosineSchedule(Spec):
    """Linear warm-up over `warmup_samples`, then cosine to `final_lr_fraction` of the peak, in `cycles` equal parts.

    Each part starts again at the peak (CLOOB's hard restarts).
    """

    warmup_samples: int = Field(default=0, ge=0)
    cycles: int = Field(default=1, ge=1)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)


class FrozenRows(Spec):
    """The first rows of parameters that else train stay as they are (Long-CLIP's first positions)."""

    rule: Literal["frozen_rows"] = "frozen_rows"
    parameter: str = Field(description="glob pattern of parameter names")
    rows: int = Field(ge=1)


GradientRule = FrozenRows


class Phase(Spec):
    """One continuous piece of training."""

    start: str = Field(default="init", description="`init` or an earlier phase of this stage")
    surgeries: tuple[Surgery, ...] = ()
    trainable: tuple[str, ...] = Field(
        default=("*",), min_length=1, description="glob patterns of parameter names; `!pattern` takes names out again"
    )
    gradients: tuple[GradientRule, ...] = Field(default=(), description="rules for gradients before the optimizer step")
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
