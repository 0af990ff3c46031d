"""Surgeries: pure changes of a model at the start of a phase. No torch.

What a surgery adds for training only (an *aid*: a head, a decoder, class weights) is left out of the phase's result
unless `keep` says otherwise; the rest of the model is then what it was.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.spec import Spec

if TYPE_CHECKING:
    from training.sizes import ModelSizes


class SurgerySpec(Spec):
    """Base of every surgery."""

    def sizes(self, before: "ModelSizes | None") -> "ModelSizes | None":
        """Sizes of the changed model; aids, which no result needs, are not counted."""
        return before


class Upcycle(SurgerySpec):
    """FFN -> mixture of expert FFNs with a bias-free router (CLIP-MoE, arXiv 2409.19291).

    Experts are earlier phases. One expert with top_k 1 is the dense model with that expert's FFNs.
    """

    surgery: Literal["upcycle"] = "upcycle"
    experts: tuple[str, ...] = Field(min_length=1, description="phase names (or `init`), one per expert")
    top_k: int = Field(default=2, ge=1)
    image_layers: int | None = Field(default=None, ge=1, description="last so many blocks; None: all")
    text_layers: int | None = Field(default=None, ge=1)
    dropout: float = Field(
        default=0.0, ge=0, lt=1,
        description="inside the experts while training; 0.1 in their code; it is drawn anew for each rank and chunk, "
        "so that the result depends on their numbers",
    )  # fmt: skip
    router_std: float = Field(default=0.02, ge=0, description="of the router's random weights; 0: equal shares")
    numbers: tuple[int | None, ...] = Field(
        default=(), description="one per expert: which expert of its phase, where that is a mixture itself, else null"
    )

    @model_validator(mode="after")
    def _a_number_per_expert(self) -> Self:
        if self.numbers and len(self.numbers) != len(self.experts):
            raise ValueError(
                f"{len(self.numbers)} numbers for {len(self.experts)} experts; give one per expert or none"
            )
        return self

    def sizes(self, before: "ModelSizes | None") -> "ModelSizes | None":
        """The mixture's."""
        return before and before.upcycled(len(self.experts), self.top_k, self.image_layers, self.text_layers)


class Reinitialise(SurgerySpec):
    """New random towers of another architecture: the student of a distillation."""

    surgery: Literal["reinitialise"] = "reinitialise"
    architecture: str | dict[str, Any]
    seed: int = 0

    def sizes(self, before: "ModelSizes | None") -> "ModelSizes | None":  # noqa: ARG002
        """Those of the architecture."""
        from training.sizes import count

        return count(self.architecture)


class StretchPositions(SurgerySpec):
    """More text positions by interpolation, the first `keep` as they are (Long-CLIP, arXiv 2403.15378).

    L positions become `factor` * L - (factor - 1) * keep: 77 become 248 by default. With keep = 0 it is the naive
    interpolation of all of them.
    """

    surgery: Literal["stretch_positions"] = "stretch_positions"
    keep: int = Field(default=20, ge=0)
    factor: int = Field(default=4, ge=2)

    def sizes(self, before: "ModelSizes | None") -> "ModelSizes | None":
        """With the longer context."""
        if before is None or before.text is None:
            return before
        return before.with_context(self.factor * before.text.tokens - (self.factor - 1) * self.keep)


class SetLogitScale(SurgerySpec):
    """Another start of the temperature; it trains on unless `trainable` leaves it out."""

    surgery: Literal["set_logit_scale"] = "set_logit_scale"
    value: float = Field(gt=0, description="the factor itself, not its logarithm")


class Tokens(SurgerySpec):
    """Patches and words in the shared space, for token-level objectives; no parameters."""

    surgery: Literal["tokens"] = "tokens"
    keep: Literal[False] = False


class MaskedLanguage(SurgerySpec):
    """Masked words told from the other words and the picture, by cross-attention after chosen text blocks (LightCLIP).

    arXiv 2312.00674; its equations are unverified, so depth, heads and the mask are ours.
    """

    surgery: Literal["masked_language"] = "masked_language"
    mask_fraction: float = Field(default=0.15, gt=0, lt=1)
    fusion_layers: int = Field(default=1, ge=0, description="after the last so many text blocks; 0: no picture")
    num_heads: int = Field(default=4, ge=1)
    seed: int = 0
    keep: bool = False


class CrossModal(SurgerySpec):
    """DCLIP's teacher: regions and caption tokens attend to each other, one vector comes out (arXiv 2505.21549).

    `padding`: `masked` leaves empty places out; `zero` lets them take part as zeros, as the released code does.
    `parts`: `image` pools the regions alone, the control for what the caption's own tokens leak.
    """

    surgery: Literal["cross_modal"] = "cross_modal"
    num_heads: int = Field(default=8, ge=1)
    pool_temperature: float = Field(default=2.0, gt=0)
    padding: Literal["masked", "zero"] = "masked"
    parts: Literal["both", "image"] = "both"
    seed: int = 0
    keep: bool = True


class Classifier(SurgerySpec):
    """Class weights beside the towers, for margins on labels (MCIP, arXiv 2409.01936)."""

    surgery: Literal["classifier"] = "classifier"
    classes: int = Field(ge=2)
    seed: int = 0
    keep: bool = False


Surgery = Annotated[
    Upcycle | Reinitialise | StretchPositions | SetLogitScale | Tokens | MaskedLanguage | CrossModal | Classifier,
    Field(discriminator="surgery"),
]
