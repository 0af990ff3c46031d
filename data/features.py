"""Feature sets: L2-normalised image_features per uid and text_features per distinct text, memory-mappable.

Layout: `images.npy` (N, D) float32 with `images.parquet` (uid), `texts.npy` (M, D) float32 with `texts.parquet` (text).
Texts are captions, filled zero-shot templates and queries alike: a text is looked up by its own words.
"""

import io
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data import storage
from data.artifacts import Artifact
from data.errors import ArtifactError
from data.shards import read_parquet, write_parquet

Floats = npt.NDArray[np.float32]


def write_features(uri: str, uids: Sequence[str], images: Floats, texts: Sequence[str], text_features: Floats) -> None:
    """Write a feature set below `uri`.

    Raises:
        ArtifactError: a feature is not finite; it would become a number in a report.
    """
    for name, keys, column, values in (("images", uids, "uid", images), ("texts", texts, "text", text_features)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1)) if len(values) else np.empty(0, int)
        if len(bad):
            raise ArtifactError(f"feature of {column} {keys[bad[0]]!r} is not finite; the checkpoint has diverged")
        sink = io.BytesIO()
        np.save(sink, np.ascontiguousarray(values, dtype=np.float32))
        storage.write_bytes(storage.join(uri, f"{name}.npy"), sink.getvalue())
        write_parquet(storage.join(uri, f"{name}.parquet"), pa.table({column: pa.array(keys, pa.string())}))


class FeatureSet:
    """Reader of a feature set artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @cached_property
    def uids(self) -> list[str]:
        """Uids of the image features, in row order."""
        return list(read_parquet(self.artifact.at("images.parquet"))["uid"].to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """Texts of the text features, in row order."""
        return list(read_parquet(self.artifact.at("texts.parquet"))["text"].to_pylist())

    @cached_property
    def images(self) -> Floats:
        """image_features (N, D)."""
        return self._load("images.npy")

    @cached_property
    def text_features(self) -> Floats:
        """text_features (M, D)."""
        return self._load("texts.npy")

    @cached_property
    def image_row(self) -> dict[str, int]:
        """Uid -> row of `images`."""
        return {uid: row for row, uid in enumerate(self.uids)}

    @cached_property
    def text_row(self) -> dict[str, int]:
        """Text -> row of `text_features`."""
        return {text: row for row, text in enumerate(self.texts)}

    def image_rows(self, uids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of these uids; ArtifactError names the first that was not embedded."""
        return self._rows(self.image_row, uids, "uid")

    def text_rows(self, texts: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of these texts; ArtifactError names the first that was not embedded."""
        return self._rows(self.text_row, texts, "text")

    def _rows(self, table: dict[str, int], keys: Iterable[str], what: str) -> npt.NDArray[np.int64]:
        try:
            return np.fromiter((table[key] for key in keys), dtype=np.int64)
        except KeyError as error:
            raise ArtifactError(
                f"{self.artifact.uri}: {what} {error.args[0]!r} was not embedded; "
                "add it to the embed stage's splits or prompts"
            ) from error

    def _load(self, name: str) -> Floats:
        uri = self.artifact.at(name)
        if storage.is_local(uri):
            return np.load(uri, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        return np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)  # type: ignore[no-any-return]
