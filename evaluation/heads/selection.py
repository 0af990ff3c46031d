"""How a head chooses among hyper-parameters: best top-1 on the select split, and of equals the most regularised.

Legend: B pictures, C classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.rows import Doubles, Ints

_COARSE, _SPANS = 7, (8, 4, 2, 1)
_GRID = 2 * _SPANS[0] * (_COARSE - 1) + 1  # 97 points


class Candidate(NamedTuple):
    """Hyper-parameters that were tried, and their top-1 on the select split."""

    values: tuple[float, ...]
    top1: float


def count_correct(logits_BC: npt.NDArray[np.floating], labels_B: Ints, tolerance: float) -> int:
    """Pictures whose class scores strictly best: a tie is not credited."""
    own_B1 = np.take_along_axis(logits_BC, labels_B[:, None], axis=1)
    return int(((logits_BC >= own_B1 - tolerance).sum(axis=1) == 1).sum())


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The best; of equals the first, so candidates come in order of regularisation, strongest first."""
    return max(candidates, key=lambda candidate: candidate.top1)


def coarse_to_fine(ends: tuple[float, float], top1: Callable[[float], float]) -> list[Candidate]:
    """Search a log grid of 97 points in at most 15 trials, as CLIP_benchmark does: 7 points, then ever nearer the best.

    All trials come back, largest value (strongest regularisation) first.
    """
    grid: Doubles = np.geomspace(ends[1], ends[0], _GRID)
    found: dict[int, Candidate] = {}

    def best() -> int:
        return min(found, key=lambda at: (-found[at].top1, at))

    def try_all(points: Sequence[int]) -> None:
        for at in points:
            if 0 <= at < _GRID and at not in found:
                value = float(grid[at])
                found[at] = Candidate((value,), top1(value))

    try_all(range(0, _GRID, 2 * _SPANS[0]))
    for span in _SPANS:
        try_all((best() - span, best() + span))
    return [found[at] for at in sorted(found)]
