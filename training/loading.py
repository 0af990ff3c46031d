"""From shard sets to batches: which pairs, which caption, which crop; decoded once, kept as small uint8 pictures.

Shapes: B pairs of this rank, C channels, H height, W width, L tokens.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from data.artifacts import Artifact
from data.errors import ShardError
from data.selection import kept_uids
from data.shards import CaptionLayer, ShardSet
from training.order import Ints, derange, step_generator
from training.specs import Augment, View
from training.towers import Pixels, Towers, decode_image

_CACHE_BYTES = 2 << 30  # decoded pictures kept in memory, per process
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One rank's pairs of one optimizer step."""

    image: Tensor  # (B, C, H, W) in the towers' input range
    text: Tensor  # (B, L) token ids
    text_id: Tensor  # (B,) int64, equal for equal captions
    uids: list[str]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.uids)

    def chunks(self, pairs: int | None) -> Iterator["Batch"]:
        """The same pairs in pieces of at most `pairs`."""
        size = pairs or len(self)
        for at in range(0, len(self), size):
            to = slice(at, at + size)
            yield Batch(self.image[to], self.text[to], self.text_id[to], self.uids[to], self.captions[to])

    def to(self, device: torch.device) -> "Batch":
        """The same pairs on a device."""
        image, text, text_id = (t.to(device, non_blocking=True) for t in (self.image, self.text, self.text_id))
        return Batch(image, text, text_id, self.uids, self.captions)


class PairStore:
    """Pairs by row (sorted by uid): pictures by offset, captions by source."""

    def __init__(self, shard_set: ShardSet, uids: Sequence[str], layers: Sequence[CaptionLayer] = ()) -> None:
        """Keep the pairs of `uids`.

        Raises:
            ShardError: a uid is not in the shard set.
        """
        self.shard_set, self.uids = shard_set, sorted(uids)
        row = {uid: number for number, uid in enumerate(self.uids)}
        index = shard_set.index()
        places = np.stack([index[name].to_numpy() for name in ("shard", "offset", "bytes")], axis=1).astype(np.int64)
        self.place = np.full((len(self.uids), 3), -1, np.int64)
        for number, uid in enumerate(index["uid"].to_pylist()):
            if uid in row:
                self.place[row[uid]] = places[number]
        missing = np.flatnonzero(self.place[:, 0] < 0)
        if len(missing):
            raise ShardError(
                f"{len(missing)} selected uids, e.g. {self.uids[missing[0]]!r}, are not in {shard_set.artifact.uri}"
            )
        self.captions: dict[str, list[str | None]] = {}
        for table in (shard_set.captions(), *(layer.captions() for layer in layers)):
            self._add_captions(table, row)

    def _add_captions(self, table: pa.Table, row: Mapping[str, int]) -> None:
        for uid, source, caption in zip(
            *(table[name].to_pylist() for name in ("uid", "source", "caption")), strict=True
        ):
            if uid in row:
                self.captions.setdefault(source, [None] * len(self.uids))[row[uid]] = caption

    def __len__(self) -> int:
        return len(self.uids)

    def decode(self, row: int, side: int) -> Pixels:
        """uint8 (side, side, 3) of the pair in this row.

        Raises:
            ShardError: names the uid and shard of a picture that cannot be read.
        """
        shard, offset, size = (int(value) for value in self.place[row])
        content = self.shard_set.read_image(shard, offset, size)
        try:
            return decode_image(content, side)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = self.shard_set.shards[shard].name
            raise ShardError(
                f"uid {self.uids[row]!r} in shard {name}: not a readable image ({error}); run `clipworks verify`"
            ) from error


def open_pairs(pairs: Artifact, selection: Artifact, layers: Sequence[Artifact]) -> PairStore:
    """The pairs a selection keeps, with the captions of the shard set and of the layers."""
    return PairStore(ShardSet(pairs), kept_uids(selection), [CaptionLayer(layer) for layer in layers])


@lru_cache(maxsize=1 << 20)
def text_id(caption: str) -> int:
    """A 63-bit number that is equal for equal captions."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") >> 1


class DecodedPictures:
    """uint8 pictures by row; all of them stay in memory where they fit, else each visit decodes again."""

    def __init__(self, store: PairStore, side: int) -> None:
        self.store, self.side = store, side
        fits = len(store) * side * side * 3 <= _CACHE_BYTES
        self.cache: Pixels | None = np.empty((len(store), side, side, 3), np.uint8) if fits else None
        self.known = np.zeros(len(store), np.bool_)

    def take(self, rows: Ints) -> Pixels:
        """(B, side, side, 3) of these rows."""
        if self.cache is None:
            return np.stack([self.store.decode(int(row), self.side) for row in rows])
        for row in rows[~self.known[rows]]:
            self.cache[row] = self.store.decode(int(row), self.side)
            self.known[row] = True
        return self.cache[rows]


class CaptionChoice:
    """One caption a visit: a source drawn by weight among those the pair has.

    LaCLIP's uniform draw when weights are equal.
    Always consumes one draw a pair, so that a pair with one caption leaves the others' draws alone.
    """

    def __init__(self, store: PairStore, view: View, seed: int) -> None:
        """Raises ShardError when a source is unknown or some pair has none of them."""
        unknown = sorted(set(view.caption_weights) - set(store.captions))
        if unknown:
            raise ShardError(
                f"caption source {unknown[0]!r}: not in these pairs; there are {', '.join(sorted(store.captions))}"
            )
        self.source = derange(len(store), view.caption_noise, seed)
        names = list(view.caption_weights)
        self.texts = [store.captions[name] for name in names]
        has = np.array([[text is not None for text in column] for column in self.texts], np.float64)
        weight = has * np.array([view.caption_weights[name] for name in names])[:, None]
        total = weight.sum(axis=0)
        if (total == 0).any():
            uid = store.uids[int(np.flatnonzero(total == 0)[0])]
            raise ShardError(
                f"uid {uid!r}: has none of the caption sources {', '.join(names)}; add a source or filter such pairs"
            )
        self.cumulative = np.cumsum(weight / total, axis=0)

    def take(self, rows: Ints, draws: npt.NDArray[np.float64]) -> list[str]:
        """Captions of these rows; `draws` are uniform in [0, 1)."""
        rows = self.source[rows]
        chosen = (draws[None, :] >= self.cumulative[:, rows] - 1e-12).sum(axis=0).clip(max=len(self.texts) - 1)
        return [str(self.texts[source][row]) for source, row in zip(chosen, rows, strict=True)]


def crop_boxes(augment: Augment, count: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """(count, 4) of centre x, centre y, width, height in [0, 1]: random area and ratio, inside the picture."""
    area = random.uniform(*augment.crop_scale, size=count)
    low, high = np.log(augment.crop_ratio)
    ratio = np.exp(random.uniform(low, high, size=count))
    width, height = np.sqrt(area * ratio).clip(max=1), np.sqrt(area / ratio).clip(max=1)
    x, y = (random.random(count) * (1 - side) + side / 2 for side in (width, height))
    return np.stack([x, y, width, height], axis=1)


def crop(pixels_BHWC: Pixels, boxes_B4: npt.NDArray[np.float64], side: int) -> Tensor:
    """Cut boxes out of uint8 pictures and bring them to (B, C, side, side) uint8, bilinear."""
    box = torch.from_numpy(boxes_B4).float()
    image = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float()
    theta = torch.zeros(len(box), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = box[:, 2], box[:, 3]
    theta[:, 0, 2], theta[:, 1, 2] = 2 * box[:, 0] - 1, 2 * box[:, 1] - 1
    grid = torch.nn.functional.affine_grid(theta, [len(box), 3, side, side], align_corners=False)
    cut = torch.nn.functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.round_().clamp_(0, 255).to(torch.uint8)


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
    pictures: DecodedPictures = field(init=False)
    choice: CaptionChoice = field(init=False)

    def __post_init__(self) -> None:
        augment = self.view.augment
        smallest = augment.crop_scale[0] if augment else 1.0
        self.pictures = DecodedPictures(self.store, int(np.ceil(self.towers.image_size / np.sqrt(smallest))))
        self.choice = CaptionChoice(self.store, self.view, self.seed)

    def batch(self, step: int) -> Batch:
        """This rank's pairs of optimizer step `step` (counted from 0)."""
        size = self.global_batch_size
        random = step_generator(self.seed, step)
        draws = random.random(size)
        boxes = crop_boxes(self.view.augment, size, random) if self.view.augment else None
        mine = slice(self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size)
        rows = self.order.rows(step * size, size)[mine]
        pixels = self.pictures.take(rows)
        image = (
            torch.from_numpy(pixels).permute(0, 3, 1, 2)
            if boxes is None
            else crop(pixels, boxes[mine], self.towers.image_size)
        )
        captions = self.choice.take(rows, draws[mine])
        ids = torch.tensor([text_id(caption) for caption in captions])
        return Batch(
            self.towers.normalise(image), self.tokens(captions), ids, [self.store.uids[row] for row in rows], captions
        )

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(B, L) token ids; each distinct caption is tokenized once."""
        return torch.stack([self._token_row(caption) for caption in captions])

    def _token_row(self, caption: str) -> Tensor:
        if not hasattr(self, "_rows"):
            self._rows: dict[str, Tensor] = {}
        if caption not in self._rows:
            self._rows[caption] = self.towers.tokenizer([caption])[0]
        return self._rows[caption]


def ahead(make: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """Yield make(step) for every step, made in a background thread a few steps ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        queue = [pool.submit(make, step) for step in steps[:_BATCHES_AHEAD]]
        for step in steps:
            batch = queue.pop(0).result()
            if step + _BATCHES_AHEAD in steps:
                queue.append(pool.submit(make, step + _BATCHES_AHEAD))
            yield batch
