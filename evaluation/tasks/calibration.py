"""Whether a zero-shot probability means what it says, before and after a temperature fitted on another split.

Legend: B pictures of a block, N pairs of the fit, C classes, D embedding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation.metrics.base import Metric
from evaluation.metrics.calibration import calibration_metrics, expected_ece, reliability
from evaluation.metrics.ranked import Hit
from evaluation.rows import Doubles, Ints, Rows
from evaluation.scores import cosines, fitted_temperature, log_likelihoods, softmax
from evaluation.specs import Calibration
from evaluation.subject import Answer, Labelled, Subject, first_by_hash
from evaluation.tasks.zero_shot import ranked_rows

SCALED = "_scaled"
# one number is fitted: 10,000 pairs settle it, and fewer where their logits would fill 200 MB
_MOST_FITTED, _MOST_LOGITS = 10_000, 25_000_000


def answer(spec: Calibration, subject: Subject) -> list[Answer]:
    """ECE, NLL and Brier score of zero-shot, with the model's own temperature and with the fitted one (`_scaled`).

    Raises:
        EvaluationError: pairs have several classes, or the fit split is scored.
    """
    tested, classes_CD = subject.tested(spec.prompts), subject.data.class_features(spec.prompts)
    if tested.truth is not None:
        raise EvaluationError(
            f"prompts.field: {spec.prompts.field!r} has lists of classes; calibration needs one class a pair"
        )
    chosen = _fitted(spec, spec.fit, subject, classes_CD) if spec.fit else {}
    scales = {"": subject.logit_scale}
    if chosen:
        scales[SCALED] = subject.logit_scale / chosen["temperature"]
    rows = _rows(subject, tested, classes_CD, scales)
    metrics = [
        metric for suffix, scale in scales.items()
        for metric in calibration_metrics(spec.bins, len(tested.classes), scale, suffix)
    ]  # fmt: skip
    extra = {f"bins{suffix}": reliability(rows, f"confidence{suffix}", spec.bins) for suffix in scales}
    extra["expected_ece"] = {
        f"ece{suffix}": expected_ece(np.asarray(rows.numbers[f"confidence{suffix}"]), spec.bins) for suffix in scales
    }  # type: ignore[assignment]
    return [Answer(rows, [*metrics, Hit("top1")], chosen=chosen, extra=extra), _shuffled(rows, metrics[:1])]


def _fitted(spec: Calibration, split: str, subject: Subject, classes_CD: Floats) -> Mapping[str, Any]:
    """The temperature with the least NLL on pairs that are not scored, and on which."""
    labelled, left_out = subject.fitting_labelled(split, spec.prompts)
    if labelled.truth is not None:
        raise EvaluationError(f"fit: {split!r} has lists of classes; calibration needs one class a pair")
    most = max(1, min(_MOST_FITTED, _MOST_LOGITS // len(classes_CD)))
    kept = set(first_by_hash(labelled.uids, most))
    rows = [row for row, uid in enumerate(labelled.uids) if uid in kept]
    uids = [labelled.uids[row] for row in rows]
    logits_NC = np.concatenate([cosines(images_BD, classes_CD) for images_BD in subject.data.image_blocks(uids)])
    logits_NC *= subject.logit_scale
    return {
        "temperature": fitted_temperature(logits_NC, labelled.labels[rows]),
        "chosen_on": split,
        "pairs": len(uids),
        "left_out_by_hash": len(labelled.uids) - len(uids),
        "left_out_scored_pictures": left_out,
    }


def _rows(subject: Subject, tested: Labelled, classes_CD: Floats, scales: Mapping[str, float]) -> Rows:
    """Zero-shot rows with `confidence`, `nll` and `brier` at every scale."""
    columns: dict[str, list[Doubles]] = {}

    def watched() -> Iterator[Doubles]:
        start = 0
        for images_BD in subject.data.image_blocks(tested.uids):
            scores_BC = cosines(images_BD, classes_CD)
            labels_B = tested.labels[start : start + len(images_BD)]
            start += len(images_BD)
            for suffix, scale in scales.items():
                for name, column_B in _measured(scale * scores_BC, labels_B).items():
                    columns.setdefault(name + suffix, []).append(column_B)
            yield scores_BC

    rows = ranked_rows(tested, watched(), subject.logit_scale)
    return replace(rows, numbers={**rows.numbers, **{name: np.concatenate(parts) for name, parts in columns.items()}})


def _measured(logits_BC: Doubles, labels_B: Ints) -> dict[str, Doubles]:
    probabilities_BC, log_own_B = softmax(logits_BC), log_likelihoods(logits_BC, labels_B)
    # sum over classes of (p - y)^2
    brier_B = (probabilities_BC**2).sum(axis=1) - 2 * np.exp(log_own_B) + 1
    return {"confidence": probabilities_BC.max(axis=1), "nll": -log_own_B, "brier": brier_B}


def _shuffled(rows: Rows, metrics: list[Metric], seed: int = 0) -> Answer:
    """The same probabilities against labels of other pictures: they must look badly calibrated."""
    order = np.random.default_rng(seed).permutation(len(rows))
    labels = [rows.labels[row] for row in order]
    hits = [label == predicted for label, predicted in zip(labels, rows.predictions, strict=True)]
    numbers = {"correct": np.array(hits, np.int64), "confidence": rows.numbers["confidence"]}
    return Answer(replace(rows, labels=labels, numbers=numbers), metrics, "shuffled_labels")
