"""The samples behind a number: which were wrong, tied or dropped, and where one model fails and another does not."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data import storage
from data.artifacts import Artifact
from data.errors import EvaluationError, nearest
from evaluation.comparison import align
from evaluation.rows import Rows, rows_of

KINDS = ("wrong", "right", "ties", "dropped", "worse_than", "better_than")
_SHOWN = ("rank", "ties", "confidence")


class Example(NamedTuple):
    """One sample: what it is, what was said of it, and the numbers it has. `reason`: why it was dropped."""

    sample: str
    label: str
    prediction: str
    numbers: dict[str, float]
    other: str = ""  # what the model it is compared with said
    reason: str = ""


def examples(
    evaluation: Artifact, where: str, kind: str = "wrong", other: Artifact | None = None, top: int = 12,
    baseline: str = "",
) -> list[Example]:  # fmt: skip
    """At most `top` samples of `set/split/task`, or `set/split/task/direction`, of one kind.

    Wrong ones come worst first: the most confident, else those whose right answer ranks last. All others come in an
    order that has nothing to do with what they say. `worse_than`: wrong here, right in `other`.

    Raises:
        EvaluationError: there is no such task, it has no right and wrong, or `other` answered other samples.
    """
    if kind not in KINDS:
        raise EvaluationError(f"examples: {kind!r} is no kind; kinds are {', '.join(KINDS)}")
    if top < 1:
        raise EvaluationError(f"top: {top} is below 1; ask for at least one example")
    rows = _rows(evaluation, where, baseline)
    if kind == "dropped":
        gone = sorted(rows.dropped, key=_hash)[:top]
        return [Example(sample, "", "", {}, reason=rows.dropped[sample]) for sample in gone]
    if kind == "ties":
        _need(rows, "ties", where)
        return _picked(rows, np.asarray(rows.numbers["ties"]) > 0, top)
    correct_Q = _correct(rows, where)
    if kind in ("worse_than", "better_than"):
        if other is None:
            raise EvaluationError(f"examples: {kind!r} needs a second evaluation to compare with")
        return _against(rows, correct_Q, _rows(other, where, baseline), where, kind, top)
    return _picked(rows, ~correct_Q if kind == "wrong" else correct_Q, top, worst_first=kind == "wrong")


def line(example: Example) -> str:
    """One example as a line: `uid: label -> prediction (rank 3, confidence 0.91)`."""
    if example.reason:
        return f"{example.sample}: {example.reason}"
    said = f"{example.label} -> {example.prediction}" + (f" (the other: {example.other})" if example.other else "")
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in example.numbers.items())
    return f"{example.sample}: {said}" + (f" ({numbers})" if numbers else "")


def _against(
    rows: Rows, correct_Q: np.ndarray[Any, Any], theirs: Rows, where: str, kind: str, top: int
) -> list[Example]:
    order_Q = align(rows, theirs)
    others_Q = _correct(theirs, where)[order_Q]
    said = [theirs.predictions[row] for row in order_Q.tolist()]
    return _picked(rows, ~correct_Q & others_Q if kind == "worse_than" else correct_Q & ~others_Q, top, said)


def _picked(
    rows: Rows, mask_Q: np.ndarray[Any, Any], top: int, others: Sequence[str] = (), worst_first: bool = False
) -> list[Example]:
    def badness(at: int) -> float:
        for name in ("confidence", "rank"):
            if worst_first and name in rows.numbers:
                return -float(rows.numbers[name][at])
        return 0.0

    chosen = sorted(np.flatnonzero(mask_Q).tolist(), key=lambda at: (badness(at), _hash(rows.ids[at])))[:top]
    return [
        Example(
            rows.ids[at], rows.labels[at], rows.predictions[at],
            {name: float(rows.numbers[name][at]) for name in _SHOWN if name in rows.numbers},
            others[at] if others else "",
        ) for at in chosen
    ]  # fmt: skip


def _rows(evaluation: Artifact, where: str, baseline: str) -> Rows:
    entries = storage.read_json(evaluation.at("report.json"))["rows"]
    asked = where.strip("/")
    files: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["baseline"] == baseline:
            name = "/".join(filter(None, (entry["set"], entry["split"], entry["task"], entry["direction"])))
            files.setdefault(name, entry)
    hits = [name for name in files if name == asked] or [name for name in files if name.startswith(asked + "/")]
    if len(hits) != 1:
        beside = f" beside {baseline!r}" if baseline else ""
        hint = (
            f"; give one of {', '.join(hits)}" if hits else nearest(asked, files) or f"; there are {', '.join(files)}"
        )
        raise EvaluationError(f"{evaluation.uri}: {where!r} names {len(hits)} tasks{beside}{hint}")
    return rows_of(evaluation, files[hits[0]]["file"], files[hits[0]]["direction"])


def _need(rows: Rows, column: str, where: str) -> None:
    if column not in rows.numbers:
        known = ", ".join(rows.numbers) or "none"
        raise EvaluationError(f"{where}: its samples have no {column!r}; their columns are {known}")


def _correct(rows: Rows, where: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    _need(rows, "correct", where)
    return np.asarray(np.asarray(rows.numbers["correct"]) == 1)


def _hash(sample: str) -> bytes:
    return hashlib.sha256(sample.encode()).digest()
