"""What an evaluation and a report are made of. No torch, no ray."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

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

# ------------------------------------------------------------------------------------------------------------- heads
# What turns image_features into class scores. A head fits on one split and chooses its hyper-parameters on another.


class NearestNeighbours(Spec):
    """k-NN on cosine, each neighbour weighted by exp(cosine / temperature); k chosen on the select split."""

    head: Literal["nearest_neighbours"] = "nearest_neighbours"
    ks: tuple[int, ...] = Field(default=(1, 5, 10, 20, 50), min_length=1)
    temperature: float = Field(default=0.07, gt=0)

    def build(self) -> Any:
        """The head's class."""
        from evaluation.heads.nearest_neighbours import NearestNeighbours as Head

        return Head(self)


class LinearProbe(Spec):
    """Multinomial logistic regression with L2; its strength chosen on the select split, coarse to fine in log space."""

    head: Literal["linear_probe"] = "linear_probe"
    weight_decays: tuple[float, float] = Field(default=(1e-8, 1.0), description="ends of the log grid, smaller first")
    max_iterations: int = Field(default=1000, ge=1)

    def build(self) -> Any:
        """The head's class."""
        from evaluation.heads.linear_probe import LinearProbe as Head

        return Head(self)


class GDA(Spec):
    """Gaussian discriminant analysis added to zero-shot (ICLR 2024): one shared covariance, ridge by its trace.

    alpha weighs it against zero-shot and is chosen on the select split.
    """

    head: Literal["gda"] = "gda"
    alphas: tuple[float, ...] = Field(default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2), min_length=1)

    def build(self) -> Any:
        """The head's class."""
        from evaluation.heads import gda

        return gda.GDA(self)


class TipAdapter(Spec):
    """Tip-Adapter (ECCV 2022), training-free: zero-shot + alpha * exp(-beta (1 - cosine)) votes of the shots."""

    head: Literal["tip_adapter"] = "tip_adapter"
    alphas: tuple[float, float] = Field(default=(0.1, 3.0), description="ends of the linear grid")
    betas: tuple[float, float] = Field(default=(1.0, 7.0), description="ends of the linear grid")
    steps: int = Field(default=20, ge=1, description="points of each grid")

    def build(self) -> Any:
        """The head's class."""
        from evaluation.heads.tip_adapter import TipAdapter as Head

        return Head(self)


Head = Annotated[NearestNeighbours | LinearProbe | GDA | TipAdapter, Field(discriminator="head")]

# ------------------------------------------------------------------------------------------------------------- tasks


class TaskSpec(Spec):
    """Base of every task: `build` imports the function (spec, subject) -> list of answers that does it."""

    task: str

    def build(self) -> Callable[..., Any]:
        """The task's function."""
        from importlib import import_module

        return import_module(f"evaluation.tasks.{self.task}").answer  # type: ignore[no-any-return]


class ZeroShot(TaskSpec):
    """Zero-shot classification: per class all templates, normalised, averaged, normalised again (as CLIP_benchmark).

    Pairs with a list of classes are multi-label and scored by mAP. `only_classes`: one task of a stream of tasks.
    """

    task: Literal["zero_shot"] = "zero_shot"
    prompts: Prompts
    group_field: str | None = Field(default=None, description="also the worst value of this field (FMoW, GeoDE ...)")
    only_classes: tuple[str, ...] | None = Field(
        default=None, min_length=2, description="choose among these classes of the prompts; pairs of others are dropped"
    )


class Retrieval(TaskSpec):
    """Image->text among the split's distinct captions and text->image among its pictures; R@k as hit rate."""

    task: Literal["retrieval"] = "retrieval"
    caption_sources: tuple[str, ...] = Field(default=("alt",), min_length=1)
    ks: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)


class ImageRetrieval(TaskSpec):
    """Every picture against the split's other pictures by cosine; right are those of its label. mAP and R@k.

    What GPR1200, CUB and INSTRE measure, with the pictures of one split as queries and as gallery.
    """

    task: Literal["image_retrieval"] = "image_retrieval"
    field: str = Field(description="metadata field with a picture's label")
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 5, 10), min_length=1)


class Probe(TaskSpec):
    """A head fitted on labelled pairs of another split: linear probe, k-NN, GDA, Tip-Adapter; full or few-shot."""

    task: Literal["probe"] = "probe"
    prompts: Prompts
    head: Head
    fit: str = Field(default="train", description="split whose pairs the head fits on")
    select: str = Field(default="val", description="split that chooses hyper-parameters")
    shots: tuple[int, ...] = Field(default=(), description="pairs a class, each a result of its own; empty: all")
    draws: int = Field(default=3, ge=1, description="draws of the shots, averaged per picture")
    augmented: bool = Field(default=False, description="shots also seen in every `Cropped` view of `Scored.views`")
    seed: int = 0


class CaptionSelection(TaskSpec):
    """The right caption against wrong ones of the same picture, by strict inequality (SugarCrepe, ARO).

    `macro_field`: mean over its values (ARO: relation, attribute pair), those with at least `min_cases`.
    """

    task: Literal["caption_selection"] = "caption_selection"
    right: str = "alt"
    wrong: tuple[str, ...] = Field(min_length=1, description="caption sources that are wrong")
    macro_field: str | None = None
    min_cases: int = Field(default=1, ge=1)


class PairedSelection(TaskSpec):
    """Winoground's text, image and group score over items of two pictures and two captions; MMVP is the image score."""

    task: Literal["paired_selection"] = "paired_selection"
    item_field: str = "item"
    caption_source: str = "alt"
    macro_field: str | None = Field(default=None, description="also the mean over this field's values (MMVP's pattern)")


Score = Literal["msp", "entropy", "mcm", "energy"]


class OutOfDistribution(TaskSpec):
    """Tell pictures of other distributions from the split's own by a score of the class probabilities; labels unread.

    `out` names the others: a split of this set, or `set/split`. With `fit`, COOkeD's ensemble: mean of the
    probabilities of zero-shot and a linear probe, by entropy and msp.
    """

    task: Literal["out_of_distribution"] = "out_of_distribution"
    prompts: Prompts
    out: tuple[str, ...] = Field(min_length=1)
    scores: tuple[Score, ...] = ("msp", "entropy", "mcm", "energy")
    fit: str | None = Field(default=None, description="split that the ensemble's linear probe fits on")
    select: str = "val"


class Calibration(TaskSpec):
    """Whether a probability means what it says: ECE (equal width, equal mass), NLL; before and after temperature."""

    task: Literal["calibration"] = "calibration"
    prompts: Prompts
    bins: int = Field(default=15, ge=1)
    fit: str | None = Field(default="val", description="split that the temperature is fitted on; None: not fitted")


class Robustness(TaskSpec):
    """Zero-shot top-1 on every corrupted view of the pictures, per kind and severity, beside the clean one."""

    task: Literal["robustness"] = "robustness"
    prompts: Prompts


class VisualFactors(TaskSpec):
    """Zero-shot top-1 per value of labelled factors (style, viewpoint, background ...), each beside all the others."""

    task: Literal["visual_factors"] = "visual_factors"
    prompts: Prompts
    fields: tuple[str, ...] = Field(min_length=1)
    min_pairs: int = Field(default=20, ge=1, description="values with fewer are counted, not scored")


class NaturalShift(TaskSpec):
    """Zero-shot top-1 here against that of another set with the same classes (ImageNet-V2, -R, -Sketch ...)."""

    task: Literal["natural_shift"] = "natural_shift"
    prompts: Prompts
    reference: str = Field(description="`set/split` without the shift, or a split of this set")


class Geometry(TaskSpec):
    """Modality gap, alignment (mean squared distance of pairs) and uniformity of both modalities (t = 2)."""

    task: Literal["geometry"] = "geometry"
    caption_source: str = "alt"
    most_pairs: int = Field(default=2000, ge=2, description="uniformity looks at the first so many by a hash")


class ConceptAssociation(TaskSpec):
    """Concept association bias: how much more often the other object's colour is named when it is in the picture."""

    task: Literal["concept_association"] = "concept_association"
    template: str = "In this picture, the color of the {object} is {color}"
    single: str = Field(default="single", description="value of `layout` of pictures with one object")
    double: str = Field(default="double", description="value of `layout` of pictures with two")

    def queries(self, objects: Iterable[str], colors: Iterable[str]) -> tuple[str, ...]:
        """What must be embedded: every colour said of every object. For `EmbedSpec.queries`."""
        named = [self.template.replace("{object}", name) for name in objects]
        colors = tuple(colors)
        return tuple(text.replace("{color}", color) for text in named for color in colors)


class DenseProbe(TaskSpec):
    """Foreground against background from frozen patch tokens by a linear head; mIoU over patches."""

    task: Literal["dense_probe"] = "dense_probe"
    fit: str = "train"
    select: str = "val"
    most_patches: int = Field(default=20_000, ge=2, description="patches of `fit` that the head sees, by seed")
    penalties: tuple[float, ...] = Field(
        default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1, description="L2 per patch; chosen on `select`"
    )
    seed: int = 0


class Association(TaskSpec):
    """WinoGAViL: the n best of a cue's candidate pictures against those people chose, by Jaccard."""

    task: Literal["association"] = "association"
    item_field: str = "item"
    template: str = "{article} {cue}"

    def queries(self, cues: Iterable[str]) -> tuple[str, ...]:
        """What must be embedded, for `EmbedSpec.queries`: the cue in lower case after A or An, as DataComp does."""
        articles = ((cue, "An" if cue[:1].lower() in "aeiou" else "A") for cue in cues)
        return tuple(
            self.template.replace("{article}", article).replace("{cue}", cue.lower()) for cue, article in articles
        )


Task = Annotated[
    ZeroShot
    | Retrieval
    | ImageRetrieval
    | Probe
    | CaptionSelection
    | PairedSelection
    | OutOfDistribution
    | Calibration
    | Robustness
    | VisualFactors
    | NaturalShift
    | Geometry
    | ConceptAssociation
    | DenseProbe
    | Association,
    Field(discriminator="task"),
]


def prompts_of(tasks: Iterable[TaskSpec]) -> tuple[Prompts, ...]:
    """The class prompts that these tasks read, each once: what an embed stage must embed for them."""
    found = (getattr(task, "prompts", None) for task in tasks)
    return tuple({prompts.model_dump_json(): prompts for prompts in found if prompts is not None}.values())


# ------------------------------------------------------------------------------------------------------------ stages


class Bootstrap(Spec):
    """95 % intervals: resample whole groups (`cluster_field` of a set), or single queries where a set has none."""

    resamples: int = Field(default=1000, ge=100)
    seed: int = 0


class Scored(Spec):
    """One set of pairs to score: its features, its splits, and what is asked of each."""

    features: FeatureSetRef
    pairs: ShardSetRef
    split: SplitRef
    views: FeatureSetRef | None = Field(default=None, description="features of corrupted or cropped views")
    splits: tuple[str, ...] = Field(min_length=1, description="scored; no head fits or chooses on them")
    tasks: dict[str, Task] = Field(min_length=1)
    cluster_field: str | None = Field(
        default=None, description="pairs that are alike: intervals resample them together"
    )


class EvaluateSpec(StageSpec):
    """Score one checkpoint's features on held-out splits that curation and training never saw."""

    REVISION: ClassVar[int] = 3  # rounding of float32 counts as a tie up to 4e-6
    MAKES: ClassVar[str] = "evaluation"
    kind: Literal["evaluate"] = "evaluate"
    sets: dict[str, Scored] = Field(min_length=1)
    bootstrap: Bootstrap = Bootstrap()

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int | None:
        """Embedded pairs of all sets."""
        pairs = [parents.get(f"sets.{name}.features", {}).get("pairs") for name in self.sets]
        known = [count for count in pairs if count is not None]
        return sum(known) if len(known) == len(pairs) else None

    def build(self) -> StageFunction:
        """The evaluate function."""
        from evaluation.evaluate import run

        return run


class Gallery(Spec):
    """Pictures that a model finds for typed words, among those that may be shown."""

    features: FeatureSetRef
    split: str
    queries: tuple[str, ...] = Field(min_length=1)


class Shown(Spec):
    """Pictures of a set that a report may show: `vendors` are the values of metadata field `vendor`; empty: all."""

    pairs: ShardSetRef
    vendors: tuple[str, ...] = ()


class ReportSpec(StageSpec):
    """One self-contained HTML page and `report.json` over all that a run made, or over any checkpoints' evaluations."""

    REVISION: ClassVar[int] = 2
    MAKES: ClassVar[str] = "report"
    ON_RAY: ClassVar[bool] = False
    kind: Literal["report"] = "report"
    title: str
    evaluations: dict[str, EvaluationRef] = Field(
        min_length=1, description="label -> evaluation, in order of the pipeline"
    )
    compare: dict[str, str] = Field(default_factory=dict, description="label -> label it is compared with")
    controls: tuple[str, ...] = Field(default=(), description="labels that are controls, not steps")
    headline: tuple[str, str, str, str] = Field(description="set, split, task, metric shown first")
    averages: dict[str, tuple[tuple[tuple[str, str, str, str], ...], ...]] = Field(
        default_factory=dict, description="name -> numbers it averages, each the mean of its set, split, task, metric"
    )
    sets: dict[str, Shown] = Field(default_factory=dict, description="set -> its pairs, for example pictures")
    split: SplitRef | None = None
    selection: SelectionRef | None = None
    rewrites: CaptionLayerRef | None = None
    checkpoints: dict[str, CheckpointRef] = Field(
        default_factory=dict, description="label -> checkpoint, for loss curves"
    )
    gallery: Gallery | None = None

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int:
        """Its time does not depend on pairs."""
        del parents
        return 0

    def build(self) -> StageFunction:
        """The report function."""
        from evaluation.report import run

        return run
