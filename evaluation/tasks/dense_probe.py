"""Foreground or background, patch by patch: a linear head on frozen patch tokens, and what needs no tokens beside it.

Truth is foreground where more than half of a patch is. The head fits on patches that are clear (at most 10 % or at
least 90 % foreground) and is scored on all, the mixed ones included. Controls: `majority` (one class everywhere),
`position_only` (each position's usual class: pictures with a centred subject are guessable), `shuffled_labels`.
Legend: M pictures, P patches of one, W width of a token, Q scored pictures, T patches that fit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from data.errors import EvaluationError
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.segmentation import IoU
from evaluation.ranks import require_finite
from evaluation.rows import Doubles, Ints, Rows
from evaluation.specs import DenseProbe
from evaluation.subject import Answer, Subject

NO_PATCHES = "no_patches"
_CLEAR = 0.1
_MAX_ITERATIONS = 1000
_BLOCK_PICTURES = 64
Bools = npt.NDArray[np.bool_]


class Tokens(NamedTuple):
    """Pictures of one split that have patch tokens, and their rows in the feature set."""

    uids: list[str]
    rows: Ints  # (Q,)
    truth: Bools  # (Q, P)
    clear: Bools  # (Q, P)


class Linear(NamedTuple):
    """A fitted head: logit = ((token - mean) / spread) @ weight + bias."""

    mean: Doubles  # (W,)
    spread: Doubles  # (W,)
    weight: Doubles  # (W,)
    bias: float


def answer(spec: DenseProbe, subject: Subject) -> list[Answer]:
    """Fit on one split, choose the penalty on another, score this one.

    Raises:
        EvaluationError: no patch tokens, one class only, or a scored split that learns.
    """
    if spec.fit == spec.select:
        raise EvaluationError(f"dense_probe: fits and chooses on {spec.fit!r}; choose on another split")
    (fit, left_out), (select, left_out_too) = (_learning(subject, split) for split in (spec.fit, spec.select))
    scored = _tokens(subject, subject.part.name, subject.part.uids)
    tokens_TW, labels_T = _sample(subject, fit, spec)
    heads = {penalty: _fitted(tokens_TW, labels_T, penalty) for penalty in sorted(spec.penalties)}
    chosen_by = {penalty: _mean_iou(_predicted(subject, select, head), select) for penalty, head in heads.items()}
    best = max(chosen_by, key=lambda penalty: (chosen_by[penalty], penalty))  # of equals the simplest head
    shuffled = _fitted(tokens_TW, np.random.default_rng(spec.seed).permutation(labels_T), best)
    usual_P = fit.truth.mean(axis=0) > 0.5
    shape = scored.truth.shape
    answers = {
        "": _predicted(subject, scored, heads[best]),
        "majority": np.full(shape, fit.truth.mean() > 0.5),
        "position_only": np.broadcast_to(usual_P, shape),
        "shuffled_labels": _predicted(subject, scored, shuffled),
    }
    found = {"penalty": best, "chosen_on": spec.select, "fit_on": spec.fit, "fit_patches": len(labels_T)}
    extra = {
        "select_mIoU": {f"{penalty:g}": value for penalty, value in chosen_by.items()},
        "mixed_patches": _mixed(scored),
        "left_out_scored_pictures": left_out + left_out_too,
    }
    dropped = subject.part.dropped | dict.fromkeys(set(subject.part.uids) - set(scored.uids), NO_PATCHES)
    return [
        Answer(
            _rows(subject, scored, predicted_QP, dropped), _metrics(), name, found if not name else {},
            extra if not name else {},
        )
        for name, predicted_QP in answers.items()
    ]  # fmt: skip


def _learning(subject: Subject, split: str) -> tuple[Tokens, int]:
    """A split without pictures that are scored, and how many those were."""
    part = subject.fitting(split)
    uids, left_out = subject.policy.without_scored_pictures(part.uids, subject.data)
    return _tokens(subject, split, uids), left_out


def _tokens(subject: Subject, split: str, uids: Sequence[str]) -> Tokens:
    patches = subject.data.features.patches
    if patches is None:
        raise EvaluationError(f"{subject.data.name}: no patch tokens were embedded; give the embed stage `patches`")
    row_of = {uid: row for row, uid in enumerate(patches.uids)}
    kept = [uid for uid in uids if uid in row_of]
    if not kept:
        raise EvaluationError(
            f"{subject.data.name}: no picture of split {split!r} has patch tokens; a mask is a picture's alpha channel"
        )
    rows_Q = np.array([row_of[uid] for uid in kept])
    foreground_QP = np.asarray(patches.foreground[rows_Q], np.float32)
    require_finite(foreground_QP, kept, "uid")
    clear_QP = (foreground_QP <= _CLEAR) | (foreground_QP >= 1 - _CLEAR)
    return Tokens(kept, rows_Q, foreground_QP > 0.5, clear_QP)


def _sample(subject: Subject, fit: Tokens, spec: DenseProbe) -> tuple[npt.NDArray[np.float32], Bools]:
    """Tokens (T, W) and classes (T,) of at most so many clear patches, by seed."""
    picture_T, patch_T = np.nonzero(fit.clear)
    drawn = np.random.default_rng(spec.seed).permutation(len(picture_T))[: spec.most_patches]
    drawn.sort()  # pictures are read from disk in order
    picture_T, patch_T = picture_T[drawn], patch_T[drawn]
    labels_T = fit.truth[picture_T, patch_T]
    if len(set(labels_T.tolist())) < 2:
        raise EvaluationError(f"dense_probe: clear patches of split {spec.fit!r} have one class; embed more pictures")
    return _read(subject, fit, picture_T, patch_T), labels_T


def _read(subject: Subject, tokens: Tokens, picture_T: Ints, patch_T: Ints) -> npt.NDArray[np.float32]:
    patches = subject.data.features.patches
    assert patches is not None
    found = np.asarray(patches.tokens[tokens.rows[picture_T], patch_T], np.float32)
    require_finite(found, [tokens.uids[row] for row in picture_T], "uid")
    return found


def _fitted(tokens_TW: npt.NDArray[np.float32], labels_T: Bools, penalty: float) -> Linear:
    mean_W, spread_W = tokens_TW.mean(axis=0, dtype=np.float64), tokens_TW.std(axis=0, dtype=np.float64)
    spread_W = np.where(spread_W > 0, spread_W, 1.0)
    head = LogisticRegression(C=1 / (penalty * len(labels_T)), max_iter=_MAX_ITERATIONS)
    head.fit((tokens_TW - mean_W) / spread_W, labels_T)
    return Linear(mean_W, spread_W, head.coef_[0], float(head.intercept_[0]))


def _predicted(subject: Subject, tokens: Tokens, head: Linear) -> Bools:
    """Foreground (Q, P), a block of pictures at a time."""
    found, patches = [], np.arange(tokens.truth.shape[1])
    for at in range(0, len(tokens.uids), _BLOCK_PICTURES):
        rows = np.arange(at, min(at + _BLOCK_PICTURES, len(tokens.uids)))
        picture_T, patch_T = (grid.ravel() for grid in np.meshgrid(rows, patches, indexing="ij"))
        values_TW = _read(subject, tokens, picture_T, patch_T)
        logits_T = ((values_TW - head.mean) / head.spread) @ head.weight + head.bias
        found.append((logits_T > 0).reshape(len(rows), -1))
    return np.concatenate(found)


def _counts(predicted_QP: Bools, truth_QP: Bools) -> dict[str, Ints]:
    """Patches of each kind, a picture."""
    return {
        "foreground_hit": (predicted_QP & truth_QP).sum(axis=1),
        "foreground_missed": (~predicted_QP & truth_QP).sum(axis=1),
        "foreground_false": (predicted_QP & ~truth_QP).sum(axis=1),
        "background_hit": (~predicted_QP & ~truth_QP).sum(axis=1),
    }


def _rows(subject: Subject, tokens: Tokens, predicted_QP: Bools, dropped: dict[str, str]) -> Rows:
    numbers: dict[str, Any] = dict(_counts(predicted_QP, tokens.truth))
    numbers["patch_accuracy"] = (predicted_QP == tokens.truth).mean(axis=1)
    return Rows(
        ids=tokens.uids, clusters=[subject.part.clusters[uid] for uid in tokens.uids],
        labels=[f"{share:.3f} foreground" for share in tokens.truth.mean(axis=1)],
        predictions=[f"{share:.3f} foreground" for share in predicted_QP.mean(axis=1)],
        numbers=numbers, dropped=dropped,
    )  # fmt: skip


def _mean_iou(predicted_QP: Bools, tokens: Tokens) -> float:
    size = len(tokens.uids)
    rows = Rows(tokens.uids, tokens.uids, [""] * size, [""] * size, _counts(predicted_QP, tokens.truth))
    return float(IoU("mIoU").statistic(rows)(np.ones((1, size)))[0])


def _mixed(tokens: Tokens) -> float:
    return float(1 - tokens.clear.mean())


def _metrics() -> list[Metric]:
    return [
        IoU("mIoU"),
        IoU("foreground_IoU", ("foreground",)),
        Mean("patch_accuracy", "patch_accuracy", chance_value=0.5),
    ]
