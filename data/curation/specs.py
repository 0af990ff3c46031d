"""What curation is made of: metadata, matching, inspection, duplicates, filters, balancing. No torch, no ray."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data.spec import (
    DuplicatesRef,
    FeatureSetRef,
    InspectionRef,
    MatchesRef,
    Operational,
    ShardSetRef,
    Spec,
    SplitRef,
)
from data.stage import StageFunction, StageSpec

# ---------------------------------------------------------------------------------------------------------- metadata


class PoolNgrams(Spec):
    """Entries from the pool's own captions: n-grams of at most `max_words` seen at least `min_count` times."""

    source: Literal["pool_ngrams"] = "pool_ngrams"
    language: str = Field(default="en", description="by_language: of captions in this language")
    max_words: int = Field(default=2, ge=1, le=8)
    min_count: int = Field(default=5, ge=1)


class WordFrequencies(Spec):
    """The `top` most frequent words of a language (package wordfreq), as unigrams above a count are in the paper."""

    source: Literal["wordfreq"] = "wordfreq"
    language: str = "en"
    top: int = Field(default=50_000, ge=1)
    min_per_million: float = Field(default=0.0, ge=0, description="leave out words rarer than this")


class Unigrams(Spec):
    """A file of `word<TAB>count` lines, e.g. of a Wikipedia dump: words seen at least `min_count` times."""

    source: Literal["unigrams"] = "unigrams"
    language: str = "en"
    path: Annotated[str, Operational]
    min_count: int = Field(default=100, ge=1, description="the paper's: 100")


class Bigrams(Spec):
    """English bigrams with pointwise mutual information of at least `min_pmi` bits (package symspellpy's counts)."""

    source: Literal["bigrams"] = "bigrams"
    language: str = "en"
    min_pmi: float = 5.0


class PageTitles(Spec):
    """A file of `title<TAB>views` lines: titles of pages with at least `min_views` views; `_` is a space."""

    source: Literal["titles"] = "titles"
    language: str = "en"
    path: Annotated[str, Operational]
    min_views: int = Field(default=70, ge=0)


class WordNet(Spec):
    """WordNet lemma names as synsets have them, and the numbers 0 to 99: from NLTK's corpus, or a folder."""

    source: Literal["wordnet"] = "wordnet"
    language: str = "en"
    folder: Annotated[str | None, Operational] = Field(
        default=None, description="folder of WordNet's own data.noun, data.verb ... files; None: NLTK's corpus"
    )
    numbers: bool = Field(default=True, description="add 0, 1 ... 99, as MetaCLIP does")


class EntryFile(Spec):
    """A text file with one entry a line (or a JSON list), spaces kept."""

    source: Literal["file"] = "file"
    language: str = "en"
    path: Annotated[str, Operational]


Metadata = Annotated[
    PoolNgrams | WordFrequencies | Unigrams | Bigrams | PageTitles | WordNet | EntryFile, Field(discriminator="source")
]


class MatchSpec(StageSpec):
    """Find each caption's metadata entries: MetaCLIP's substring rule, shard by shard."""

    MAKES: ClassVar[str] = "matches"
    kind: Literal["match"] = "match"
    pairs: ShardSetRef
    split: SplitRef
    splits: tuple[str, ...] = ("train",)
    caption_source: str = "alt"
    metadata: tuple[Metadata, ...] = Field(min_length=1)
    matching: Literal["exact", "relaxed"] = "exact"
    inspection: InspectionRef | None = Field(
        default=None, description="by language (MetaCLIP 2): an entry matches captions of its own language only"
    )

    def source_identity(self) -> dict[str, Any]:
        """Digest of the files that entries come from."""
        from data.sources import entry_files_identity

        return entry_files_identity(self.metadata)

    def build(self) -> StageFunction:
        """The match function."""
        from data.curation.matches import run

        return run


# -------------------------------------------------------------------------------------------------------- inspection


class InspectSpec(StageSpec):
    """Look at every picture and caption once: checksum, size, perceptual hash, sharpness, entropy, language."""

    MAKES: ClassVar[str] = "inspection"
    kind: Literal["inspect"] = "inspect"
    pairs: ShardSetRef
    caption_source: str = "alt"
    max_image_pixels: int = Field(default=64_000_000, ge=1, description="larger pictures are not decoded")

    def build(self) -> StageFunction:
        """The inspect function."""
        from data.curation.inspection import run

        return run


class ExactImages(Spec):
    """The same bytes."""

    by: Literal["exact"] = "exact"


class NearImages(Spec):
    """Perceptual hashes that differ in at most `max_distance` of 64 bits."""

    by: Literal["near_image"] = "near_image"
    max_distance: int = Field(default=3, ge=0, le=7)


class NearCaptions(Spec):
    """Captions whose sets of word n-grams have a Jaccard similarity of at least `min_similarity`.

    One of at most `ngram_words` words takes no part: many pictures are rightly called "dog".
    """

    by: Literal["near_caption"] = "near_caption"
    min_similarity: float = Field(default=0.9, gt=0, le=1)
    ngram_words: int = Field(default=2, ge=1)
    permutations: int = Field(default=128, ge=16)


class Semantic(Spec):
    """SemDeDup (arXiv 2303.09540): cosine above 1 - epsilon inside a k-means cluster of image_features."""

    by: Literal["semantic"] = "semantic"
    features: FeatureSetRef
    clusters: int = Field(default=100, ge=1)
    epsilon: float = Field(default=0.05, gt=0, lt=1)


Likeness = Annotated[ExactImages | NearImages | NearCaptions | Semantic, Field(discriminator="by")]


class Protected(Spec):
    """A shard set that is evaluated on: none of its pictures, nor a near copy, is trained on."""

    inspection: InspectionRef


class DedupSpec(StageSpec):
    """Group pairs that are alike, and name those that an evaluation holds too; `curate` keeps one of each group."""

    MAKES: ClassVar[str] = "duplicates"
    kind: Literal["dedup"] = "dedup"
    pairs: ShardSetRef
    split: SplitRef
    splits: tuple[str, ...] = Field(default=("train",), description="duplicates are sought among these")
    inspection: InspectionRef
    caption_source: str = "alt"
    alike: tuple[Likeness, ...] = Field(default=(ExactImages(), NearImages()), min_length=1)
    protect_splits: bool = Field(default=True, description="every other split counts as an evaluation")
    protect: dict[str, Protected] = Field(default_factory=dict, description="label -> evaluation")
    protect_distance: int = Field(default=3, ge=0, le=7, description="bits of the perceptual hash: a near copy")
    seed: int = 0

    def build(self) -> StageFunction:
        """The dedup function."""
        from data.curation.dedup import run

        return run


# ----------------------------------------------------------------------------------------------------------- filters


class CaptionLength(Spec):
    """Keep captions within bounds of words and characters."""

    filter: Literal["caption_length"] = "caption_length"
    min_words: int = Field(default=1, ge=0)
    max_words: int = Field(default=256, ge=1)
    min_characters: int = Field(default=2, ge=0)
    max_characters: int = Field(default=2_000, ge=1)


class CaptionCharacters(Spec):
    """Keep captions of which at least this fraction are letters or spaces (of any script)."""

    filter: Literal["caption_characters"] = "caption_characters"
    min_letters_fraction: float = Field(default=0.6, ge=0, le=1)


class CaptionRepetition(Spec):
    """Drop captions in which one word makes up more than this fraction of the words (from `min_words` on)."""

    filter: Literal["caption_repetition"] = "caption_repetition"
    max_fraction: float = Field(default=0.5, gt=0, le=1)
    min_words: int = Field(default=4, ge=2)


class Language(Spec):
    """Keep captions in these languages (ISO 639-1), found with at least `min_score` certainty."""

    READS: ClassVar[str] = "inspection"
    filter: Literal["language"] = "language"
    languages: tuple[str, ...] = Field(default=("en",), min_length=1)
    min_score: float = Field(default=0.3, ge=0, le=1)


class Decodable(Spec):
    """Keep pictures that decode whole."""

    READS: ClassVar[str] = "inspection"
    filter: Literal["decodable"] = "decodable"


class ImageSize(Spec):
    """Keep pictures whose shorter side has at least `min_side` pixels."""

    READS: ClassVar[str] = "inspection"
    filter: Literal["image_size"] = "image_size"
    min_side: int = Field(default=64, ge=1)


class AspectRatio(Spec):
    """Keep pictures whose longer side is at most `max_ratio` times the shorter."""

    READS: ClassVar[str] = "inspection"
    filter: Literal["aspect_ratio"] = "aspect_ratio"
    max_ratio: float = Field(default=3.0, ge=1)


class Sharpness(Spec):
    """Drop blurred pictures: variance of the Laplacian of the grey picture (longer side 256) below `min_variance`."""

    READS: ClassVar[str] = "inspection"
    filter: Literal["sharpness"] = "sharpness"
    min_variance: float = Field(default=20.0, ge=0)


class Entropy(Spec):
    """Drop empty pictures: entropy of the grey values' histogram below `min_bits` (of 8)."""

    READS: ClassVar[str] = "inspection"
    filter: Literal["entropy"] = "entropy"
    min_bits: float = Field(default=1.0, ge=0, le=8)


class MetaNumber(Spec):
    """Keep pairs whose metadata `field` is a number in [at_least, at_most], e.g. NSFW or watermark probability."""

    filter: Literal["meta_number"] = "meta_number"
    field: str
    at_least: float | None = None
    at_most: float | None = None
    keep_missing: bool = Field(default=True, description="keep pairs without the field")


class MetaFlag(Spec):
    """Drop pairs whose metadata `field` is one of `values` (compared as text, case ignored), e.g. NSFW: UNSURE."""

    filter: Literal["meta_flag"] = "meta_flag"
    field: str
    values: tuple[str, ...] = Field(default=("true", "1", "nsfw"), min_length=1)


class MetaValue(Spec):
    """Keep pairs whose metadata `field`, as text, is one of `values`: the pairs of one task of a stream, of one source.

    Exact, capitals count; what is no text is compared as JSON writes it: true, 3, ["a", "b"].
    """

    filter: Literal["meta_value"] = "meta_value"
    field: str
    values: tuple[str, ...] = Field(min_length=1)
    absent: Literal["keep", "drop"] = Field(default="drop", description="pairs without the field")


class UrlDomain(Spec):
    """Drop pairs whose metadata `field` is a URL of one of these domains or below one."""

    filter: Literal["url_domain"] = "url_domain"
    field: str = "url"
    domains: tuple[str, ...] = Field(min_length=1)


class ClipScore(Spec):
    """Keep pairs whose image and caption features have at least this cosine (of the `features` of the stage)."""

    READS: ClassVar[str] = "features"
    filter: Literal["clip_score"] = "clip_score"
    min_cosine: float = Field(default=0.28, ge=-1, le=1)


Filter = Annotated[
    CaptionLength
    | CaptionCharacters
    | CaptionRepetition
    | Language
    | Decodable
    | ImageSize
    | AspectRatio
    | Sharpness
    | Entropy
    | MetaNumber
    | MetaFlag
    | MetaValue
    | UrlDomain
    | ClipScore,
    Field(discriminator="filter"),
]

# ------------------------------------------------------------------------------------------------------------ curate


class Balance(Spec):
    """MetaCLIP's balancing (arXiv 2309.16671).

    p_e = min(1, t / c_e), P(keep) = 1 - prod(1 - p_e) over matched entries.
    """

    matches: MatchesRef
    t: int = Field(ge=1, description="entries with fewer matches than this are always kept")
    by_language: bool = Field(
        default=False, description="MetaCLIP 2: t is English's; each language's from English's share in the tail"
    )


class CurateSpec(StageSpec):
    """Choose the pairs to train on: filters, then one of each group of duplicates, then balancing."""

    REVISION: ClassVar[int] = 2
    MAKES: ClassVar[str] = "selection"
    kind: Literal["curate"] = "curate"
    pairs: ShardSetRef
    split: SplitRef
    splits: tuple[str, ...] = ("train",)
    caption_source: str = "alt"
    filters: tuple[Filter, ...] = Field(default=(), description="the first that drops a pair is its reason")
    inspection: InspectionRef | None = Field(default=None, description="what filters on pictures and language read")
    features: FeatureSetRef | None = Field(default=None, description="what the clip_score filter reads")
    duplicates: DuplicatesRef | None = Field(default=None, description="keep one pair of each group")
    balance: Balance | None = Field(default=None, description="None keeps every pair that is left")
    seed: int = 0

    def build(self) -> StageFunction:
        """The curate function."""
        from data.curation.curate import run

        return run
