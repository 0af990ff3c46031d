"""Zero-shot top-1 per value of labelled factors, each beside all pictures that have another value.

The axes of arXiv 2410.01534 (pose, background, pattern, size ...) for whatever fields a set has. Its residual from a
line over many reference models needs those models; the gap here needs one.
"""

from collections import Counter
from typing import Any

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.differences import Gap, Worst
from evaluation.rows import Rows
from evaluation.specs import VisualFactors
from evaluation.subject import Answer, Labelled, Subject
from evaluation.tasks.zero_shot import ranked_rows

_MOST_VALUES = 200


def answer(spec: VisualFactors, subject: Subject) -> list[Answer]:
    """Classify once, then look at each value of each field.

    Raises:
        EvaluationError: pairs with several classes, a field of too many values, or no value with enough pairs.
    """
    tested, classes_CD = subject.tested(spec.prompts), subject.data.class_features(spec.prompts)
    if tested.truth is not None:
        raise EvaluationError("visual_factors: pairs have lists of classes; it scores one class a pair")
    blocks = (images_BD @ classes_CD.T for images_BD in subject.data.image_blocks(tested.uids))
    plain = ranked_rows(tested, blocks, subject.logit_scale)
    numbers, chance, extra = dict(plain.numbers), 1 / len(tested.classes), {}
    metrics: list[Metric] = [Mean("top1", "correct", chance_value=chance)]
    for field in spec.fields:
        found = _field(field, subject, tested, plain, spec.min_pairs)
        numbers |= found.columns
        metrics += _metrics(field, found, chance)
        extra[field] = found.table
    if len(metrics) == 1:
        raise EvaluationError(
            f"visual_factors: no value of {', '.join(map(repr, spec.fields))} has {spec.min_pairs} pairs in split "
            f"{subject.part.name!r}; lower min_pairs"
        )
    rows = Rows(
        plain.ids, plain.clusters, plain.labels, plain.predictions, numbers, dropped=plain.dropped
    )  # fmt: skip
    top1 = float(np.mean(plain.numbers["correct"]))
    return [Answer(rows, metrics, extra={"top1": top1, "min_pairs": spec.min_pairs, "factors": extra})]


class _Field:
    """Columns of one field: who has each scored value, and who has another; a pair may have several."""

    def __init__(self) -> None:
        self.columns: dict[str, Any] = {}
        self.table: dict[str, Any] = {}
        self.scored: list[str] = []
        self.alone: set[str] = set()  # values that every pair with the field has: there is no rest


def _field(field: str, subject: Subject, tested: Labelled, plain: Rows, min_pairs: int) -> _Field:
    values = subject.data.values(field)
    own = [_names(values.get(uid)) for uid in tested.uids]
    counts, found = Counter(name for names in own for name in names), _Field()
    found.scored = sorted(name for name, count in counts.items() if count >= min_pairs)
    if len(found.scored) > _MOST_VALUES:
        raise EvaluationError(
            f"visual_factors.fields: {field!r} has {len(found.scored)} values of {min_pairs} pairs; a factor has at "
            f"most {_MOST_VALUES}"
        )
    has_Q, correct_Q = np.array([bool(names) for names in own]), plain.numbers["correct"]
    for name in sorted(counts):
        mask_Q = np.array([name in names for names in own])
        top1 = float(correct_Q[mask_Q].mean())
        found.table[name] = {"n": counts[name], "top1": top1, "scored": name in found.scored}
        if name in found.scored:
            found.columns[f"{field}={name}"] = mask_Q.astype(np.int8)
            found.columns[f"{field}!={name}"] = (has_Q & ~mask_Q).astype(np.int8)
            found.alone |= set() if (has_Q & ~mask_Q).any() else {name}
    return found


def _metrics(field: str, found: _Field, chance: float) -> list[Metric]:
    metrics: list[Metric] = []
    for name in found.scored:
        column = f"{field}={name}"
        metrics.append(Mean(f"{column}_top1", "correct", where=column, chance_value=chance))
        if name not in found.alone:
            metrics.append(Gap(f"{column}_gap", "correct", where=column, against=f"{field}!={name}", better="higher"))
    if len(found.scored) > 1:
        kinds = tuple(f"{field}={name}" for name in found.scored)
        metrics.append(Worst(f"worst_{field}_top1", "correct", kinds, chance))
    return metrics


def _names(value: Any) -> set[str]:
    if value is None:
        return set()
    return {str(one) for one in value} if isinstance(value, list) else {str(value)}
