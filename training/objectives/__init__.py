"""Objectives: tensors in, scalar out. An objective never sees a model, so its limiting cases are exact.

To add one: a spec in `training/specs/objectives.py`, a file here with a class like the others, a line in `_FILES`,
a test.
"""

import importlib

from torch import Tensor

from data.errors import ModelError, nearest
from training.objectives.base import Context, Loss, Names, Objective
from training.specs import Objective as ObjectiveSpec
from training.specs import Term

__all__ = ["Context", "Loss", "Names", "Objective", "WeightedSum", "build_objective"]

_FILES = {
    "info_nce": "contrast.InfoNCE",
    "siglip": "contrast.SigLIP",
    "multi_text_info_nce": "multi_text.MultiTextInfoNCE",
    "info_loob": "leave_one_out.InfoLOOB",
    "soft_info_nce": "soft_contrast.SoftInfoNCE",
    "token_matching": "token_matching.TokenMatching",
    "masked_words": "masked_words.MaskedWords",
    "principal_info_nce": "principal.PrincipalInfoNCE",
    "hybrid_distillation": "distillation.HybridDistillation",
    "similarity_rows": "similarity_rows.SimilarityRows",
    "replayed_vocabulary": "replay.ReplayedVocabulary",
    "feature_cosine": "distillation.FeatureCosine",
    "random_reference": "reference.RandomReference",
    "alignment": "reference.Alignment",
    "router_balance": "routing.RouterBalance",
    "arc_margin": "margins.ArcMargin",
    "caption_arc_margin": "margins.CaptionArcMargin",
    "hard_negatives": "hard_negatives.HardNegatives",
}


def build_objective(spec: ObjectiveSpec) -> Objective:
    """Import and make the objective a spec names."""
    module, _, name = _FILES[spec.objective].partition(".")
    made: Objective = getattr(importlib.import_module(f"training.objectives.{module}"), name)(spec)
    return made


class WeightedSum:
    """The training loss of a phase: named, weighted objectives; a weight may move linearly over the phase."""

    def __init__(self, terms: dict[str, Term]) -> None:
        self.terms = {label: (term, build_objective(term.loss)) for label, term in terms.items()}

    def verify(self, names: Names) -> None:
        """Check before the first step that everything the objectives read is there.

        Raises:
            ModelError: names the objective, what it needs and what there is.
        """
        for label, (_, objective) in self.terms.items():
            for need in sorted(objective.needs - names.keys()):
                raise ModelError(
                    f"objective {label!r} needs {need!r}, which this model, view and teachers do not give"
                    f"{nearest(need, names)}"
                )

    def __call__(self, names: Names, context: Context) -> Loss:
        """Return the weighted sum and every objective's own parts, prefixed by its label."""
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for label, (term, objective) in self.terms.items():
            weight = (
                term.weight
                if term.end_weight is None
                else term.weight + context.progress * (term.end_weight - term.weight)
            )
            if weight == 0:
                continue
            value, more = objective(names, context)
            total = value * weight if total is None else total + value * weight
            parts |= {label: value.detach(), **{f"{label}/{key}": part.detach() for key, part in more.items()}}
        assert total is not None, "every objective has weight 0"
        return Loss(total, parts)
