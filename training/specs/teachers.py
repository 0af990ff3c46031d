"""Teachers: frozen by construction; what they say of a batch goes by their label. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from data.spec import CheckpointRef, FeatureSetRef, Spec


class RandomTokens(Spec):
    """Texts of uniform random tokens, drawn once: VR-LwF's replayed vocabulary without any data.

    `safe` leaves start and end tokens out of the draw, which else move the place where a text is read.
    """

    vocabulary: Literal["random_tokens"] = "random_tokens"
    texts: int = Field(default=1000, ge=1)
    tokens: int = Field(default=10, ge=1, description="of a text, without start and end")
    safe: bool = True
    seed: int = 0


class GivenTexts(Spec):
    """Texts of one's own: class prompts (which make it learning without forgetting), a word list."""

    vocabulary: Literal["given_texts"] = "given_texts"
    texts: tuple[str, ...] = Field(min_length=1)


Vocabulary = Annotated[RandomTokens | GivenTexts, Field(discriminator="vocabulary")]


class FrozenModel(Spec):
    """A frozen checkpoint that sees the student's own batch; with a vocabulary, its features too."""

    teacher: Literal["frozen_model"] = "frozen_model"
    checkpoint: CheckpointRef
    vocabulary: Vocabulary | None = None


class CachedFeatures(Spec):
    """Features computed once by `embed`, looked up by uid and caption."""

    teacher: Literal["cached_features"] = "cached_features"
    features: FeatureSetRef


Teacher = Annotated[FrozenModel | CachedFeatures, Field(discriminator="teacher")]
