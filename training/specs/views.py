"""The data view of a phase: which pairs in which order, which captions, crops, labels and regions. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from data.spec import Spec


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


class Fallback(Spec):
    """What a drawn caption of too few words gives way to (LaCLIP falls back to the original below two)."""

    source: str = "alt"
    min_words: int = Field(default=2, ge=1, description="words between single spaces")


class TextSlot(Spec):
    """One more caption of each pair beside the main one, drawn by its own numbers."""

    caption_weights: dict[str, float] = Field(min_length=1)
    first_sentence: bool = Field(default=False, description="only what stands before the first `. `")


class Label(Spec):
    """A class of each pair from its metadata; pairs without one have none."""

    field: str
    classes: tuple[str, ...] | None = Field(default=None, description="None: the values of all pairs, sorted")


class BoxField(Spec):
    """Regions from metadata: a list of [center x, center y, width, height] in fractions of the picture."""

    regions: Literal["boxes"] = "boxes"
    field: str = "boxes"
    max_regions: int = Field(default=8, ge=1, description="the first so many")
    min_visible: float = Field(default=0.25, gt=0, le=1, description="of a box's area inside the crop; else left out")


class Grid(Spec):
    """Regions without a detector: a grid of equal tiles over what the tower sees."""

    regions: Literal["grid"] = "grid"
    side: int = Field(default=2, ge=1)


Regions = Annotated[BoxField | Grid, Field(discriminator="regions")]


class View(Spec):
    """Order of pairs and choice of captions: a pure function of (seed, samples seen)."""

    caption_weights: dict[str, float] = Field(default_factory=lambda: {"alt": 1.0}, min_length=1)
    fallback: Fallback | None = Field(default=None, description="for every drawn caption, also those of `texts`")
    texts: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], TextSlot] = Field(
        default_factory=dict, description="more captions of each pair, by slot name"
    )
    caption_noise: float = Field(default=0.0, ge=0, le=1, description="fraction of pairs given another pair's captions")
    label: Label | None = None
    regions: Regions | None = None
    sampler: Sampler = UniformSampler()
    augment: Augment | None = Augment()
    decode: Literal["fast", "exact"] = Field(
        default="fast",
        description="exact: open_clip's very pixels at half the speed; fast differs from them by rounding",
    )
