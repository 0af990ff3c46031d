"""Tables for W&B from what an evaluation or a report wrote: every number with its interval, and some of the mistakes.

Read from the artifact's files by their format alone, because what makes them is above this package.
"""

import hashlib
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from data import storage
from data.artifacts import Artifact
from data.shards import read_parquet
from training.table_pictures import COLUMNS, examples

_KINDS = ("evaluation", "report")
_NUMBERS = (
    "set", "split", "task", "metric", "baseline", "value", "low", "high", "chance", "unit", "better", "n", "clusters",
    "ties", "dropped",
)  # fmt: skip
_DIFFERENCES = (
    "label", "against", "set", "split", "task", "metric", "before", "after", "value", "low", "high", "p",
    "p_corrected", "verdict",
)  # fmt: skip
_MISTAKES = ("set", "split", "task", "direction", "sample", "label", "prediction")
_CLASSES = ("set", "split", "task", "class", "n", "recall")
_CONFUSIONS = ("set", "split", "task", "label", "prediction", "count", "n")
_MOST_TASKS, _MOST_ROWS = 30, 10  # a run's tables stay below some hundred kilobytes


class Table(NamedTuple):
    """Columns and rows of plain values."""

    columns: list[str]
    rows: list[list[Any]]


def tables_of(artifact: Artifact) -> dict[str, Table]:
    """The tables of an evaluation or a report by name; none of other artifacts."""
    if artifact.record.kind not in _KINDS:
        return {}
    report = storage.read_json(artifact.at("report.json"))
    named = ("label",) if artifact.record.kind == "report" else ()
    found = {"numbers": _table((*named, *_NUMBERS), report["rows"])}
    if artifact.record.kind == "report":
        found["differences"] = _table(_DIFFERENCES, report["differences"])
        found["examples"] = Table(list(COLUMNS), examples(artifact))
    else:
        found |= _samples(artifact, report["rows"])
    return {name: table for name, table in found.items() if table.rows}


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    return Table(list(columns), [[row[column] for column in columns] for row in rows])


def _samples(evaluation: Artifact, entries: list[dict[str, Any]]) -> dict[str, Table]:
    """Mistakes of every task, picked by a hash of their name, and the classes with the lowest recall."""
    mistakes: list[dict[str, Any]] = []
    classes: list[dict[str, Any]] = []
    confusions: list[dict[str, Any]] = []
    files = {entry["file"]: entry for entry in reversed(entries) if not entry["baseline"]}
    for entry in list(files.values())[::-1][:_MOST_TASKS]:
        rows = _asked(evaluation, entry["file"])
        where = {name: entry[name] for name in ("set", "split", "task", "direction")}
        wrong = [row for row in rows if row["correct"] == 0]
        wrong.sort(key=lambda row: hashlib.sha256(row["sample"].encode()).digest())
        mistakes += [where | row for row in wrong[:_MOST_ROWS]]
        if entry["kind"] == "zero_shot":
            classes += [where | one for one in _worst_classes(rows)]
            confusions += [where | one for one in _confusions(rows)]
    return {
        "mistakes": _table(_MISTAKES, mistakes), "worst_classes": _table(_CLASSES, classes),
        "confusions": _table(_CONFUSIONS, confusions),
    }  # fmt: skip


def _asked(evaluation: Artifact, file: str) -> list[dict[str, Any]]:
    """Samples that have a right and wrong, without those that were dropped."""
    table = read_parquet(evaluation.at("rows", file))
    if "correct" not in table.column_names:
        return []
    columns = ["sample", "label", "prediction", "correct", "dropped"]
    return [row for row in table.select(columns).to_pylist() if not row["dropped"]]


def _worst_classes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right[row["label"]].append(row["correct"] == 1)
    order = sorted(right, key=lambda name: (sum(right[name]) / len(right[name]), -len(right[name]), name))
    return [
        {"class": name, "n": len(right[name]), "recall": sum(right[name]) / len(right[name])}
        for name in order[:_MOST_ROWS]
    ]


def _confusions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The commonest mistakes: which class was taken for which, of how many of it."""
    asked = Counter(row["label"] for row in rows)
    taken = Counter((row["label"], row["prediction"]) for row in rows if row["correct"] == 0)
    order = sorted(taken, key=lambda pair: (-taken[pair], pair))
    return [
        {"label": label, "prediction": prediction, "count": taken[label, prediction], "n": asked[label]}
        for label, prediction in order[:_MOST_ROWS]
    ]
