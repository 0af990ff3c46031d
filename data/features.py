"""Feature sets: L2-normalised image_features per uid and text_features per distinct text, memory-mappable.

Layout: `images.npy` (N, D) float32 with `images.parquet` (uid, and the checksum of the picture's bytes as `content`),
`views/<name>.npy` (N, D) of other looks at the same pictures, `texts.npy` (M, D) with `texts.parquet` (text), and
`patches/` (`tokens.npy` (K, P, W) float16, `foreground.npy` (K, P) float32, `uids.parquet`). Rows are sorted by uid, so
that a reader of sorted uids goes through a file once. Texts are captions, filled zero-shot templates and queries alike:
a text is looked up by its own words.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data import storage
from data.artifacts import Artifact
from data.errors import ArtifactError, nearest
from data.lookup import Lookup
from data.shards import read_parquet, write_parquet

Floats = npt.NDArray[np.float32]
CONTENT = pa.binary(16)  # BLAKE2b-128 of a picture's bytes, as the inspect stage has it


class Patches(NamedTuple):
    """Patch tokens of some pictures before pooling. K pictures, P patches row by row, W width of the tower."""

    uids: list[str]
    tokens: npt.NDArray[np.float16]  # (K, P, W), memory-mapped
    foreground: Floats  # (K, P): mean opacity of each patch, in [0, 1]


def write_features(
    uri: str, uids: Sequence[str], images: Floats, texts: Sequence[str], text_features: Floats,
    views: Mapping[str, Floats] = {}, contents: Sequence[bytes] | None = None,
) -> None:  # fmt: skip
    """Write a small feature set below `uri`: all of it is in memory.

    Raises:
        ArtifactError: a feature is not finite; it would become a number in a report.
    """
    parts = {"images": ("uid", uids, images), **{f"views/{name}": ("uid", uids, rows) for name, rows in views.items()}}
    parts["texts"] = ("text", texts, text_features)
    for name, (column, keys, values) in parts.items():
        require_finite(values, keys, column)
        sink = io.BytesIO()
        np.save(sink, np.ascontiguousarray(values, dtype=np.float32))
        storage.write_bytes(storage.join(uri, f"{name}.npy"), sink.getvalue())
    write_keys(uri, uids, texts, contents)


def write_keys(
    uri: str, uids: Sequence[str] | pa.Array, texts: Sequence[str] | pa.Array, contents: Sequence[bytes] | None
) -> None:
    """Write what the rows of a feature set belong to."""
    pictures = {"uid": _strings(uids)}
    if contents is not None:
        pictures["content"] = contents if isinstance(contents, pa.Array) else pa.array(contents, CONTENT)
    write_parquet(storage.join(uri, "images.parquet"), pa.table(pictures))
    write_parquet(storage.join(uri, "texts.parquet"), pa.table({"text": _strings(texts)}))


def _strings(values: Sequence[str] | pa.Array) -> pa.Array:
    # large: offsets of 32 bits end at 2 GB of captions
    return values if isinstance(values, pa.Array) else pa.array(values, pa.large_string())


def require_finite(values: npt.NDArray[Any], keys: Sequence[str] | pa.Array, column: str) -> None:
    """Raise ArtifactError for the first row that is not finite."""
    is_finite = np.isfinite(values).reshape(len(keys), -1).all(axis=1) if len(keys) else np.ones(0, bool)
    if not is_finite.all():
        key = keys[int(is_finite.argmin())]
        name = key.as_py() if isinstance(key, pa.Scalar) else key
        raise ArtifactError(f"feature of {column} {name!r} is not finite; the checkpoint has diverged")


class RowOf(Mapping[str, int]):
    """Key -> row over arrow strings, without a Python object a row; many keys at once by `rows_of`."""

    def __init__(self, keys: pa.ChunkedArray) -> None:
        self._lookup = Lookup(keys)

    def rows_of(self, keys: Iterable[str] | pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """Row of each key, -1 where it is not there."""
        is_arrow = isinstance(keys, pa.Array | pa.ChunkedArray)
        return self._lookup.rows_of(keys if is_arrow else pa.array(list(keys), pa.large_string()))

    def __getitem__(self, key: str) -> int:
        row = int(self.rows_of([key])[0]) if isinstance(key, str) else -1
        if row < 0:
            raise KeyError(key)
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._lookup.strings.to_pylist())

    def __len__(self) -> int:
        return len(self._lookup.strings)


class FeatureSet:
    """Reader of a feature set artifact. Legend: N pictures, M texts, D embedding."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @cached_property
    def uids(self) -> list[str]:
        """Uids of the image features, in row order."""
        return list(self._pictures["uid"].to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """Texts of the text features, in row order."""
        return list(read_parquet(self.artifact.at("texts.parquet"))["text"].to_pylist())

    @cached_property
    def images(self) -> Floats:
        """image_features (N, D).

        Raises:
            ArtifactError: only views of the pictures were embedded.
        """
        if not storage.exists(self.artifact.at("images.npy")):
            raise ArtifactError(
                f"{self.artifact.uri}: has views only, not the pictures as they are; "
                "name a feature set of an embed stage with plain: true"
            )
        return self._floats("images.npy")

    @cached_property
    def views(self) -> tuple[str, ...]:
        """Names of the other looks at the pictures, sorted."""
        names = (name for name, _ in storage.list_files(self.artifact.at("views"), recursive=True))
        return tuple(sorted(name.removesuffix(".npy") for name in names if name.endswith(".npy")))

    def view(self, name: str) -> Floats:
        """image_features (N, D) of a named view, rows as those of `images`.

        Raises:
            ArtifactError: there is no such view.
        """
        if name not in self.views:
            hint = nearest(name, self.views) or f"; views are {', '.join(self.views) or 'none'}"
            raise ArtifactError(f"{self.artifact.uri}: has no view {name!r}{hint}")
        return self._floats(f"views/{name}.npy")

    @cached_property
    def text_features(self) -> Floats:
        """text_features (M, D)."""
        return self._floats("texts.npy")

    @cached_property
    def patches(self) -> Patches | None:
        """Patch tokens, None where none were kept."""
        if not storage.exists(self.artifact.at("patches", "tokens.npy")):
            return None
        uids = read_parquet(self.artifact.at("patches", "uids.parquet"))["uid"].to_pylist()
        return Patches(uids, self._load("patches/tokens.npy"), self._load("patches/foreground.npy"))

    @property
    def logit_scale(self) -> float:
        """The model's learned temperature: similarities times this are its logits; 100 where the record has none."""
        return float(self.artifact.record.metrics.get("logit_scale") or 100.0)

    @property
    def logit_bias(self) -> float:
        """What the model adds to its logits; 0 where the record has none."""
        return float(self.artifact.record.metrics.get("logit_bias") or 0.0)

    @cached_property
    def image_row(self) -> RowOf:
        """Uid -> row of `images` and of every view."""
        return RowOf(self._pictures["uid"])

    def embedded(self, uids: Sequence[str]) -> list[str]:
        """Those of these uids that have image features, in their order."""
        return [uid for uid, row in zip(uids, self.image_row.rows_of(uids).tolist(), strict=True) if row >= 0]

    @cached_property
    def text_row(self) -> RowOf:
        """Text -> row of `text_features`."""
        return RowOf(read_parquet(self.artifact.at("texts.parquet"), ["text"])["text"])

    def image_rows(self, uids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of these uids; ArtifactError names the first that was not embedded."""
        return self._rows(self.image_row, uids, "uid")

    def text_rows(self, texts: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of these texts; ArtifactError names the first that was not embedded."""
        return self._rows(self.text_row, texts, "text")

    def contents(self, uids: Iterable[str]) -> pa.Array | None:
        """Checksums (CONTENT) of these uids' pictures, None where the set has none; raises what `image_rows` raises."""
        if "content" not in self._pictures.column_names:
            return None
        return self._pictures["content"].take(pa.array(self.image_rows(uids))).combine_chunks().cast(CONTENT)

    @cached_property
    def _pictures(self) -> pa.Table:
        return read_parquet(self.artifact.at("images.parquet"))

    def _rows(self, table: RowOf, keys: Iterable[str], what: str) -> npt.NDArray[np.int64]:
        wanted = keys if isinstance(keys, Sequence) else list(keys)
        rows = table.rows_of(wanted)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise ArtifactError(
                f"{self.artifact.uri}: {what} {wanted[int(missing[0])]!r} was not embedded; "
                "add it to the embed stage's splits or prompts"
            )
        return rows

    def _floats(self, name: str) -> Floats:
        values: Floats = self._load(name)
        return values

    def _load(self, name: str) -> Any:
        """An array of the set, memory-mapped; of a remote one a copy that the disk gets back with the mapping."""
        with storage.local_copy(self.artifact.at(name)) as path:
            return np.load(path, mmap_mode="r", allow_pickle=False)
