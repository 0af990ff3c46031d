"""Queries of one task on one split: what each was, how far down its first correct candidate came, and what was dropped.

These rows are what every metric is computed from, now by `evaluate` and later by a report that compares two models.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.artifacts import Artifact
from data.errors import EvaluationError
from data.shards import read_parquet, write_parquet

Ints = npt.NDArray[np.int64]
QUERY_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("task", pa.string()),
        ("direction", pa.string()),  # image_to_text | text_to_image; "" for classification
        ("query", pa.string()),  # a uid, or the caption that was looked for
        ("cluster", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),  # the candidate with the highest score
        ("rank", pa.int64()),  # null for a dropped query
        ("ties", pa.int64()),  # wrong candidates that score the same as the best correct one
        ("positives", pa.int64()),
        ("candidates", pa.int64()),
        ("correct", pa.bool_()),
        ("dropped", pa.string()),  # reason, or "" for a query that counts
    ]
)
_TEXTS = {"query": "ids", "cluster": "clusters", "label": "labels", "prediction": "predictions"}
_NUMBERS = {"rank": "ranks", "ties": "ties", "positives": "positives", "candidates": "candidates"}


@dataclass(frozen=True)
class Queries:
    """One task on one split in one direction, one entry a query; `dropped` maps what could not be asked to a reason."""

    ids: list[str]
    clusters: list[str]
    labels: list[str]
    predictions: list[str]
    ranks: Ints
    ties: Ints
    positives: Ints
    candidates: Ints
    direction: str = ""
    dropped: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def aligned_to(self, other: "Queries") -> "Queries":
        """These queries in the order of `other`.

        Raises:
            EvaluationError: the two do not ask the same things, so a paired comparison would be wrong.
        """
        place = {query: row for row, query in enumerate(self.ids)}
        if place.keys() != set(other.ids):
            odd = sorted(place.keys() ^ set(other.ids))
            raise EvaluationError(
                f"two evaluations differ in {len(odd)} queries, e.g. {odd[0]!r}; compare models on the same tasks"
            )
        rows = np.array([place[query] for query in other.ids], np.int64)
        columns: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in _TEXTS.values()}
        columns |= {name: getattr(self, name)[rows] for name in _NUMBERS.values()}
        return Queries(**columns, direction=self.direction, dropped=self.dropped)


def table_of(split: str, task: str, queries: Queries) -> pa.Table:
    """The queries as rows of QUERY_SCHEMA, dropped ones last."""
    count, gone = len(queries), sorted(queries.dropped)
    filler = [None] * len(gone)
    columns: dict[str, Any] = {
        "split": [split] * (count + len(gone)),
        "task": [task] * (count + len(gone)),
        "direction": [queries.direction] * (count + len(gone)),
        "query": [*queries.ids, *gone],
        "correct": [*(queries.ranks == 1).tolist(), *filler],
        "dropped": [""] * count + [queries.dropped[query] for query in gone],
    }
    columns |= {name: [*getattr(queries, attribute), *filler] for name, attribute in _TEXTS.items() if name != "query"}
    columns |= {name: [*getattr(queries, attribute).tolist(), *filler] for name, attribute in _NUMBERS.items()}
    return pa.table({name: columns[name] for name in QUERY_SCHEMA.names}, schema=QUERY_SCHEMA)


def write_queries(uri: str, tables: Iterable[pa.Table]) -> None:
    """Write `per_query.parquet` below `uri`."""
    write_parquet(f"{uri}/per_query.parquet", pa.concat_tables(list(tables)))


def read_queries(artifact: Artifact) -> Iterator[tuple[str, str, Queries]]:
    """Yield (split, task, queries) for every split, task and direction of an evaluation, in the order written."""
    frame = read_parquet(artifact.at("per_query.parquet")).to_pydict()
    rows: dict[tuple[str, str, str], list[int]] = {}
    for row, key in enumerate(zip(frame["split"], frame["task"], frame["direction"], strict=True)):
        rows.setdefault(key, []).append(row)
    for (split, task, direction), members in rows.items():
        kept = [row for row in members if not frame["dropped"][row]]
        columns: dict[str, Any] = {attribute: [frame[name][row] for row in kept] for name, attribute in _TEXTS.items()}
        columns |= {a: np.array([frame[name][row] for row in kept], np.int64) for name, a in _NUMBERS.items()}
        dropped = {frame["query"][row]: frame["dropped"][row] for row in members if frame["dropped"][row]}
        yield split, task, Queries(**columns, direction=direction, dropped=dropped)
