"""What a filter is, and the few lines that several of them share.

Shapes: P pairs, the rows of the table that is judged.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Keeps = npt.NDArray[np.bool_]


class Verdict(NamedTuple):
    """What was judged of each pair (a number, a text, or null where there is nothing to judge), and who stays."""

    values: pa.Array  # P
    keeps: Keeps  # P


class FilterFunction(Protocol):
    """A filter. `needs` names the columns it reads.

    `caption`, `meta` (JSON text of the index), columns of the inspection, `clip_score`.
    """

    needs: frozenset[str]

    def judge(self, rows: pa.Table) -> Verdict:
        """Judge every row by itself: the verdicts of permuted rows are the permuted verdicts."""
        ...


def column(rows: pa.Table, name: str) -> Any:
    """One column as one array."""
    return rows[name].combine_chunks()


def texts(rows: pa.Table, name: str) -> list[str | None]:
    """One column of text as Python has it."""
    found: list[str | None] = rows[name].to_pylist()
    return found


def verdict(values: Any, keeps: Any) -> Verdict:
    """Where arrow could not say whether a row may stay, because what it judges is null, the row goes."""
    kept = np.asarray(pc.fill_null(keeps, False).to_numpy(zero_copy_only=False), np.bool_)
    return Verdict(values, kept)


def reaches(numbers: Any, bound: float) -> Any:
    """Which numbers are `bound` or more, null for null.

    The bound is rounded as the numbers were: 0.7 kept as float32 is 0.69999999, and must pass a bound of 0.7.
    """
    is_float = pa.types.is_floating(numbers.type)
    return pc.greater_equal(numbers, pa.scalar(bound, numbers.type if is_float else pa.float64()))


def at_least(numbers: Any, bound: float) -> Verdict:
    """Keep numbers from `bound` on; null and NaN go."""
    return verdict(numbers, reaches(numbers, bound))
