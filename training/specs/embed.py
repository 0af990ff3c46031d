"""The embed stage: which pictures, captions, prompts and queries become features. No torch."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.spec import CaptionLayerRef, CheckpointRef, Operational, ShardSetRef, Spec, SplitRef
from data.stage import StageFunction, StageSpec


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
