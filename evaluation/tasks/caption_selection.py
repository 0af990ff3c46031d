"""The right caption of a picture against wrong ones (SugarCrepe, NeurIPS 2023; ARO, ICLR 2023).

Right means strictly better than every wrong caption, by more than rounding: a model that scores all captions alike gets
0 with all ties counted, where taking the first best would give it 100 %. Chance, for a model whose scores are random
but never equal, is 1 / (1 + wrong captions). Beside it the same captions before another picture: what is right there
was found in the words alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.selection import GroupMean
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Ints, Rows, group_ids
from evaluation.specs import CaptionSelection
from evaluation.subject import Answer, Subject

NO_RIGHT, SEVERAL_RIGHT, NO_WRONG, EQUAL = "no_right_caption", "several_right_captions", "no_wrong_caption", "all_equal"
_BLOCK_PAIRS = 4096


class Case(NamedTuple):
    """A picture with its right caption and the wrong ones."""

    uid: str
    right: str
    wrong: list[str]


def answer(spec: CaptionSelection, subject: Subject) -> list[Answer]:
    """Score every picture against its own captions only.

    Raises:
        EvaluationError: no pair has a right and a wrong caption.
    """
    cases, dropped = _cases(spec, subject)
    if not cases:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(dropped.values()).most_common())
        raise EvaluationError(
            f"caption_selection: no pair of split {subject.part.name!r} can be asked ({reasons}); use other sources"
        )
    uids = [case.uid for case in cases]
    groups_Q, table = _groups(spec, subject, uids)
    metrics = _metrics(spec, bool((groups_Q >= 0).any()))
    order = np.random.default_rng(0).permutation(len(cases))
    others = np.empty(len(cases), np.int64)
    others[order] = np.roll(order, 1)  # one cycle: with two pictures or more nobody keeps its own
    own = _rows(cases, uids, subject, groups_Q, dropped)
    extra = {"groups": table(own)} if table else {}
    answers = [Answer(own, metrics, extra=extra)]
    if len(cases) > 1:
        other = _rows(cases, [uids[row] for row in others], subject, groups_Q, dropped)
        answers.append(Answer(other, metrics, "other_picture"))
    return answers


def _cases(spec: CaptionSelection, subject: Subject) -> tuple[list[Case], dict[str, str]]:
    part, dropped, cases = subject.part, dict(subject.part.dropped), []
    right, wrong = subject.data.captions([spec.right]), subject.data.captions(spec.wrong)
    for uid in part.uids:
        own, others = right.get(uid, []), wrong.get(uid, [])
        left = sorted({text for text in others if text not in own})
        if len(own) != 1:
            dropped[uid] = SEVERAL_RIGHT if own else NO_RIGHT
        elif not left:
            dropped[uid] = EQUAL if others else NO_WRONG
        else:
            cases.append(Case(uid, own[0], left))
    return cases, dropped


def _rows(
    cases: Sequence[Case], pictures: Sequence[str], subject: Subject, groups_Q: Ints, dropped: dict[str, str]
) -> Rows:
    found = [_scored(cases[at : at + _BLOCK_PAIRS], block, subject) for at, block in _blocks(pictures)]
    above, ties, margin, best = (np.concatenate(column) for column in zip(*found, strict=True))
    candidates = np.array([1 + len(case.wrong) for case in cases])
    predictions = [(case.right, *case.wrong)[row] for case, row in zip(cases, best.tolist(), strict=True)]
    return Rows(
        ids=[case.uid for case in cases], clusters=[subject.part.clusters[case.uid] for case in cases],
        labels=[case.right for case in cases], predictions=predictions, dropped=dropped,
        numbers={
            "rank": 1 + above, "ties": ties, "positives": np.ones(len(cases), np.int64), "candidates": candidates,
            "correct": (above == 0).astype(np.int64), "margin": margin, "chance": 1 / candidates, "group": groups_Q,
        },
    )  # fmt: skip


def _blocks(pictures: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for at in range(0, len(pictures), _BLOCK_PAIRS):
        yield at, pictures[at : at + _BLOCK_PAIRS]


def _scored(cases: Sequence[Case], pictures: Sequence[str], subject: Subject) -> tuple[Ints, Ints, Doubles, Ints]:
    """Per case: wrong captions not beaten, those that tie, right minus best wrong, and the best caption's place."""
    sizes = np.array([1 + len(case.wrong) for case in cases])
    starts, owner = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(cases)), sizes)
    texts_TD = subject.data.texts([text for case in cases for text in (case.right, *case.wrong)])
    images_TD = subject.data.image_features(pictures)[owner]
    scores_T = np.einsum("td,td->t", images_TD, texts_TD, dtype=np.float64)
    ahead_T = scores_T - scores_T[starts][owner]  # of the right caption, which comes first
    wrong_T = np.ones(len(owner), bool)
    wrong_T[starts] = False
    above = np.bincount(owner, wrong_T & (ahead_T >= -TIE_TOLERANCE)).astype(np.int64)
    ties = np.bincount(owner, wrong_T & (np.abs(ahead_T) <= TIE_TOLERANCE)).astype(np.int64)
    best_wrong = np.maximum.reduceat(np.where(wrong_T, ahead_T, -np.inf), starts)
    best = np.array([int(ahead_T[at : at + size].argmax()) for at, size in zip(starts, sizes, strict=True)])
    return above, ties, -best_wrong, best


def _groups(spec: CaptionSelection, subject: Subject, uids: Sequence[str]) -> tuple[Ints, Any]:
    """Number of each pair's group, -1 where it is too small or unknown; and a function rows -> table of all groups."""
    if spec.macro_field is None:
        return np.full(len(uids), -1), None
    values = subject.data.values(spec.macro_field)
    names = [str(values.get(uid, "")) for uid in uids]
    counts = Counter(name for name in names if name)
    numbers_Q, large = group_ids(names), {name for name, count in counts.items() if count >= spec.min_cases}
    groups_Q = np.array([number if name in large else -1 for name, number in zip(names, numbers_Q, strict=True)])

    def table(rows: Rows) -> dict[str, Any]:
        hits: Counter[str] = Counter()
        for name, hit in zip(names, rows.numbers["correct"].tolist(), strict=True):
            hits[name] += hit
        return {
            name: {"n": counts[name], "correct": hits[name] / counts[name], "scored": name in large}
            for name in sorted(counts)
        }  # fmt: skip

    return groups_Q, table


def _metrics(spec: CaptionSelection, grouped: bool) -> list[Metric]:
    found: list[Metric] = [Mean("caption_accuracy", "correct", chance_column="chance")]
    if grouped:
        name = f"macro_{spec.macro_field}_caption_accuracy"
        found.append(GroupMean(name, "correct", "group", chance_column="chance"))
    return found
