"""What one task found on one split: a row a sample, with whatever numbers its metrics are made of.

These rows are what every metric is computed from. They are kept, so that two models can be compared sample by sample
and the examples behind a number can be asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data import storage
from data.artifacts import Artifact
from data.shards import read_parquet, write_parquet

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
_TEXTS = {"sample": "ids", "cluster": "clusters", "label": "labels", "prediction": "predictions"}


@dataclass(frozen=True)
class Rows:
    """One entry a sample: a uid, a caption, an item of two pictures. `dropped` maps what was not asked to a reason.

    `numbers` are columns of length Q by name. Names with one meaning everywhere: `rank` (of the best correct candidate,
    1 is first), `ties` (wrong candidates that score the same), `positives`, `candidates` (how many of each there are),
    `correct` (0 or 1, ties never credited), `confidence` (probability of the prediction).
    """

    ids: list[str]
    clusters: list[str]
    labels: list[str]
    predictions: list[str]
    numbers: Mapping[str, npt.NDArray[Any]]
    direction: str = ""
    dropped: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = self.numbers.keys() & {*_TEXTS, "dropped"}
        assert not taken, f"names of columns that all rows have: {taken}"
        columns = {name: getattr(self, attribute) for name, attribute in _TEXTS.items()} | dict(self.numbers)
        wrong = {name: len(column) for name, column in columns.items() if len(column) != len(self.ids)}
        assert not wrong, f"columns of other lengths than {len(self.ids)}: {wrong}"

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def clusters_Q(self) -> Ints:  # noqa: N802 - a shape
        """Number of each sample's cluster, 0 to G - 1, in order of the clusters' names."""
        return group_ids(self.clusters)

    @property
    def ties(self) -> int:
        """Samples in which a wrong candidate scores the same as the best correct one."""
        return int((self.numbers["ties"] > 0).sum()) if "ties" in self.numbers else 0


def group_ids(names: Sequence[str]) -> Ints:
    """Number equal names equally, 0 to the number of groups - 1, in order of the names."""
    return np.unique(np.asarray(names, dtype=object), return_inverse=True)[1].astype(np.int64)


def file_name(set_name: str, split: str, task: str, direction: str = "", baseline: str = "") -> str:
    """File below `rows/` that holds these rows."""
    return "/".join((set_name, split, ".".join(filter(None, (task, direction, baseline))))) + ".parquet"


def write_rows(uri: str, rows: Rows) -> None:
    """Write rows as parquet, dropped samples last: null in every column but `sample` and `dropped`."""
    gone = sorted(rows.dropped)
    filler = [None] * len(gone)
    columns: dict[str, Any] = {"sample": [*rows.ids, *gone]}
    columns |= {name: [*getattr(rows, at), *filler] for name, at in _TEXTS.items() if name != "sample"}
    columns |= {name: pa.array([*column.tolist(), *filler]) for name, column in rows.numbers.items()}
    columns["dropped"] = [""] * len(rows) + [rows.dropped[sample] for sample in gone]
    write_parquet(uri, pa.table(columns))


def read_rows(uri: str, direction: str = "") -> Rows:
    """Read what `write_rows` wrote."""
    table = read_parquet(uri)
    kept = table.filter(pa.compute.equal(table["dropped"], ""))
    gone = table.filter(pa.compute.not_equal(table["dropped"], ""))
    texts: dict[str, Any] = {attribute: kept[name].to_pylist() for name, attribute in _TEXTS.items()}
    numbers = {name: kept[name].to_numpy() for name in table.column_names if name not in (*_TEXTS, "dropped")}
    dropped = dict(zip(gone["sample"].to_pylist(), gone["dropped"].to_pylist(), strict=True))
    return Rows(**texts, numbers=numbers, direction=direction, dropped=dropped)


def rows_of(evaluation: Artifact, file: str, direction: str = "") -> Rows:
    """Rows of one entry of an evaluation's `report.json`."""
    return read_rows(storage.join(evaluation.uri, "rows", file), direction)
