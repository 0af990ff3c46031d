"""Zero-shot top-1 on pictures from elsewhere against that on the set they imitate (Taori et al., NeurIPS 2020).

Both use the same classes: where the shifted set has fewer (ImageNet-R has 200 of 1,000), `prompts.classes` names those,
and pairs of other classes of the reference are dropped with a reason.
"""

from typing import Any

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.differences import Gap
from evaluation.rows import Rows
from evaluation.specs import NaturalShift
from evaluation.subject import Answer, Part, Subject
from evaluation.tasks.zero_shot import ranked_rows
from training.specs import Prompts

OTHER_CLASS = "other_class"


def answer(spec: NaturalShift, subject: Subject) -> list[Answer]:
    """Classify both sets alike; the drop is reference minus here, with an interval over both samples.

    Raises:
        EvaluationError: the two sets do not have the same classes, or pairs have several.
    """
    reference = subject.other(spec.reference)
    here, there = subject.data.class_names(spec.prompts), reference.data.class_names(spec.prompts)
    if here != there:
        only = sorted(set(here) ^ set(there))[0]
        raise EvaluationError(
            f"natural_shift: {subject.data.name} and {spec.reference} have different classes, e.g. {only!r}; name the "
            "common ones as prompts.classes"
        )
    ours = _rows(spec.prompts, subject, subject.part)
    theirs = _rows(spec.prompts, reference, _of_these_classes(spec.prompts, reference, here))
    same = reference.data.name == subject.data.name  # clusters of one set are the same things in each of its splits
    both = _joined(ours, theirs, f"{spec.reference}:", "" if same else f"{spec.reference}:")
    chance = 1 / len(here)
    metrics: list[Metric] = [
        Mean("top1", "correct", where="is_here", chance_value=chance),
        Mean("reference_top1", "correct", where="is_reference", chance_value=chance),
        Gap("drop", "correct", where="is_reference", against="is_here", better="lower"),
    ]
    return [Answer(both, metrics, extra={"n": len(ours), "reference": spec.reference, "reference_n": len(theirs)})]


def _of_these_classes(prompts: Prompts, subject: Subject, classes: list[str]) -> Part:
    values, known, part = subject.data.values(prompts.field), set(classes), subject.part
    other = {
        uid for uid in part.uids
        if uid in values and not isinstance(values[uid], int | list) and str(values[uid]) not in known
    }  # fmt: skip
    if len(other) == len(part.uids):
        raise EvaluationError(f"natural_shift: no pair of {subject.data.name}/{part.name} has one of the classes")
    kept = [uid for uid in part.uids if uid not in other]
    return part._replace(uids=kept, dropped=part.dropped | dict.fromkeys(sorted(other), OTHER_CLASS))


def _rows(prompts: Prompts, subject: Subject, part: Part) -> Rows:
    tested, classes_CD = subject.data.labelled(part, prompts), subject.data.class_features(prompts)
    if tested.truth is not None:
        raise EvaluationError("natural_shift: pairs have lists of classes; it scores one class a pair")
    blocks = (images_BD @ classes_CD.T for images_BD in subject.data.image_blocks(tested.uids))
    return ranked_rows(tested, blocks, subject.logit_scale)


def _joined(ours: Rows, theirs: Rows, prefix: str, cluster_prefix: str) -> Rows:
    numbers: dict[str, Any] = {
        name: np.concatenate([column, theirs.numbers[name]]) for name, column in ours.numbers.items()
    }
    numbers["is_here"] = np.repeat(np.array([1, 0], np.int8), [len(ours), len(theirs)])
    numbers["is_reference"] = 1 - numbers["is_here"]
    return Rows(
        ids=[*ours.ids, *(prefix + uid for uid in theirs.ids)],
        clusters=[*ours.clusters, *(cluster_prefix + cluster for cluster in theirs.clusters)],
        labels=[*ours.labels, *theirs.labels], predictions=[*ours.predictions, *theirs.predictions], numbers=numbers,
        dropped={**ours.dropped, **{prefix + uid: reason for uid, reason in theirs.dropped.items()}},
    )  # fmt: skip
