"""What an evaluation and a report are made of. No torch, no ray."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.spec import (
    CaptionLayerRef,
    CheckpointRef,
    EvaluationRef,
    FeatureSetRef,
    SelectionRef,
    ShardSetRef,
    Spec,
    SplitRef,
)
from data.stage import StageFunction, StageSpec
from training.specs import Prompts


class ZeroShot(Spec):
    """Zero-shot classification: per class all templates, normalised, averaged, normalised again (as CLIP_benchmark)."""

    task: Literal["zero_shot"] = "zero_shot"
    prompts: Prompts


class Retrieval(Spec):
    """Image->text among the split's distinct captions and text->image among its pictures; R@k as hit rate."""

    task: Literal["retrieval"] = "retrieval"
    caption_source: str = "alt"
    ks: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)


Task = Annotated[ZeroShot | Retrieval, Field(discriminator="task")]


class Bootstrap(Spec):
    """95 % intervals: resample whole groups (`cluster_field`), or single queries where it is None."""

    resamples: int = Field(default=1000, ge=100)
    cluster_field: str | None = None
    seed: int = 0


class EvaluateSpec(StageSpec):
    """Score one feature set on held-out splits that curation and training never saw (checked by uid)."""

    MAKES: ClassVar[str] = "evaluation"
    kind: Literal["evaluate"] = "evaluate"
    features: FeatureSetRef
    pairs: ShardSetRef
    split: SplitRef
    splits: tuple[str, ...] = Field(min_length=1)
    tasks: dict[str, Task] = Field(min_length=1)
    bootstrap: Bootstrap = Bootstrap()

    def build(self) -> StageFunction:
        """The evaluate function."""
        from evaluation.evaluate import run

        return run


class ReportSpec(StageSpec):
    """One self-contained HTML page and `report.json` over everything a run made."""

    MAKES: ClassVar[str] = "report"
    kind: Literal["report"] = "report"
    title: str
    pairs: ShardSetRef
    split: SplitRef
    selection: SelectionRef
    rewrites: CaptionLayerRef | None = None
    evaluations: dict[str, EvaluationRef] = Field(
        min_length=1, description="label -> evaluation, in order of the pipeline"
    )
    compare: dict[str, str] = Field(default_factory=dict, description="label -> label it is compared with")
    controls: tuple[str, ...] = Field(default=(), description="labels that are controls, not steps")
    checkpoints: dict[str, CheckpointRef] = Field(
        default_factory=dict, description="label -> checkpoint, for loss curves"
    )
    gallery: FeatureSetRef | None = Field(default=None, description="features for the retrieved pictures")
    gallery_split: str | None = None
    gallery_vendors: tuple[str, ...] = Field(
        default=(), description="show only these values of metadata field `vendor`"
    )
    queries: tuple[str, ...] = ()
    headline: tuple[str, str, str] = Field(description="split, task, metric shown first")

    def build(self) -> StageFunction:
        """The report function."""
        from evaluation.report import run

        return run
