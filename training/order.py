"""Which pair, caption and crop come at which position.

Pure functions of (seed, samples seen), whatever the ranks or workers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_EPOCH, _NOISE = 1, 3
POSITION, SLOTS = 4, 5  # streams of positions' own numbers: caption and crop; captions of text slots
_NUMBERS_PER_BLOCK = 4  # Philox makes them four at a time, and can start at any block


def generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """A generator for one purpose (`stream`) at one place (`number`)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, number))))


def position_draws(seed: int, first: int, count: int, numbers: int, stream: int = POSITION) -> npt.NDArray[np.float64]:
    """(count, numbers) uniform in [0, 1): those of the pairs at positions [first, first + count) of a run.

    A position's numbers are its own, whoever asks and with which others, and nobody draws those of the rest.
    """
    blocks = -(-numbers // _NUMBERS_PER_BLOCK)
    random = np.random.Philox(np.random.SeedSequence((seed, stream))).advance(first * blocks)
    return np.random.Generator(random).random((count, blocks * _NUMBERS_PER_BLOCK))[:, :numbers]


class UniformOrder:
    """Every pair once an epoch. The epochs follow each other without a gap, so that a batch may span two of them."""

    def __init__(self, pairs: int, seed: int) -> None:
        self.pairs, self.seed = pairs, seed
        self._epoch: tuple[int, Ints] = (-1, np.empty(0, np.int64))

    def rows(self, first: int, count: int) -> Ints:
        """Rows of the pairs at positions [first, first + count)."""
        parts = []
        while count > 0:
            epoch, at = divmod(first, self.pairs)
            part = self._permutation(epoch)[at : at + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _permutation(self, epoch: int) -> Ints:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, generator(self.seed, _EPOCH, epoch).permutation(self.pairs))
        return self._epoch[1]


class ClusterOrder:
    """Every global batch from one cell (CLIP-MoE's MCL, sampler section).

    A cell's remainder is dropped for the epoch.
    """

    def __init__(self, cells: Sequence[int] | Ints, seed: int, global_batch_size: int) -> None:
        cell_N = np.asarray(cells)
        self.members = [np.flatnonzero(cell_N == cell) for cell in np.unique(cell_N)]
        self.members = [rows for rows in self.members if len(rows) >= global_batch_size]
        self.seed, self.size = seed, global_batch_size
        self.batches = sum(len(rows) // global_batch_size for rows in self.members)
        self._epoch: tuple[int, Ints] = (-1, np.empty((0, 0), np.int64))

    def rows(self, first: int, count: int) -> Ints:
        """Rows of one global batch; `first` and `count` are whole batches."""
        assert first % self.size == 0
        assert count == self.size
        epoch, at = divmod(first // self.size, self.batches)
        if self._epoch[0] != epoch:
            random = generator(self.seed, _EPOCH, epoch)
            shuffled = [random.permutation(rows)[: len(rows) // self.size * self.size] for rows in self.members]
            batches = np.concatenate([rows.reshape(-1, self.size) for rows in shuffled])
            self._epoch = (epoch, batches[random.permutation(len(batches))])
        return self._epoch[1][at]  # type: ignore[no-any-return]


def derange(pairs: int, fraction: float, seed: int) -> Ints:
    """Row -> row whose captions it gets: a `fraction` of the rows, chosen by `seed`, get another row's captions."""
    source = np.arange(pairs)
    random = generator(seed, _NOISE, 0)
    chosen = random.permutation(pairs)[: round(fraction * pairs)]
    if len(chosen) > 1:
        source[chosen] = np.roll(chosen, 1)
    return source
