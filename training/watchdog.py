"""Turns a rank that stands still into an error that says which rank, at which step, doing what, with which pairs.

A thread in every rank looks at the time since the loop last said what it does. Another tells it to all ranks through
the process group's key-value store, so that the one that waits for another can name it. All ranks say the same things
in the same order, so the one that has said least is the one that the others wait for.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, NamedTuple

import torch.distributed as dist

_KEY = "clipworks/beat/{}"
_LOOKS_PER_STALL, _LONGEST_LOOK_SECONDS = 10, 5.0
_LONGEST_QUESTION_SECONDS = 10.0


class Beat(NamedTuple):
    """What a rank last said. `number` counts what it has said, `where` is the line of code, `time` when it was told."""

    number: int
    doing: str
    pairs: str
    where: str
    time: float

    def __str__(self) -> str:
        pairs = f" ({self.pairs})" if self.pairs else ""
        return f"{self.doing}{pairs}, in {self.where}"


class Watchdog:
    """Watches the loop of one rank while it is entered; `on_stall` gets the message and must end the process."""

    def __init__(self, rank: int, world_size: int, stall_seconds: float, on_stall: Callable[[str], None]) -> None:
        self.rank, self.world_size, self.stall_seconds, self.on_stall = rank, world_size, stall_seconds, on_stall
        self._look_seconds = min(_LONGEST_LOOK_SECONDS, stall_seconds / _LOOKS_PER_STALL)
        self._number, self._doing, self._pairs, self._since = 0, "start", "", time.monotonic()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._loop_thread = 0

    def __enter__(self) -> "Watchdog":
        self._loop_thread = threading.get_ident()
        self._stop = threading.Event()
        self.now("start", "")
        work = [self._watch, self._tell] if self.world_size > 1 else [self._watch]
        self._threads = [threading.Thread(target=each, daemon=True, name="watchdog") for each in work]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._look_seconds)  # a store whose rank is gone may keep the telling one

    def now(self, doing: str, pairs: str | None = None) -> None:
        """Say what the loop does from here on, and with which pairs."""
        self._number, self._doing, self._since = self._number + 1, doing, time.monotonic()
        self._pairs = self._pairs if pairs is None else pairs

    @property
    def said(self) -> str:
        """What the loop last said it does, and with which pairs."""
        return f"{self._doing} ({self._pairs})" if self._pairs else self._doing

    def _watch(self) -> None:
        while not self._stop.wait(self._look_seconds):
            seconds = time.monotonic() - self._since
            if seconds > self.stall_seconds:
                self.on_stall(self._message(seconds))
                return

    def _tell(self) -> None:
        store, stop = _own_store(), self._stop
        while not stop.wait(self._look_seconds):
            store.set(_KEY.format(self.rank), json.dumps(self._beat()))

    def _beat(self) -> Beat:
        return Beat(self._number, self._doing, self._pairs, _line_of(self._loop_thread), time.time())

    def _message(self, seconds: float) -> str:
        mine = self._beat()
        text = f"rank {self.rank} stands still for {seconds:.0f} s: {mine}"
        return f"{text}; {self._waits_for(mine)}" if self.world_size > 1 else text

    def _waits_for(self, mine: Beat) -> str:
        beats = self._others()
        if beats is None:
            return "the ranks' store does not answer: the process of rank 0 stands still or is gone"
        behind = [_told(rank, beat) for rank, beat in beats.items() if beat is None or self._is_behind(beat, mine)]
        if behind:
            return "it waits for " + ", ".join(behind)
        ahead = [rank for rank, beat in beats.items() if beat is not None and beat.number > mine.number]
        return "the others wait for it" if len(ahead) == len(beats) else "so do the others, at the same place"

    def _is_behind(self, beat: Beat, mine: Beat) -> bool:
        """A rank that has said less than this one, or that gives no sign any more."""
        return beat.number < mine.number or _age(beat) > self.stall_seconds / 2

    def _others(self) -> dict[int, Beat | None] | None:
        """What the other ranks said last; None where the store, which lives in rank 0, does not answer."""
        found: dict[int, Beat | None] = {}

        def ask() -> None:
            store = _own_store()
            beats = {rank: _read(store, rank) for rank in range(self.world_size) if rank != self.rank}
            found.update(beats)

        question = threading.Thread(target=ask, daemon=True, name="watchdog-question")
        question.start()
        question.join(min(_LONGEST_QUESTION_SECONDS, self.stall_seconds))
        return found or None


def _own_store() -> Any:
    """A connection of one's own to the group's store (torch has no public door to it): the group's may be waiting."""
    return dist.distributed_c10d._get_default_store().clone()


def _read(store: Any, rank: int) -> Beat | None:
    key = _KEY.format(rank)
    return Beat(*json.loads(store.get(key))) if store.check([key]) else None


def _line_of(thread: int) -> str:
    """The line of Python that a thread is at."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "no Python code"
    return f"{frame.f_code.co_name} ({PurePath(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _age(beat: Beat) -> float:
    return time.time() - beat.time


def _told(rank: int, beat: Beat | None) -> str:
    return f"rank {rank}, which never gave a sign" if beat is None else f"rank {rank}: {beat}, {_age(beat):.0f} s ago"
