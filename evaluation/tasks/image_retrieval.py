"""Retrieval among pictures: each asks for the split's other pictures that have its label, by cosine of image_features.

Average precision of a query is the mean over its relevant pictures of the precision at their rank, among all others of
the split (Manning et al., Introduction to Information Retrieval, 8.4). Where no scores are equal it is scikit-learn's
`average_precision_score`; of equal scores that one takes the precision after all of them, here an irrelevant picture
comes before a relevant one, so that ties earn nothing.
Legend: N pictures of the gallery, Q queries, B queries of one block, P relevant pictures of a query, D embedding.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.multilabel import random_average_precision
from evaluation.metrics.ranked import Hit
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Doubles, Ints, Rows, group_ids
from evaluation.specs import ImageRetrieval
from evaluation.subject import NO_LABEL, Answer, Subject

SEVERAL, ALONE = "several_labels", "no_other_of_its_label"
_BLOCK_SCORES = 1 << 22


class Found(NamedTuple):
    """Per query: average precision, rank of the first relevant picture, irrelevant ones tied with it, the first one."""

    average_precision: float
    rank: int
    ties: int
    best: int


def answer(spec: ImageRetrieval, subject: Subject) -> list[Answer]:
    """Rank all other labelled pictures for each that has a relevant one.

    A picture that is alone with its label is no query, but one that others must not find.

    Raises:
        EvaluationError: no two pictures of the split have the same label.
    """
    labels, dropped = _labels(spec, subject)
    uids, counts = sorted(labels), Counter(labels.values())
    queries = [row for row, uid in enumerate(uids) if counts[labels[uid]] > 1]
    dropped |= {uid: ALONE for uid in uids if counts[labels[uid]] == 1}
    if not queries:
        raise EvaluationError(
            f"image_retrieval.field: no two pictures of split {subject.part.name!r} have one value of {spec.field!r}; "
            "use a field whose values are shared"
        )
    numbers_N = group_ids([labels[uid] for uid in uids])
    found = list(_searched(subject.data.image_features(uids), numbers_N, queries))
    asked = [uids[row] for row in queries]
    rows = Rows(
        ids=asked, clusters=[subject.part.clusters[uid] for uid in asked], labels=[labels[uid] for uid in asked],
        predictions=[uids[one.best] for one in found], dropped=dropped,
        numbers=_columns(found, np.array([counts[labels[uid]] - 1 for uid in asked]), len(uids) - 1),
    )  # fmt: skip
    return [Answer(rows, _metrics(spec))]


def average_precision(right_P: Floats, wrong_W: Floats, tolerance: float = TIE_TOLERANCE) -> tuple[float, int, int]:
    """Average precision, rank of the best right score, and how many wrong ones tie with it.

    Scores may come in any order; a wrong one that lies less than `tolerance` below a right one comes before it.
    """
    right_P, wrong_W = np.sort(right_P)[::-1], np.sort(wrong_W)
    before_P = len(wrong_W) - np.searchsorted(wrong_W, right_P - right_P.dtype.type(tolerance))
    place_P = np.arange(1, len(right_P) + 1)
    above = len(wrong_W) - int(np.searchsorted(wrong_W, right_P[0] + right_P.dtype.type(tolerance), side="right"))
    return float((place_P / (place_P + before_P)).mean()), 1 + int(before_P[0]), int(before_P[0]) - above


def _labels(spec: ImageRetrieval, subject: Subject) -> tuple[dict[str, str], dict[str, str]]:
    """Label of each picture that has one, and why others are neither asked nor found."""
    values, labels, dropped = subject.data.values(spec.field), dict[str, str](), dict(subject.part.dropped)
    for uid in subject.part.uids:
        value = values.get(uid, ())
        own = [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
        if len(own) == 1:
            labels[uid] = own[0]
        else:
            dropped[uid] = SEVERAL if own else NO_LABEL
    return labels, dropped


def _searched(images_ND: Floats, labels_N: Ints, queries: list[int]) -> Iterator[Found]:
    block = max(1, _BLOCK_SCORES // len(images_ND))
    for at in range(0, len(queries), block):
        rows = queries[at : at + block]
        for row, scores_N in zip(rows, images_ND[rows] @ images_ND.T, strict=True):
            is_right_N = labels_N == labels_N[row]
            is_right_N[row] = False  # itself is neither right nor wrong
            is_wrong_N = labels_N != labels_N[row]
            scores_N[row] = -np.inf
            found = average_precision(scores_N[is_right_N], scores_N[is_wrong_N])
            yield Found(*found, best=int(scores_N.argmax()))


def _columns(found: list[Found], positives_Q: Ints, candidates: int) -> Mapping[str, Any]:
    ranks_Q = np.array([one.rank for one in found], np.int64)
    chance_Q: Doubles = random_average_precision(positives_Q, candidates)
    return {
        "average_precision": np.array([one.average_precision for one in found]), "chance": chance_Q,
        "rank": ranks_Q, "ties": np.array([one.ties for one in found], np.int64),
        "positives": positives_Q.astype(np.int64), "candidates": np.full(len(found), candidates, np.int64),
        "correct": (ranks_Q == 1).astype(np.int64),
    }  # fmt: skip


def _metrics(spec: ImageRetrieval) -> list[Metric]:
    """MAP first: the number that the task is known by."""
    return [Mean("mAP", "average_precision", chance_column="chance"), *(Hit(f"R@{k}", k) for k in spec.ks)]
