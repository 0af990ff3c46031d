"""From shard sets to batches: which pairs, which caption, which crop, as a pure function of (seed, samples seen).

A rank's batch is made in pieces, by worker processes or in a background thread, always ahead of the loop; pixels stay
uint8 until they are on the device. How many workers or ranks there are, and how large a piece is, changes nothing.
Shapes: B pairs of this rank, C channels, H height, W width, L tokens.
"""

import hashlib
import time
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.errors import ShardError
from data.reader import ShardReader
from training.columns import Columns
from training.names import of_slot
from training.order import SLOTS, position_draws
from training.pairs import CaptionChoices, PairStore, open_pairs
from training.pictures import CROP_DRAWS, UNREADABLE, Pixels, crops, exact_picture, fast_picture
from training.pieces import Activity, Ahead, OwnPieces, Piece, Task
from training.specs import View
from training.tokens import CaptionTokens
from training.towers import Towers
from training.workers import ForkedPieces, LostWorker

__all__ = ["Batch", "DataView", "LostWorker", "PairStore", "batches", "open_pairs"]

PIECE_PAIRS = 64  # about 10 MB of pixels at 224 x 224


@dataclass(frozen=True)
class Batch:
    """One rank's pairs of one optimizer step."""

    image: Tensor  # (B, C, H, W) uint8, channels last in memory; Towers.normalise brings it to the input range
    texts: dict[str, Tensor]  # `text`, `text.<slot>`: (B, L) token ids; on the host, where length is read and cut
    uids: list[str]
    captions: list[str]
    # (B, ...): `text_id`, `text_id.<slot>` int64 equal for equal captions, `position` in the run, `label`, `boxes` ...
    more: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.uids)

    def chunks(self, pairs: int | None) -> Iterator["Batch"]:
        """The same pairs in pieces of at most `pairs`."""
        size = pairs or len(self)
        for at in range(0, len(self), size):
            to = slice(at, at + size)
            texts, more = ({name: rows[to] for name, rows in named.items()} for named in (self.texts, self.more))
            yield Batch(self.image[to], texts, self.uids[to], self.captions[to], more)

    def to(self, device: torch.device) -> "Batch":
        """The same pairs with all but the texts on a device."""
        more = {name: rows.to(device, non_blocking=True) for name, rows in self.more.items()}
        return replace(self, image=self.image.to(device, non_blocking=True), more=more)

    def describe(self) -> str:
        """Which pairs these are, in a few words."""
        return f"{len(self)} pairs, uid {self.uids[0]!r} to {self.uids[-1]!r}"


@dataclass
class DataView:
    """Batches of one phase by step: a pure function of (seed, step), whatever the rank count."""

    store: PairStore
    towers: Towers
    view: View
    order: Any  # UniformOrder | ClusterOrder
    seed: int
    global_batch_size: int
    rank: int = 0
    world_size: int = 1
    choices: CaptionChoices = field(init=False)
    columns: Columns = field(init=False)
    tokens: CaptionTokens = field(init=False)

    def __post_init__(self) -> None:
        self.choices = CaptionChoices(self.store, self.view, self.seed)
        self.columns = Columns(self.store, self.view)
        self.tokens = CaptionTokens(self.towers.tokenizer)

    @property
    def bounds(self) -> tuple[int, int]:
        """This rank's part [first, last) of each global batch."""
        size = self.global_batch_size
        return self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size

    def tasks(self, steps: range, piece_pairs: int) -> Iterator[Task]:
        """This rank's pieces of these steps, in order."""
        first, last = self.bounds
        for step in steps:
            start = step * self.global_batch_size
            rows = self.order.rows(start, self.global_batch_size)
            for at in range(first, last, piece_pairs):
                yield Task(start + at, rows[at : min(at + piece_pairs, last)])


class PieceMaker:
    """Makes pieces of a view in one process: reads, decodes, crops, tokenizes."""

    def __init__(self, view: DataView, activity: Activity, worker: int) -> None:
        """`activity` is told what is read, under the number of this `worker`."""
        self.view, self.activity, self.worker = view, activity, worker
        self.reader = ShardReader(view.store.shard_set)
        self.picture = exact_picture if view.view.decode == "exact" else fast_picture

    def read(self, task: Task) -> list[bytes]:
        """The pictures' bytes; ShardError names a pair that cannot be read."""

        def watch(number: int, together: int) -> None:
            self.activity.start(self.worker, int(task.rows[number]), together)

        try:
            return self.reader.read(self.view.store.ranges(task.rows), watch)
        finally:
            self.activity.end(self.worker)

    def make(self, task: Task, contents: list[bytes], out: Pixels) -> Piece:
        """Put the pixels into `out` (at least B, side, side, 3), return the rest; ShardError names a bad picture."""
        view = self.view
        draws = position_draws(view.seed, task.first, len(task.rows), 1 + CROP_DRAWS)
        augment = view.view.augment
        drawn = crops(augment, draws[:, 1:]) if augment else [None] * len(contents)
        windows = []
        for number, (content, crop) in enumerate(zip(contents, drawn, strict=True)):
            try:
                windows.append(self.picture(content, crop, out[number]))
            except UNREADABLE as error:
                place = view.store.ranges(task.rows[number : number + 1])[0]
                raise view.store.unreadable(place, error) from error
        slot_draws = position_draws(view.seed, task.first, len(task.rows), len(view.view.texts), SLOTS)
        captions = view.choices.take(task.rows, draws[:, 0], slot_draws)
        texts = {of_slot("text", slot): view.tokens(chosen) for slot, chosen in captions.items()}
        more = {of_slot("text_id", slot): text_ids(chosen) for slot, chosen in captions.items()}
        more |= {"position": np.arange(task.first, task.first + len(task.rows))}
        more |= view.columns.of(task.rows, np.array(windows))
        return Piece(view.store.uids_of(task.rows), captions[""], texts, more)


def text_ids(captions: Sequence[str]) -> npt.NDArray[np.int64]:
    """(B,) numbers, equal for equal captions."""
    return np.array([text_id(caption) for caption in captions], np.int64)


def text_id(caption: str) -> int:
    """A 63-bit number that is equal for equal captions."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") >> 1


def joined(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, Tensor]:
    """Rows of pieces, one after another, by name."""
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def batches(
    view: DataView, steps: range, workers: int, stall_seconds: float, pin_memory: bool = False,
    piece_pairs: int = PIECE_PAIRS,
) -> Generator[Batch]:  # fmt: skip
    """Yield this rank's batch of every step, made ahead by `workers` processes (0: by threads of this one).

    Close the generator when it is not run to its end (`contextlib.closing`): that ends the workers.

    Raises:
        ShardError: names the uid and shard that cannot be read, or that were read for longer than `stall_seconds`.
        LostWorker: a worker was killed, or made nothing for so long.
    """
    loader = _Loader(view, workers, stall_seconds, pin_memory, piece_pairs, steps)
    try:
        for _ in steps:
            yield loader.next()
    finally:
        loader.close()


class _Loader:
    """One run of `batches`."""

    def __init__(
        self, view: DataView, workers: int, stall_seconds: float, pin_memory: bool, piece_pairs: int, steps: range
    ) -> None:
        self.view, self.stall_seconds, self.pin_memory, self.piece_pairs = view, stall_seconds, pin_memory, piece_pairs
        self.activity = Activity(workers)
        self.side, self.last_piece = view.towers.image_size, time.monotonic()
        self.free: list[Pixels] = []
        tasks, maker = view.tasks(steps, piece_pairs), partial(PieceMaker, view, self.activity)
        slot = (piece_pairs, self.side, self.side, 3)
        self.pieces = ForkedPieces(maker, tasks, workers, slot, self._near) if workers else OwnPieces(maker(0), tasks)
        self.made = Ahead(self._assemble() for _ in steps)

    def next(self) -> Batch:
        """The next batch."""
        began = time.monotonic()
        return self.made.get(lambda: self._check(began))

    def _assemble(self) -> Batch:
        first, last = self.view.bounds
        image = self._memory((last - first, self.side, self.side, 3))
        pixels, pieces = image.numpy(), []
        for at in range(0, len(pixels), self.piece_pairs):
            pieces.append(self.pieces.take(pixels[at : at + self.piece_pairs]))
            self.last_piece = time.monotonic()
        uids, captions, texts, more = zip(*pieces, strict=True)
        named = (joined(texts), joined(more))
        return Batch(image.permute(0, 3, 1, 2), named[0], list(chain(*uids)), list(chain(*captions)), named[1])

    def _memory(self, shape: tuple[int, ...]) -> Tensor:
        """Room for a batch's pixels: that of a batch nobody holds any more, as fresh pages cost a tenth of a picture.

        Pinned memory is kept by torch itself, which also knows of copies to the device that have not ended.
        """
        if self.pin_memory:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        room = self.free.pop() if self.free else np.empty(shape, np.uint8)
        lent = room[:]
        weakref.finalize(lent, self.free.append, room).atexit = False
        return torch.from_numpy(lent)

    def _check(self, began: float) -> None:
        """Raise when a read lasts too long, or when nothing comes although nothing is read."""
        reading, limit = self.activity.longest(), self.stall_seconds
        if reading and reading.seconds > limit:
            raise ShardError(
                f"rank {self.view.rank}: no answer for {reading.seconds:.0f} s (stall_seconds {limit:g})"
                f"{self._pair(reading.row, reading.together)}; check the storage, or raise stall_seconds"
            )
        if time.monotonic() - max(began, self.last_piece) > limit and not reading:
            raise LostWorker(f"rank {self.view.rank}: the loader made nothing for {limit:g} s and reads nothing")

    def _near(self, worker: int) -> str:
        reading = self.activity.of(worker)
        return self._pair(reading.row, reading.together) if reading else ""

    def _pair(self, row: int, together: int) -> str:
        place = self.view.store.ranges(np.array([row]))[0]
        more = f" and {together - 1} more pairs" if together > 1 else ""
        return f" while reading uid {place.uid!r}{more} in shard {self.view.store.shard_set.url(place.shard)}"

    def close(self) -> None:
        """End workers and threads."""
        self.made.close()
        self.pieces.close()
        self.made.join(seconds=5)
