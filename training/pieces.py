"""What a batch is made of: tasks, the pieces they become, who reads what, and work done ahead in a thread.

Shapes: B pairs of one piece, L tokens.
"""

import mmap
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from training.order import Ints
from training.pictures import Pixels

T = TypeVar("T")
_LOOK_SECONDS = 0.2


class Task(NamedTuple):
    """One piece to make: rows of the pairs at positions [first, first + len(rows)) of the run."""

    first: int
    rows: Ints


class Piece(NamedTuple):
    """What goes with a piece's pixels."""

    uids: list[str]
    captions: list[str]
    texts: dict[str, npt.NDArray[np.int64]]  # `text`, `text.<slot>`: (B, L) token ids
    more: dict[str, npt.NDArray[Any]]  # (B, ...): `text_id`, `position` and what the view reads of metadata


class Maker(Protocol):
    """Makes pieces in one process."""

    def read(self, task: Task) -> list[bytes]:
        """The pictures' bytes."""
        ...

    def make(self, task: Task, contents: list[bytes], out: Pixels) -> Piece:
        """Put the pixels (B, side, side, 3) into `out`, return the rest."""
        ...


class Reading(NamedTuple):
    """What a worker reads: row of a pair, pairs that are read with it, and for how long."""

    row: int
    together: int
    seconds: float


class Activity:
    """Which pair each worker reads now, in memory that the rank's processes share."""

    def __init__(self, workers: int) -> None:
        self._since, self._together, self._row = shared((3, max(1, workers)), np.float64)
        self._row[:] = -1

    def start(self, worker: int, row: int, together: int) -> None:
        """A read of `together` pictures begins, that of `row` among them."""
        self._since[worker], self._together[worker] = time.monotonic(), together
        self._row[worker] = row  # last: who sees it must see its time

    def end(self, worker: int) -> None:
        """Nothing is being read."""
        self._row[worker] = -1

    def of(self, worker: int) -> Reading | None:
        """What a worker reads, None if nothing."""
        row, together, since = (float(column[worker]) for column in (self._row, self._together, self._since))
        return Reading(int(row), int(together), time.monotonic() - since) if row >= 0 else None

    def longest(self) -> Reading | None:
        """The oldest read that has not ended."""
        readings = [reading for worker in range(len(self._row)) if (reading := self.of(worker))]
        return max(readings, key=lambda reading: reading.seconds, default=None)


def shared(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros in anonymous memory that forked children share; it needs no /dev/shm and goes with the last process."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, size * np.dtype(dtype).itemsize), dtype).reshape(shape)


class Ahead(Generic[T]):
    """Runs an iterator in a background thread, `depth` results ahead; what it raises is raised by `get`.

    The thread is a daemon: a read that never ends must not keep a process that is done with it.
    """

    def __init__(self, items: Iterable[T], depth: int = 1) -> None:
        self._queue: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True, name="ahead")
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._put((True, item))
                if self._closed.is_set():
                    return
            self._put((False, EOFError("no more")))
        except BaseException as error:  # noqa: BLE001 - `get` raises it
            self._put((False, error))

    def _put(self, entry: tuple[bool, Any]) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return

    def get(self, check: Callable[[], None] = lambda: None) -> T:
        """The next result; `check` is called now and then while there is none, and may raise.

        Raises:
            EOFError: there are no more, or this was closed.
        """
        while not self._closed.is_set():
            try:
                good, value = self._queue.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                check()
                continue
            if good:
                return value  # type: ignore[no-any-return]
            raise value
        raise EOFError("closed")

    def close(self) -> None:
        """Let the thread end after what it does now."""
        self._closed.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread."""
        self._thread.join(seconds)


class OwnPieces:
    """Pieces made in the calling thread, read one ahead by another."""

    def __init__(self, maker: Maker, tasks: Iterable[Task]) -> None:
        self.maker = maker
        self._read = Ahead((task, maker.read(task)) for task in tasks)

    def take(self, out: Pixels) -> Piece:
        """The next piece; its pixels go to `out` (B, side, side, 3)."""
        task, contents = self._read.get()
        return self.maker.make(task, contents, out)

    def close(self) -> None:
        """End the reading."""
        self._read.close()
