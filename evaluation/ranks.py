"""Where the first correct candidate comes for every query, with bounded memory and without credit for ties.

Legend: Q queries, M candidates, D embedding, B queries of one block.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data.errors import EvaluationError
from data.features import Floats
from evaluation.rows import Ints

# Equal vectors can differ in a float32 product (rounding depends on where a column lies, and on the CPU's kernels): by
# 1.1e-6 at most where all components are equal, measured for 64 to 2,048 of them. So a difference below this is
# rounding, not an opinion of the model: it counts as a tie.
TIE_TOLERANCE = 4e-6
_BLOCK_SCORES = 1 << 22


class Ranks(NamedTuple):
    """Per query: rank of the best correct candidate, tied wrong candidates, number of positives, best candidate."""

    rank: Ints
    ties: Ints
    positives: Ints
    best: Ints


def require_finite(features: Floats, names: Sequence[str], what: str) -> None:
    """Refuse features from which no number should be made.

    Raises:
        EvaluationError: a value is NaN or infinite.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise EvaluationError(
            f"{what} {names[bad[0]]!r}: its feature is not finite ({len(bad)} of {len(names)}); the checkpoint diverged"
        )


def rank_candidates(queries_QD: Floats, candidates_MD: Floats, positives: Sequence[Sequence[int]]) -> Ranks:
    """Rank by inner product: rank = 1 + wrong candidates that score at least as high as the best correct one.

    `positives` lists the correct candidates of each query, at least one.
    """
    block = max(1, _BLOCK_SCORES // max(1, len(candidates_MD)))
    blocks = (queries_QD[at : at + block] @ candidates_MD.T for at in range(0, len(queries_QD), block))
    return rank_scores(blocks, positives)


def rank_scores(
    blocks: Iterable[npt.NDArray[np.floating[Any]]],
    positives: Sequence[Sequence[int]],
    tolerance: float = TIE_TOLERANCE,
) -> Ranks:
    """The same from blocks of scores (B, M) that come in the order of `positives`.

    Raises:
        EvaluationError: a score is NaN; no comparison with it holds, so it would look like rank 1.
    """
    count, start = len(positives), 0
    rank, ties, best = (np.zeros(count, np.int64) for _ in range(3))
    for scores_BM in blocks:
        correct_BM = np.zeros(scores_BM.shape, bool)
        for row, columns in enumerate(positives[start : start + len(scores_BM)]):
            correct_BM[row, list(columns)] = True
        top_B1 = np.where(correct_BM, scores_BM, -np.inf).max(axis=1, keepdims=True)
        above_BM = ~correct_BM & (scores_BM >= top_B1 - tolerance)
        here = slice(start, start + len(scores_BM))
        rank[here] = 1 + above_BM.sum(axis=1)
        ties[here] = (above_BM & (scores_BM <= top_B1 + tolerance)).sum(axis=1)
        best[here] = scores_BM.argmax(axis=1)  # NaN counts as the largest
        bad = np.flatnonzero(np.isnan(scores_BM[np.arange(len(scores_BM)), best[here]]))
        if len(bad):
            raise EvaluationError(
                f"sample {start + int(bad[0]) + 1} of {count}: a score is not a number; the checkpoint or head diverged"
            )
        start += len(scores_BM)
    assert start == count, f"{start} scored, {count} asked"
    return Ranks(rank, ties, np.array([len(columns) for columns in positives], np.int64), best)
