"""What every piece of an embed stage knows: the spec, where its parents and its restart state are, and the place.

It travels to workers by its addresses; towers are loaded once a process.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data import storage
from data.artifacts import open_artifact
from data.events import SILENT, Events
from data.place import Place
from data.selection import in_splits
from data.shards import ShardSet, read_parquet
from training.checkpoint_folder import CONFIG_NAME
from training.forward import Forward, open_forward
from training.specs import EmbedSpec, ImageView
from training.towers import load_towers

PLAIN = "images"


class Piece(NamedTuple):
    """Rows of one look that lie in one restart file, and their places in the whole."""

    uri: str
    rows: npt.NDArray[np.int64]


class Job:
    """One embed stage, as its workers see it."""

    def __init__(
        self, spec: EmbedSpec, uris: dict[str, str], state_uri: str, place: Place, events: Events = SILENT
    ) -> None:
        """`uris`: role -> address of the parent."""
        self.spec, self.uris, self.state_uri, self.place, self.events = spec, uris, state_uri, place, events

    def progress(self, done: int, shard: str, pairs: int) -> None:
        """Say how far a shard is, where one process takes them in turn: a single shard may take an hour."""
        if not self.place.data_workers:
            self.events.progress(done, pairs, "pairs", f"pictures of shard {shard}")

    @property
    def looks(self) -> dict[str, ImageView | None]:
        """File name in the feature set -> view; None is the picture as it is."""
        views: dict[str, ImageView | None] = {f"views/{name}": view for name, view in self.spec.views.items()}
        return {PLAIN: None, **views} if self.spec.plain else views

    @property
    def threads(self) -> int:
        """Threads of one process: a task on Ray has one CPU, or as many as go with a GPU."""
        has_cpus = not self.place.data_workers or self.place.gpus_per_worker
        return self.place.cpus_per_worker if has_cpus else 1

    @cached_property
    def embed_dim(self) -> int:
        """Width of the shared space."""
        return int(storage.read_json(storage.join(self.uris["checkpoint"], CONFIG_NAME))["model_cfg"]["embed_dim"])

    @property
    def forward(self) -> Forward:
        """The towers, loaded once a process."""
        return _open_towers(self.uris["checkpoint"], self.place.model_dump_json())

    def pairs(self) -> ShardSet:
        """The pairs to embed."""
        return ShardSet(open_artifact(self.uris["pairs"], "shard_set"))

    def shard(self, pairs: ShardSet, number: int) -> pa.Table:
        """uid, offset, bytes of a shard's pairs in the splits, in the shard's order."""
        name = pairs.shards[number].name
        index = read_parquet(pairs.artifact.at("index", f"{name}.parquet"), ["uid", "offset", "bytes"])
        return index.filter(in_splits(open_artifact(self.uris["split"], "split"), name, self.spec.splits))

    def ahead(self, rows: int) -> int:
        """Forward passes begun or waiting, of so many rows each."""
        return self.spec.chunk_pairs // rows

    def state(self, *parts: str) -> str:
        """Address of a file of the restart state."""
        return storage.join(self.state_uri, *parts)


@lru_cache(1)
def _open_towers(uri: str, place: str) -> Forward:
    return open_forward(load_towers(uri), Place.model_validate_json(place))


def forget_towers() -> None:
    """Give a finished stage's towers back."""
    _open_towers.cache_clear()


def new_array(path: Path, shape: tuple[int, ...], dtype: type = np.float32) -> npt.NDArray[Any]:
    """A .npy file of zeros, mapped for writing; of one without rows there is nothing to map."""
    if shape[0]:
        return np.lib.format.open_memmap(path, "w+", dtype, shape)
    with path.open("wb") as stream:
        np.save(stream, np.empty(shape, dtype))
    return np.empty(shape, dtype)


def put_together(pieces: Sequence[Piece], shape: tuple[int, ...], uri: str, dtype: type = np.float32) -> None:
    """Write one .npy from pieces; it is mapped anew for each, so that memory holds one piece's pages."""
    with storage.local_output(uri) as path:
        new_array(path, shape, dtype)
        for piece in pieces:
            with storage.local_copy(piece.uri) as source:
                whole = np.load(path, mmap_mode="r+", allow_pickle=False)
                whole[piece.rows] = np.load(source, mmap_mode="r", allow_pickle=False)
