"""Towers that several threads of one process use side by side, each forward pass on one thread.

A product of matrices is summed in another order on another number of threads, and in another number of rows. With
passes of a fixed size on one thread each, features do not depend on the machine's cores, and as many passes at a time
keep all cores busy. A GPU takes the passes in turn, while other threads decode.
Legend: B pictures or texts of a pass, S side, L tokens, P patches, W width of the image tower, D embedding.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data.features import Floats
from data.place import Place
from training.pictures import Pixels
from training.towers import Towers

Item = TypeVar("Item")
Result = TypeVar("Result")


class Forward:
    """Forward passes of towers in evaluation mode."""

    def __init__(self, towers: Towers, autocast: torch.dtype | None = None) -> None:
        self.towers, self.autocast, self.device = towers, autocast, towers.device
        self._on_gpu = self.device.type == "cuda"
        self._turn: AbstractContextManager[Any] = Lock() if self._on_gpu else nullcontext()

    @property
    def rows(self) -> int:
        """Pictures or texts of a pass: 64 are as fast as more on a CPU, and a GPU is busy with 256."""
        return 256 if self._on_gpu else 64

    def room(self, pictures: int) -> Pixels:
        """Memory for uint8 pixels (B, S, S, 3), from which a copy to the device need not be waited for."""
        side = self.towers.image_size
        return torch.empty((pictures, side, side, 3), dtype=torch.uint8, pin_memory=self._on_gpu).numpy()

    def images(self, pixels_BSS3: Pixels) -> Floats:
        """image_features (B, D)."""
        encode: Any = self.towers.model.encode_image
        return self._pass(lambda: self._unit(encode(self._input(pixels_BSS3), normalize=True)))

    def texts(self, ids_BL: npt.NDArray[np.int64]) -> Floats:
        """text_features (B, D)."""
        ids = self.towers.trimmed(torch.from_numpy(ids_BL))
        return self._pass(lambda: self._unit(self.towers.encode_text(ids.to(self.device, non_blocking=True))))

    def patches(self, pixels_BSS3: Pixels, tokens: Callable[[Tensor], Tensor]) -> Floats:
        """What `tokens` makes of the image tower's input, (B, P, W)."""
        return self._pass(lambda: tokens(self._input(pixels_BSS3)).float())

    def _input(self, pixels_BSS3: Pixels) -> Tensor:
        image = torch.from_numpy(pixels_BSS3).to(self.device, non_blocking=True)
        return self.towers.normalise(image.permute(0, 3, 1, 2))

    def _unit(self, features_BD: Tensor) -> Tensor:
        """float32 of length 1; halves of 16 bits are of that length only to a few thousandths."""
        return features_BD if self.autocast is None else nn.functional.normalize(features_BD.float(), dim=-1)

    def _pass(self, compute: Callable[[], Tensor]) -> Floats:
        autocast = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(), autocast:
            with self._turn:
                result = compute()
            return result.float().cpu().numpy()


def open_forward(towers: Towers, place: Place) -> Forward:
    """Put towers where the place says, in the precision it says, as training has it."""
    if place.gpus_per_worker and torch.cuda.is_available():
        towers.to("cuda")
    is_bf16 = place.precision == "bf16" or (place.precision == "auto" and towers.device.type == "cuda")
    return Forward(towers, torch.bfloat16 if is_bf16 else None)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Every pass begun inside computes on the thread that began it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_order(do: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """Results in the order of the items, made on so many threads; at most `ahead` items are begun or waiting."""
    pending: deque[Future[Result]] = deque()
    with one_thread_each(), ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        try:
            for item in items:
                pending.append(pool.submit(do, item))
                if len(pending) >= max(threads, ahead):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
