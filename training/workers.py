"""Processes that make pieces of batches, in order, into memory they share with the rank; their deaths and their stalls.

torch's DataLoader notices a killed worker at once only in a process's main thread (Ray runs the loop in another), needs
/dev/shm (64 MiB in a container), and cannot say what a silent worker reads. Here a worker has a pipe, slots in
anonymous shared memory, and a line in a shared table that says which pair it reads and since when.
"""

import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from training.pictures import Pixels
from training.pieces import Ahead, Maker, Piece, Task, shared

_SLOTS = 3  # a worker's pieces: one waits to be fetched, one is made, one is read


class LostWorker(RuntimeError):  # noqa: N818 - what happened, not who erred
    """A loader worker is gone or silent, which is nobody's mistake: going on from the last checkpoint may help."""


class ForkedPieces:
    """Pieces made by worker processes, each in its turn: piece k by worker k modulo their number."""

    def __init__(
        self, maker_of: Callable[[int], Maker], tasks: Iterable[Task], workers: int, slot_shape: tuple[int, ...],
        told: Callable[[int], str],
    ) -> None:  # fmt: skip
        """`maker_of(worker)` makes a worker's maker, in the worker.

        `slot_shape` is that of the largest piece, and `told(worker)` says what a dead worker was reading.
        """
        self._tasks, self._told, self._taken, self._sent = iter(tasks), told, 0, 0
        self._slots = shared((workers, _SLOTS, *slot_shape), np.uint8)
        context, self._ends, self._processes = multiprocessing.get_context("fork"), [], []
        for worker in range(workers):
            mine, its = context.Pipe()
            target = (maker_of, worker, its, self._slots[worker], os.getpid())
            process = context.Process(target=_work, args=target, daemon=True, name=f"loader-{worker}")
            process.start()
            its.close()
            self._ends.append(mine)
            self._processes.append(process)

    def _send(self) -> None:
        """Give every worker as many tasks as it has free slots."""
        while self._sent < self._taken + len(self._ends) * _SLOTS and (task := next(self._tasks, None)):
            worker = self._sent % len(self._ends)
            with suppress(OSError):  # it has ended: its turn will tell what it said last, or that it said nothing
                self._ends[worker].send(task)
            self._sent += 1

    def take(self, out: Pixels) -> Piece:
        """The next piece; its pixels go to `out` (B, side, side, 3).

        Raises:
            LostWorker: the worker whose turn it is has died; whatever a worker raised, with its type.
        """
        worker, slot = self._taken % len(self._ends), self._taken // len(self._ends) % _SLOTS
        self._send()
        answer = self._receive(worker)
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Piece)
        out[:] = self._slots[worker, slot, : len(out)]
        self._taken += 1
        self._send()  # only now may the worker write to this slot again
        return answer

    def _receive(self, worker: int) -> Any:
        if self._ends[worker] in wait([self._ends[worker], self._processes[worker].sentinel]):
            try:
                return self._ends[worker].recv()
            except (EOFError, ConnectionError) as error:
                raise self._lost(worker) from error
        raise self._lost(worker)

    def _lost(self, worker: int) -> LostWorker:
        process = self._processes[worker]
        process.join()
        code = process.exitcode or 0
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; out of memory? lower loader_workers" if code == -signal.SIGKILL else ""
        return LostWorker(f"loader worker {worker} (process {process.pid}) {ended}{self._told(worker)}{hint}")

    def close(self) -> None:
        """End the workers now: they hold nothing that has to be put down."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


def _work(maker_of: Callable[[int], Maker], worker: int, end: Connection, slots: Pixels, parent: int) -> None:
    """A worker's life: receive and read a piece ahead in one thread, make pieces in the other."""
    gc.freeze()  # garbage of the rank is not ours to collect: an old process group would wait for threads it lost here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rank gets it too, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    try:
        maker = maker_of(worker)
        read = Ahead((task, maker.read(task)) for task in iter(end.recv, None))
        for number in count():
            task, contents = read.get()
            end.send(maker.make(task, contents, slots[number % _SLOTS]))
    except Exception as error:  # noqa: BLE001 - the rank raises it
        end.send(_portable(error))


def die_with(parent: int) -> None:
    """End this process soon after its parent has gone, however that ended; for a thread."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """The error as it can travel: a defect takes the worker's traceback along as a note, a user's mistake does not."""
    if not isinstance(error, UserError):
        error.add_note("in a loader worker:\n" + traceback.format_exc())
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 - an exception type of which nobody can say what pickling it does
        return RuntimeError(traceback.format_exc())
    return error
