"""Concept association bias (When are Lemons Purple?, EMNLP 2023): does a model name the *other* object's colour?

Pictures of one object and of two side by side, with metadata `layout`, `object`, `color` (left), `other_object`,
`other_color` (right). Each is asked for the colour of each of its objects: the template with every colour of the set.
CAB = P(answer is the other object's colour | both are there) - P(the same answer | the object is alone), over the same
questions: 1 for a model that binds colours to pictures, 0 for one that binds them to objects. This difference is our
definition; the paper reports accuracies. An answer that ties with another colour is neither right nor the other's.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.base import Mean, Metric
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Ints, Rows
from evaluation.specs import ConceptAssociation
from evaluation.subject import Answer, Subject

NO_OBJECTS, SAME_COLOR, NOT_ALONE = "no_object_or_color", "same_color", "no_picture_of_it_alone"


class Question(NamedTuple):
    """Which colour does this object have in this picture? `place`: alone, left or right."""

    uid: str
    vendor: str
    object: str
    color: str
    other_color: str
    place: str

    @property
    def drawn(self) -> tuple[str, str]:
        """The object as one vendor draws it: what a picture of one and a question about two have in common."""
        return self.vendor, self.object


def answer(spec: ConceptAssociation, subject: Subject) -> list[Answer]:
    """Ask every picture for each of its objects.

    Raises:
        EvaluationError: metadata is missing, or there are no pictures of one of the two layouts.
    """
    questions, dropped = _questions(spec, subject)
    colors = sorted({str(c) for field in ("color", "other_color") for c in subject.data.values(field).values()})
    best_Q, ties_Q = _answers(spec, subject, questions, colors)
    number = {name: row for row, name in enumerate(colors)}
    color_Q, other_Q = (
        np.array([number.get(getattr(q, at), -2) for q in questions]) for at in ("color", "other_color")
    )
    alone = _alone(questions, best_Q)
    single_Q = np.array([q.place == "alone" for q in questions])
    other_alone_Q = np.array([0.0 if q.place == "alone" else _share(alone, q, number) for q in questions])
    other_hit_Q = (best_Q == other_Q) & ~single_Q
    numbers: dict[str, Any] = {
        "correct": (best_Q == color_Q).astype(np.int64), "ties": ties_Q,
        "candidates": np.full(len(questions), len(colors)), "positives": np.ones(len(questions), np.int64),
        "single": single_Q.astype(np.int8), "double": (~single_Q).astype(np.int8),
        "left": np.array([q.place == "left" for q in questions], np.int8),
        "right": np.array([q.place == "right" for q in questions], np.int8),
        "other": other_hit_Q.astype(np.int8), "other_alone": other_alone_Q, "cab": other_hit_Q - other_alone_Q,
    }  # fmt: skip
    rows = Rows(
        ids=[f"{q.uid}/{q.place}" for q in questions], clusters=[subject.part.clusters[q.uid] for q in questions],
        labels=[q.color for q in questions], predictions=[colors[row] if row >= 0 else "tie" for row in best_Q],
        numbers=numbers, dropped=dropped,
    )  # fmt: skip
    return [Answer(rows, _metrics(1 / len(colors)), extra={"colors": colors})]


def _questions(spec: ConceptAssociation, subject: Subject) -> tuple[list[Question], dict[str, str]]:
    fields = ("layout", "object", "color", "other_object", "other_color")
    values = {field: subject.data.values(field) for field in fields}
    vendors = subject.data.values("vendor") if subject.data.has("vendor") else {}
    dropped, singles, doubles = dict(subject.part.dropped), [], []
    for uid in subject.part.uids:
        layout, *names = (str(values[field].get(uid, "")) for field in fields)
        problem, vendor = _problem(spec, layout, names), str(vendors.get(uid, ""))
        if problem:
            dropped[uid] = problem
        elif layout == spec.single:
            singles.append(Question(uid, vendor, names[0], names[1], "", "alone"))
        else:
            doubles.append(Question(uid, vendor, names[0], names[1], names[3], "left"))
            doubles.append(Question(uid, vendor, names[2], names[3], names[1], "right"))
    known = {q.drawn for q in singles}
    dropped |= {f"{q.uid}/{q.place}": NOT_ALONE for q in doubles if q.drawn not in known}
    asked = [q for q in doubles if q.drawn in known]
    if not singles or not asked:
        raise EvaluationError(
            f"concept_association: split {subject.part.name!r} has {len(singles)} pictures with layout "
            f"{spec.single!r} and {len(asked)} questions with {spec.double!r} about the same objects; it needs both"
        )
    return [*singles, *asked], dropped


def _problem(spec: ConceptAssociation, layout: str, names: Sequence[str]) -> str:
    if layout not in (spec.single, spec.double):
        return f"layout_is_{layout or 'missing'}"
    needed = names[:2] if layout == spec.single else names
    if not all(needed):
        return NO_OBJECTS
    return SAME_COLOR if layout == spec.double and names[1] == names[3] else ""


def _answers(
    spec: ConceptAssociation, subject: Subject, questions: Sequence[Question], colors: Sequence[str]
) -> tuple[Ints, Ints]:
    """Number of each question's best colour, -1 where it ties with another, and how many others tie with it."""
    best_Q, ties_Q = np.empty(len(questions), np.int64), np.empty(len(questions), np.int64)
    by_object: dict[str, list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        by_object[question.object].append(row)
    for name, rows in by_object.items():
        texts_CD = subject.data.texts(spec.queries([name], colors))
        images = subject.data.image_blocks([questions[row].uid for row in rows])
        scores_BC: Doubles = np.concatenate([images_BD @ texts_CD.T for images_BD in images])
        tied_B = (scores_BC >= scores_BC.max(axis=1, keepdims=True) - TIE_TOLERANCE).sum(axis=1) - 1
        best_Q[rows], ties_Q[rows] = np.where(tied_B > 0, -1, scores_BC.argmax(axis=1)), tied_B
    return best_Q, ties_Q


def _alone(questions: Sequence[Question], best_Q: Ints) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for question, best in zip(questions, best_Q.tolist(), strict=True):
        if question.place == "alone":
            found[question.drawn].append(best)
    return found


def _share(alone: dict[tuple[str, str], list[int]], question: Question, number: dict[str, int]) -> float:
    """Part of the pictures of the object alone that are answered with the colour of this question's other object."""
    answers = alone[question.drawn]
    return answers.count(number[question.other_color]) / len(answers)


def _metrics(chance: float) -> list[Metric]:
    return [
        Mean("single_top1", "correct", where="single", chance_value=chance),
        Mean("double_top1", "correct", where="double", chance_value=chance),
        Mean("double_left_top1", "correct", where="left", chance_value=chance),
        Mean("double_right_top1", "correct", where="right", chance_value=chance),
        Mean("other_color_single", "other_alone", where="double", better="lower", chance_value=chance),
        Mean("other_color_double", "other", where="double", better="lower", chance_value=chance),
        Mean("cab", "cab", "points", "lower", where="double", chance_value=0.0, bounds=(-1.0, 1.0)),
    ]
