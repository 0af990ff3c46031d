"""Telling pictures of other distributions from a split's own, by scores of zero-shot and of COOkeD's ensemble.

Labels are not read. COOkeD (ICCV 2025 workshop) averages the probabilities of a classifier, zero-shot and a linear
probe; without a classifier of its own, ours averages the last two. Legend: B pictures of a block, Q pictures,
C classes, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation.heads.base import Head
from evaluation.metrics.base import Metric
from evaluation.metrics.detection import AUROC, FPR95, ClosestFPR95
from evaluation.rows import Doubles, Rows
from evaluation.scores import cosines, out_scores, probability_scores, softmax
from evaluation.specs import LinearProbe, OutOfDistribution
from evaluation.subject import Answer, Subject

PROBE, ENSEMBLE = "probe", "ensemble"
_ENSEMBLE_SCORES = ("entropy", "msp")  # COOkeD's headline first
_BARS = 30


class Members(NamedTuple):
    """What scores pictures: zero-shot, and the probe of the ensemble where one was fitted."""

    classes: list[str]
    class_features: Floats  # (C, D)
    scale: float
    probe: Head | None
    chosen: Mapping[str, Any]


class Scored(NamedTuple):
    """Scores of the pictures of one part, by name, and the class that zero-shot would give each."""

    columns: dict[str, Doubles]
    predictions: list[str]


def answer(spec: OutOfDistribution, subject: Subject) -> list[Answer]:
    """One answer per other distribution, each followed by the same scores with shuffled origins.

    Raises:
        EvaluationError: `out` shares pairs with this split or with what the ensemble is fitted on.
    """
    others = {where: subject.other(where) for where in spec.out}
    for where, other in others.items():
        _require_apart(f"out {where!r}", other, subject, subject.part.name, subject.part.uids)
        for split in (spec.fit, spec.select) if spec.fit else ():
            _require_apart(f"out {where!r}", other, subject, split, subject.data.split_uids(split))
    members = _members(spec, subject)
    inside = _score(spec, members, subject)
    answers = []
    for where, other in others.items():
        outside = _score(spec, members, other)
        rows = _rows(where.replace("/", "_"), subject, other, inside, outside)
        metrics = out_metrics(rows.direction, list(inside.columns))
        answers.append(Answer(rows, metrics, chosen=members.chosen, extra=_extra(rows, list(inside.columns))))
    return [*answers, *_shuffled(answers)]


def out_metrics(direction: str, scores: Sequence[str]) -> list[Metric]:
    """AUROC and FPR95 of every score, named `<direction>_<metric>_<score>`; COOkeD's own FPR95 of its ensemble."""
    made: list[Metric] = []
    for score in scores:
        made += [AUROC(f"{direction}_auroc_{score}", score), FPR95(f"{direction}_fpr95_{score}", score)]
        if score.startswith(ENSEMBLE):
            made.append(ClosestFPR95(f"{direction}_fpr95_closest_{score}", score))
    return made


def _require_apart(what: str, other: Subject, subject: Subject, split: str, uids: Sequence[str]) -> None:
    if other.data.pairs.artifact.fingerprint != subject.data.pairs.artifact.fingerprint:
        return
    both = sorted(set(other.part.uids).intersection(uids))
    if both:
        raise EvaluationError(
            f"{what}: {len(both)} of {len(other.part.uids)} pairs are in {split!r}, e.g. {both[0]!r}; "
            "name a split of other pairs"
        )


def _members(spec: OutOfDistribution, subject: Subject) -> Members:
    data, scale = subject.data, subject.logit_scale
    classes, classes_CD = data.class_names(spec.prompts), data.class_features(spec.prompts)
    if spec.fit is None:
        return Members(classes, classes_CD, scale, None, {})
    fit, left_out = subject.fitting_labelled(spec.fit, spec.prompts)
    select, left_out_too = subject.fitting_labelled(spec.select, spec.prompts)
    if fit.truth is not None or select.truth is not None:
        raise EvaluationError(
            f"prompts.field: {spec.prompts.field!r} has lists of classes; the ensemble's probe needs one class a pair"
        )
    head: Head = LinearProbe().build()
    found = head.fit(
        data.image_features(fit.uids), fit.labels, classes_CD, (data.image_features(select.uids), select.labels), scale
    )
    chosen = {
        "fitted_on": spec.fit, "pairs": len(fit.uids), **found, "chosen_on": spec.select,
        "left_out_scored_pictures": left_out + left_out_too,
    }  # fmt: skip
    return Members(classes, classes_CD, scale, head, chosen)


def _score(spec: OutOfDistribution, members: Members, subject: Subject) -> Scored:
    """All pictures of a part, block by block."""
    blocks: list[dict[str, Doubles]] = []
    best: list[int] = []
    for images_BD in subject.data.image_blocks(subject.part.uids):
        scores_BC = cosines(images_BD, members.class_features)
        found = out_scores(scores_BC, members.scale, spec.scores)
        if members.probe is not None:
            found |= _ensemble(softmax(members.scale * scores_BC), softmax(members.probe.logits(images_BD)))
        blocks.append(found)
        best += scores_BC.argmax(axis=1).tolist()
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return Scored(columns, [members.classes[row] for row in best])


def _ensemble(zero_shot_BC: Doubles, probe_BC: Doubles) -> dict[str, Doubles]:
    """Scores of the mean of both members' probabilities, and of the probe alone."""
    mean = probability_scores((zero_shot_BC + probe_BC) / 2)
    probe = probability_scores(probe_BC)
    return {
        f"{member}_{name}": found[name]
        for member, found in ((ENSEMBLE, mean), (PROBE, probe)) for name in _ENSEMBLE_SCORES
    }  # fmt: skip


def _rows(direction: str, subject: Subject, other: Subject, inside: Scored, outside: Scored) -> Rows:
    """Pictures of this split first. Names of another set carry it: its uids and clusters may be called alike."""
    same = other.data.name == subject.data.name
    ours, theirs = subject.part, other.part

    def named(name: str) -> str:
        return name if same else f"{other.data.name}/{name}"

    is_out_Q = np.repeat([0, 1], [len(ours.uids), len(theirs.uids)])
    columns = {name: np.concatenate([inside.columns[name], outside.columns[name]]) for name in inside.columns}
    return Rows(
        ids=[*ours.uids, *map(named, theirs.uids)],
        clusters=[*(ours.clusters[uid] for uid in ours.uids), *(named(theirs.clusters[uid]) for uid in theirs.uids)],
        labels=[("in", "out")[is_out] for is_out in is_out_Q.tolist()],
        predictions=[*inside.predictions, *outside.predictions],
        numbers={"is_out": is_out_Q.astype(np.int64)} | columns,
        direction=direction,
        dropped=ours.dropped | {named(uid): reason for uid, reason in theirs.dropped.items()},
    )


def _extra(rows: Rows, scores: Sequence[str]) -> dict[str, Any]:
    """Sizes of both sides, and histograms of every score over common edges."""
    is_out_Q = rows.numbers["is_out"] == 1
    extra: dict[str, Any] = {"in": int((~is_out_Q).sum()), "out": int(is_out_Q.sum()), "histograms": {}}
    for score in scores:
        column_Q = rows.numbers[score]
        edges = np.histogram_bin_edges(column_Q, _BARS)
        ours, theirs = (np.histogram(column_Q[which_Q], edges)[0] for which_Q in (~is_out_Q, is_out_Q))
        extra["histograms"][score] = {"edges": edges.tolist(), "in": ours.tolist(), "out": theirs.tolist()}
    return extra


def _shuffled(answers: Sequence[Answer], seed: int = 0) -> list[Answer]:
    """The same scores with shuffled origins: AUROC must be one half."""
    random, found = np.random.default_rng(seed), []
    for one in answers:
        is_out_Q = random.permutation(one.rows.numbers["is_out"])
        labels = [("in", "out")[is_out] for is_out in is_out_Q.tolist()]
        rows = replace(one.rows, labels=labels, numbers={**one.rows.numbers, "is_out": is_out_Q})
        metrics = [metric for metric in one.metrics if isinstance(metric, AUROC)]
        found.append(Answer(rows, metrics, "shuffled_labels"))
    return found
