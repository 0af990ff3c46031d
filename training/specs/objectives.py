"""Objectives: one weighted term of a training loss each. No torch.

Features go by name: `image_features`, `text_features` of the main caption, `text_features.short` of the text slot
`short` of the view.
"""

from typing import Annotated, Literal

from pydantic import Field

from data.spec import Spec

Gather = Literal["local", "gather_with_grad", "gather_without_grad"]


class InfoNCE(Spec):
    """Symmetric contrast with softmax; `multi_positive` shares the target among pairs with equal captions."""

    objective: Literal["info_nce"] = "info_nce"
    image: str = Field(default="image_features", description="name of the rows that stand for the picture")
    text: str = Field(default="text_features", description="name of the other rows")
    scale: float | None = Field(default=None, gt=0, description="fixed 1 / temperature; None: the model's logit_scale")
    multi_positive: bool = False
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    gather: Gather = "gather_with_grad"


class SigLIP(Spec):
    """Pairwise sigmoid contrast (arXiv 2303.15343); needs a model with logit_bias."""

    objective: Literal["siglip"] = "siglip"
    multi_positive: bool = False
    gather: Gather = "gather_with_grad"


class MultiTextInfoNCE(Spec):
    """LaCLIP-MT: all captions of a picture at once, the main one and those of `texts` (arXiv 2305.20088).

    Its form is unverified. `own`: every caption against the others of its slot; `all`: against those of all slots,
    the same picture's other captions left out.
    """

    objective: Literal["multi_text_info_nce"] = "multi_text_info_nce"
    texts: tuple[str, ...] = Field(min_length=1, description="text slots besides the main caption")
    candidates: Literal["own", "all"] = "own"
    gather: Gather = "gather_with_grad"


class InfoLOOB(Spec):
    """CLOOB: leave-one-out contrast over Hopfield-retrieved features (arXiv 2110.11316).

    `hopfield_beta` None: plain features. `leave_one_out` False: InfoNCE's denominator, with the same sum and factor.
    """

    objective: Literal["info_loob"] = "info_loob"
    hopfield_beta: float | None = Field(default=8.0, ge=0)
    scale: float | None = Field(default=30.0, gt=0, description="fixed 1 / temperature; None: the model's logit_scale")
    leave_one_out: bool = True
    gather: Gather = "gather_with_grad"


class SoftInfoNCE(Spec):
    """Targets that soften over the phase: part of the target goes to other pairs by their similarity (LightCLIP)."""

    objective: Literal["soft_info_nce"] = "soft_info_nce"
    max_softness: float = Field(default=0.2, ge=0, lt=1, description="share of the target at the phase's end")
    ramp: Literal["linear", "cosine"] = "linear"
    gather: Gather = "gather_with_grad"


class TokenMatching(Spec):
    """Contrast of matched patches and words (LightCLIP): each takes its best partner, or one assignment is shared.

    Which relaxation of the assignment the paper takes is unverified.
    """

    objective: Literal["token_matching"] = "token_matching"
    matching: Literal["relaxed", "exact"] = "relaxed"
    takers: Literal["words", "patches", "both"] = Field(default="words", description="who takes the best, if relaxed")
    scale: float | None = Field(default=None, gt=0)
    gather: Gather = "gather_with_grad"


class MaskedWords(Spec):
    """Cross-entropy of the masked words; needs the surgery `masked_language`."""

    objective: Literal["masked_words"] = "masked_words"


class PrincipalInfoNCE(Spec):
    """Long-CLIP's short branch: pictures cut to their first principal components against short captions.

    `scope`: the batch whose components are taken: each rank's own, as in the released code (its result then depends
    on the number of ranks, and with `components` >= rank batch size - 1 nothing is cut), or all ranks'.
    """

    objective: Literal["principal_info_nce"] = "principal_info_nce"
    text: str = "text_features.short"
    components: int = Field(default=32, ge=0)
    scope: Literal["rank", "global"] = "global"
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    gather: Gather = "gather_with_grad"


class HybridDistillation(Spec):
    """HyCD of CLIP-Refine: KL to `hard` * one-hot + (1 - hard) * teacher rows (arXiv 2504.12717)."""

    objective: Literal["hybrid_distillation"] = "hybrid_distillation"
    teacher: str
    hard: float = Field(default=0.5, ge=0, le=1)
    multi_positive: bool = False
    gather: Gather = "gather_with_grad"


class RandomReference(Spec):
    """RaFA of CLIP-Refine: both features of a pair are pulled to one shared random reference vector."""

    objective: Literal["random_reference"] = "random_reference"
    normalised: bool = Field(default=True, description="reference on the unit sphere; False: N(0, I) as it is drawn")
    features: Literal["normalised", "raw"] = Field(default="normalised", description="before or after normalisation")
    reference: Literal["pair", "fixed"] = Field(default="pair", description="fixed: one for all, without randomness")


class Alignment(Spec):
    """Mean squared distance of a pair's two features: CLIP-Refine's control without a prior."""

    objective: Literal["alignment"] = "alignment"


class FeatureCosine(Spec):
    """1 - cosine between student and teacher features, mean over the named ones."""

    objective: Literal["feature_cosine"] = "feature_cosine"
    teacher: str
    features: dict[str, str] = Field(
        default_factory=lambda: {"image_features": "image_features", "text_features": "text_features"}, min_length=1,
        description="student's name -> teacher's name",
    )  # fmt: skip


class SimilarityRows(Spec):
    """KL between teacher's and student's similarity rows, both directions; Mod-X's form by its options.

    `rows` correct: rows whose best column is not the own pair take no part (arXiv 2305.07437). Without `use_scale`
    rows are of cosines.
    """

    objective: Literal["similarity_rows"] = "similarity_rows"
    teacher: str
    temperature: float = Field(default=1.0, gt=0)
    rows: Literal["all", "correct"] = "all"
    drop_diagonal: bool = False
    use_scale: bool = True
    reduction: Literal["mean", "sum"] = Field(default="mean", description="over the rows of the global batch")
    gather: Gather = "gather_with_grad"


class ReplayedVocabulary(Spec):
    """VR-LwF: a picture's distribution over replayed texts stays what the old model said (arXiv 2207.09248).

    `direction`: which distribution weighs: the old one, as in learning without forgetting, or the new one, as one
    third-party implementation has it (which also sharpens the student). Which the paper prints is unverified.
    """

    objective: Literal["replayed_vocabulary"] = "replayed_vocabulary"
    teacher: str
    temperature: float = Field(default=2.0, gt=0)
    direction: Literal["old_to_new", "new_to_old"] = "old_to_new"
    texts_too: bool = Field(default=False, description="also each text's distribution over the pictures")
    gather: Gather = Field(default="local", description="pictures that `texts_too` compares")


class RouterBalance(Spec):
    """Load-balancing loss of CLIP-MoE: k for a uniform router, E for a collapsed one; images + texts / 2.

    `texts`: text slots that count besides the main caption, each half. `scope`: whose tokens are counted, all ranks' or
    each rank's own, as in the released code (its result then depends on the number of ranks). `per_rank`: divided by
    that number, as the released code does.
    """

    objective: Literal["router_balance"] = "router_balance"
    texts: tuple[str, ...] = ()
    scope: Literal["rank", "global"] = "global"
    per_rank: bool = False


class ArcMargin(Spec):
    """Additive angular margin to class weights (MCIP's label loss); needs the surgery `classifier` and a label."""

    objective: Literal["arc_margin"] = "arc_margin"
    scale: float = Field(default=30.0, gt=0, description="typical of ArcFace; MCIP's is unverified")
    margin: float = Field(default=0.3, ge=0, description="radians; MCIP's is unverified")


class CaptionArcMargin(Spec):
    """MCIP's multi-caption margin: a picture's captions stand for its class, those of others for other classes.

    `texts`: text slots besides the main caption. The equation is our reading of a figure.
    """

    objective: Literal["caption_arc_margin"] = "caption_arc_margin"
    texts: tuple[str, ...] = ()
    scale: float = Field(default=30.0, gt=0)
    margin: float = Field(default=0.3, ge=0, description="radians")
    gather: Gather = "gather_with_grad"


class HardNegatives(Spec):
    """NegCLIP: pictures are also contrasted with wrong captions written for them (arXiv 2210.01936)."""

    objective: Literal["hard_negatives"] = "hard_negatives"
    texts: tuple[str, ...] = Field(min_length=1, description="text slots that hold wrong captions")
    gather: Gather = "gather_with_grad"


Objective = Annotated[
    InfoNCE
    | SigLIP
    | MultiTextInfoNCE
    | InfoLOOB
    | SoftInfoNCE
    | TokenMatching
    | MaskedWords
    | PrincipalInfoNCE
    | HybridDistillation
    | RandomReference
    | Alignment
    | FeatureCosine
    | SimilarityRows
    | ReplayedVocabulary
    | RouterBalance
    | ArcMargin
    | CaptionArcMargin
    | HardNegatives,
    Field(discriminator="objective"),
]


class Term(Spec):
    """One weighted objective. `end_weight` makes the weight move linearly from `weight` over the phase."""

    weight: float = 1.0
    end_weight: float | None = None
    loss: Objective
