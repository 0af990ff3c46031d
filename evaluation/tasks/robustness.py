"""Zero-shot top-1 on damaged pictures beside the same pictures undamaged (Hendrycks & Dietterich, ICLR 2019).

A kind's score is the mean over its severities, `corrupted_top1` the mean over kinds. Their benchmark divides by the
errors of an AlexNet; nothing is divided here, so that no reference model is needed.
Legend: Q pictures, C classes, B block.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.differences import RelativeDrop
from evaluation.ranks import Ranks, rank_scores
from evaluation.rows import Rows
from evaluation.specs import Robustness
from evaluation.subject import Answer, Labelled, Subject

NOT_IN_VIEWS = "not_in_views"
Kinds = Mapping[str, Mapping[int, str]]  # kind -> severity -> name of the view


def answer(spec: Robustness, subject: Subject) -> list[Answer]:
    """Classify every picture clean and in each corrupted view, one view in memory at a time.

    Raises:
        EvaluationError: there are no corrupted views, or pairs with several classes.
    """
    kinds, tested = corrupted_views(subject), _in_views(subject, subject.tested(spec.prompts))
    if tested.truth is not None:
        raise EvaluationError("robustness: pairs have lists of classes; it scores one class a pair")
    classes_CD = subject.data.class_features(spec.prompts)
    clean = _ranks(subject, tested, classes_CD, "")
    numbers: dict[str, Any] = {
        "rank": clean.rank, "ties": clean.ties, "correct": (clean.rank == 1).astype(np.int8),
        "candidates": np.full(len(tested.uids), len(tested.classes), np.int64), "positives": clean.positives,
    }  # fmt: skip
    for severities in kinds.values():
        for view in severities.values():
            hit_Q = _ranks(subject, tested, classes_CD, view).rank == 1
            numbers[f"correct_{view}"] = hit_Q.astype(np.int8)
    means = {kind: np.mean([numbers[f"correct_{v}"] for v in views.values()], axis=0) for kind, views in kinds.items()}
    numbers |= {f"mean_{kind}": mean_Q for kind, mean_Q in means.items()}
    numbers["corrupted"] = np.mean(list(means.values()), axis=0)
    numbers["drop"] = numbers["correct"] - numbers["corrupted"]
    predictions = [tested.classes[row] for row in clean.best]
    rows = Rows(tested.uids, tested.clusters, tested.names, predictions, numbers, dropped=tested.dropped)
    return [Answer(rows, _metrics(kinds, rows, 1 / len(tested.classes)), extra=_extra(kinds, rows))]


def corrupted_views(subject: Subject) -> Kinds:
    """Names of the corrupted views by kind and severity, from the record of the set's `views`.

    Raises:
        EvaluationError: there are none.
    """
    views = subject.data.views
    config = views.artifact.record.config.get("views", {}) if views is not None else {}
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for name, view in sorted(config.items()):
        if view.get("view") == "corrupted":
            found[view["kind"]][int(view["severity"])] = name
    if not found:
        raise EvaluationError(
            f"{subject.data.name}: robustness needs corrupted views; embed some and name them as the set's `views`"
        )
    return {kind: dict(sorted(severities.items())) for kind, severities in sorted(found.items())}


def _in_views(subject: Subject, tested: Labelled) -> Labelled:
    assert subject.data.views is not None
    both = subject.data.views.image_row.rows_of(tested.uids) >= 0
    if not both.any():
        raise EvaluationError(f"{subject.data.name}: no picture of split {subject.part.name!r} has views; embed them")
    gone = {uid: NOT_IN_VIEWS for uid, seen in zip(tested.uids, both, strict=True) if not seen}
    return tested._replace(
        uids=[uid for uid, seen in zip(tested.uids, both, strict=True) if seen], labels=tested.labels[both],
        truth=None if tested.truth is None else tested.truth[both], dropped=tested.dropped | gone,
    )  # fmt: skip


def _ranks(subject: Subject, tested: Labelled, classes_CD: Floats, view: str) -> Ranks:
    blocks = (images_BD @ classes_CD.T for images_BD in subject.data.image_blocks(tested.uids, view))
    return rank_scores(blocks, [[label] for label in tested.labels.tolist()])


def _metrics(kinds: Kinds, rows: Rows, chance: float) -> list[Metric]:
    found: list[Metric] = [
        Mean("clean_top1", "correct", chance_value=chance),
        Mean("corrupted_top1", "corrupted", chance_value=chance),
        Mean("drop", "drop", unit="points", better="lower", chance_value=0.0, bounds=(-1.0, 1.0)),
    ]
    if np.any(rows.numbers["correct"]):  # a part of nothing is not defined
        found.append(RelativeDrop("relative_drop", "correct", "corrupted"))
    found += [Mean(f"{kind}_top1", f"mean_{kind}", chance_value=chance) for kind in kinds]
    curves = [(f"{kind}@{severity}", view) for kind, views in kinds.items() for severity, view in views.items()]
    return found + [Mean(name, f"correct_{view}", chance_value=chance) for name, view in curves]


def _extra(kinds: Kinds, rows: Rows) -> dict[str, Any]:
    def share(column: str) -> float:
        return float(np.mean(np.asarray(rows.numbers[column], np.float64)))

    curves = {
        kind: {"severity": list(views), "top1": [share(f"correct_{view}") for view in views.values()]}
        for kind, views in kinds.items()
    }
    return {"clean": share("correct"), "curves": curves}
