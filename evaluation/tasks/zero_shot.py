"""Zero-shot classification: pictures against classes that are only named, as CLIP_benchmark builds them.

Legend: Q pictures, C classes, D embedding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import EvaluationError, nearest
from data.features import Floats
from evaluation.metrics.base import Metric
from evaluation.metrics.classes import MacroF1
from evaluation.metrics.multilabel import multilabel_metrics
from evaluation.metrics.ranked import GroupHit, Hit, zero_shot_metrics
from evaluation.ranks import TIE_TOLERANCE, rank_scores
from evaluation.rows import Doubles, Ints, Rows, group_ids
from evaluation.scores import cosines, softmax
from evaluation.specs import ZeroShot
from evaluation.subject import Answer, Labelled, Subject

Scores = npt.NDArray[np.floating[Any]]
OTHER_CLASS = "other_class"
_DECIMALS = 12
_NAMED = 12  # classes that an error names


def answer(spec: ZeroShot, subject: Subject) -> list[Answer]:
    """Rank all classes for every labelled picture of a split; beside it the majority class and shuffled labels."""
    tested, classes_CD = subject.tested(spec.prompts), subject.data.class_features(spec.prompts)
    if spec.only_classes is not None:
        tested, classes_CD = among(spec.only_classes, tested, classes_CD)
    if tested.truth is not None:
        exact = [cosines(images_BD, classes_CD) for images_BD in subject.data.image_blocks(tested.uids)]
        return multi_label(tested, np.concatenate(exact))
    blocks = (images_BD @ classes_CD.T for images_BD in subject.data.image_blocks(tested.uids))
    numbers, more = _groups(spec, subject, tested)
    rows = ranked_rows(tested, blocks, subject.logit_scale, numbers)
    return [
        Answer(rows, [*zero_shot_metrics(len(tested.classes)), MacroF1("macro_f1"), *more]),
        *controls(tested, rows),
    ]


def among(names: Sequence[str], tested: Labelled, classes_CD: Floats) -> tuple[Labelled, Floats]:
    """The pairs of these classes, and only these classes to choose from: one task of a stream of tasks.

    Raises:
        EvaluationError: a name is no class of the prompts, no pair has one of them, or pairs have lists of classes.
    """
    if tested.truth is not None:
        raise EvaluationError("only_classes: pairs have lists of classes; it takes one class a pair")
    unknown = [name for name in names if name not in tested.classes]
    if unknown:
        hint = nearest(unknown[0], tested.classes) or f"; classes are {', '.join(tested.classes[:_NAMED])}"
        raise EvaluationError(f"only_classes: {unknown[0]!r} is no class of {tested.part.name!r}{hint}")
    wanted = [tested.classes.index(name) for name in dict.fromkeys(names)]
    number_C = np.full(len(tested.classes), -1, np.int64)
    number_C[wanted] = np.arange(len(wanted))
    labels_Q = number_C[tested.labels]
    if not (labels_Q >= 0).any():
        raise EvaluationError(
            f"only_classes: no pair of split {tested.part.name!r} has one of these {len(wanted)}; name others"
        )
    kept = [uid for uid, label in zip(tested.uids, labels_Q, strict=True) if label >= 0]
    others = {uid: OTHER_CLASS for uid, label in zip(tested.uids, labels_Q, strict=True) if label < 0}
    classes = [tested.classes[row] for row in wanted]
    asked = Labelled(tested.part, kept, classes, labels_Q[labels_Q >= 0], None, {**tested.dropped, **others})
    return asked, classes_CD[wanted]


def ranked_rows(
    tested: Labelled, blocks: Iterable[Scores], scale: float, numbers: Mapping[str, npt.NDArray[Any]] | None = None,
    tolerance: float = TIE_TOLERANCE,
) -> Rows:  # fmt: skip
    """Rows of single-label classification from blocks of scores (B, C): rank and ties of the right class, confidence.

    Confidence is the largest softmax of `scale` times the scores.
    """
    confidence: list[Doubles] = []

    def watched() -> Iterator[Scores]:
        for scores_BC in blocks:
            confidence.append(softmax(scale * np.asarray(scores_BC, np.float64)).max(axis=1))
            yield scores_BC

    ranks = rank_scores(watched(), [[label] for label in tested.labels.tolist()], tolerance)
    return Rows(
        ids=tested.uids, clusters=tested.clusters, labels=tested.names,
        predictions=[tested.classes[row] for row in ranks.best], dropped=tested.dropped,
        numbers={
            "rank": ranks.rank, "ties": ranks.ties, "positives": ranks.positives,
            "candidates": np.full(len(tested.uids), len(tested.classes), np.int64),
            "correct": (ranks.rank == 1).astype(np.int64), "confidence": np.concatenate(confidence),
        } | dict(numbers or {}),
    )  # fmt: skip


def controls(tested: Labelled, rows: Rows, seed: int = 0) -> list[Answer]:
    """The most frequent class for everything, and the same predictions against labels that were shuffled."""
    counts_C = np.bincount(tested.labels, minlength=len(tested.classes))
    most = int(counts_C.argmax())
    majority = np.where(tested.labels == most, 1, 2)
    number = {name: row for row, name in enumerate(tested.classes)}
    predicted_Q = np.array([number[name] for name in rows.predictions])
    shuffled_Q = np.random.default_rng(seed).permutation(tested.labels)
    metrics: list[Metric] = [Hit("top1"), GroupHit("mean_per_class_recall")]

    def control(name: str, labels: Sequence[int], ranks: np.ndarray, predictions: list[str]) -> Answer:
        numbers = {
            "rank": ranks.astype(np.int64), "positives": np.ones(len(ranks), np.int64),
            "candidates": rows.numbers["candidates"], "correct": (ranks == 1).astype(np.int64),
        }  # fmt: skip
        names = [tested.classes[label] for label in labels]
        return Answer(Rows(rows.ids, rows.clusters, names, predictions, numbers, dropped=rows.dropped), metrics, name)

    return [
        control("majority", tested.labels.tolist(), majority, [tested.classes[most]] * len(rows)),
        control("shuffled_labels", shuffled_Q.tolist(), np.where(predicted_Q == shuffled_Q, 1, 2), rows.predictions),
    ]


def multi_label(tested: Labelled, scores_QC: Doubles) -> list[Answer]:
    """mAP of scores (Q, C) against several classes a picture, and of shuffled pictures.

    Scores that differ by rounding only are made equal, for ties share their precision.
    """
    assert tested.truth is not None
    truth_QC, metrics = tested.truth, multilabel_metrics(tested.classes)
    scores_QC = np.asarray(np.round(scores_QC, _DECIMALS), np.float64)
    extra = {"classes": len(tested.classes), "classes_without_positives": int((~truth_QC.any(axis=0)).sum())}
    order = np.random.default_rng(0).permutation(len(tested.uids))

    def rows(truth: np.ndarray) -> Rows:
        best = scores_QC.argmax(axis=1)
        numbers = {f"score_{c}": scores_QC[:, c] for c in range(len(tested.classes))}
        numbers |= {f"truth_{c}": truth[:, c].astype(np.int64) for c in range(len(tested.classes))}
        return Rows(
            tested.uids, tested.clusters, tested.names, [tested.classes[row] for row in best], numbers,
            dropped=tested.dropped,
        )  # fmt: skip

    return [Answer(rows(truth_QC), metrics, extra=extra), Answer(rows(truth_QC[order]), metrics, "shuffled_labels")]


def _groups(spec: ZeroShot, subject: Subject, tested: Labelled) -> tuple[dict[str, Ints], list[Metric]]:
    if spec.group_field is None:
        return {}, []
    values = subject.data.values(spec.group_field)
    groups_Q = group_ids([str(values.get(uid, "")) for uid in tested.uids])
    ks = (1, 5) if len(tested.classes) > 5 else (1,)
    return {"group": groups_Q}, [GroupHit(f"worst_{spec.group_field}_top{k}", k, "group", "worst") for k in ks]
