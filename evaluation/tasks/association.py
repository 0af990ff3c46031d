"""A cue's n best candidate pictures against the n that people chose (WinoGAViL, NeurIPS 2022), by Jaccard index.

A picture's metadata says which items it is a candidate of: `item`, `cue` and `is_answer`, one value each or, for a
picture of several items, lists of one length; `candidates`, where it is there, is how many the item should have.
Ties at the border of the n best are never credited: wrong pictures go first.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.selection import chance_jaccard
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Rows
from evaluation.specs import Association
from evaluation.subject import Answer, Subject

MISSING, NO_ANSWER, ALL_ANSWERS, CUES = "missing_candidate", "no_answer", "all_are_answers", "different_cues"
_FEW, _MANY = 6, 10  # DataComp reports 5-6 and 10-12 candidates apart


class Member(NamedTuple):
    """A picture as candidate of one item."""

    uid: str
    cue: str
    is_answer: bool
    candidates: int | None


def answer(spec: Association, subject: Subject) -> list[Answer]:
    """One row an item.

    Raises:
        EvaluationError: metadata does not fit, or no item is whole.
    """
    items, dropped = _items(spec, subject)
    if not items:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(dropped.values()).most_common())
        raise EvaluationError(f"association: no item of split {subject.part.name!r} is whole ({reasons})")
    cues = [members[0].cue for members in items.values()]
    texts_QD = subject.data.texts(spec.queries(cues))
    found = [_picks(members, text_D, subject) for members, text_D in zip(items.values(), texts_QD, strict=True)]
    answers = np.array([sum(member.is_answer for member in members) for members in items.values()])
    candidates = np.array([len(members) for members in items.values()])
    hits = np.array([one.hits for one in found])
    chances = [chance_jaccard(m, n) for m, n in zip(candidates.tolist(), answers.tolist(), strict=True)]
    rows = Rows(
        ids=list(items), clusters=[_cluster(subject, name, members) for name, members in items.items()],
        labels=[" | ".join(sorted(m.uid for m in members if m.is_answer)) for members in items.values()],
        predictions=[" | ".join(one.picked) for one in found], dropped=dropped,
        numbers={
            "jaccard": hits / (2 * answers - hits), "correct": (hits == answers).astype(np.int64),
            "ties": np.array([one.ties for one in found]), "candidates": candidates, "positives": answers,
            "chance": np.array(chances), "few": (candidates <= _FEW).astype(np.int8),
            "many": (candidates >= _MANY).astype(np.int8),
        },
    )  # fmt: skip
    return [Answer(rows, _metrics(rows))]


class _Picks(NamedTuple):
    picked: list[str]
    hits: int
    ties: int  # right pictures that a kinder order of equal scores would have picked


def _items(spec: Association, subject: Subject) -> tuple[dict[str, list[Member]], dict[str, str]]:
    """Whole items of the split, and why others are not asked."""
    everyone: dict[str, list[Member]] = defaultdict(list)
    here, asked = set(subject.part.uids), set()
    for name, member in _members(spec, subject):
        everyone[name].append(member)
        asked |= {name} if member.uid in here else set()
    items, dropped = {}, dict(subject.part.dropped)
    for name in sorted(asked):
        members = sorted(everyone[name])
        reason = _problem(members, here)
        if reason:
            dropped[name] = reason
        else:
            items[name] = members
    return items, dropped


def _members(spec: Association, subject: Subject) -> Iterator[tuple[str, Member]]:
    fields = [subject.data.values(field) for field in (spec.item_field, "cue", "is_answer")]
    expected = subject.data.values("candidates") if subject.data.has("candidates") else {}
    for uid, items in fields[0].items():
        columns = [_listed(value) for value in (items, *(field.get(uid) for field in fields[1:]))]
        if len({len(column) for column in columns}) != 1:
            raise EvaluationError(
                f"uid {uid!r}: {spec.item_field}, cue and is_answer have {', '.join(str(len(c)) for c in columns)} "
                "values; give one of each an item"
            )
        sizes = _listed(expected[uid]) if uid in expected else [None] * len(columns[0])
        for name, cue, is_answer, size in zip(*columns, sizes, strict=True):
            yield str(name), Member(uid, str(cue), bool(is_answer), size)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _problem(members: Sequence[Member], here: set[str]) -> str:
    sizes = {member.candidates for member in members} - {None}
    if any(member.uid not in here for member in members) or (sizes and sizes != {len(members)}):
        return MISSING
    if len({member.cue for member in members}) != 1:
        return CUES
    answers = sum(member.is_answer for member in members)
    return NO_ANSWER if not answers else ALL_ANSWERS if answers == len(members) else ""


def _picks(members: Sequence[Member], text_D: Doubles, subject: Subject) -> _Picks:
    scores_M = subject.data.image_features([member.uid for member in members]).astype(np.float64) @ text_D
    right_M = np.array([member.is_answer for member in members])
    count = int(right_M.sum())
    picked, kinder = (
        np.argsort(-(scores_M + np.where(right_M, sign * TIE_TOLERANCE, 0)), kind="stable")[:count] for sign in (-1, 1)
    )
    hits = int(right_M[picked].sum())
    names = sorted(members[row].uid for row in picked.tolist())
    return _Picks(names, hits, int(right_M[kinder].sum()) - hits)


def _cluster(subject: Subject, name: str, members: Sequence[Member]) -> str:
    """Items are their own clusters, unless the set names a field: then that of their first picture."""
    return subject.part.clusters[members[0].uid] if subject.data.scored.cluster_field else name


def _metrics(rows: Rows) -> list[Metric]:
    found: list[Metric] = [Mean("jaccard", "jaccard", chance_column="chance")]
    few_Q, many_Q = rows.numbers["few"], rows.numbers["many"]
    if few_Q.any() and many_Q.any():
        found += [
            Mean("jaccard_5-6", "jaccard", where="few", chance_column="chance"),
            Mean("jaccard_10-12", "jaccard", where="many", chance_column="chance"),
        ]
    return found
