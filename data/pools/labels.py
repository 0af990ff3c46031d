"""What the members of CLIP_benchmark's tars mean: labels and captions become metadata and captions of a pair.

`cls` is the number of a class. `npy` beside it, or where no class list fits, is metadata `values`; else a vector with
0 or 1 for each class. `txt` has a caption a line (`alt`, `alt2` ...). `json` is metadata, as in any shard.
"""

import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data import storage
from data.errors import ShardError
from data.pools import Dropped
from data.pools.benchmark import files_url, list_benchmark_tars, read_classes
from data.pools.tar import Member
from data.pools.tars import Tar
from data.pools.text import printable
from data.pools.webdataset import (
    MAX_JSON_BYTES,
    Limits,
    Said,
    UnusableError,
    checked_captions,
    json_captions,
    own_metadata,
    read_document,
)  # fmt: skip
from data.specs import BenchmarkPool

_MAX_CLS_BYTES = 64
_MAX_ARRAY_BYTES = 1 << 20
_MAX_VALUES = 1024  # numbers of an array that is metadata
_MAX_LINES_BYTES = 1 << 20  # captions of a picture

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Array = npt.NDArray[Any]


def labelled_tars(pool: BenchmarkPool) -> tuple[list[Tar], dict[str, Any]]:
    """The tars of a benchmark pool, and the facts for the data card."""
    url = files_url(pool.url)
    classes, kind = read_classes(url)
    tars = [
        Tar(f"{split}-{number}", storage.join(url, file), Labels(split, number, classes, kind, pool.value_names))
        for split, number, file, _ in list_benchmark_tars(url, pool.splits)
    ]
    card = {
        "title": "A data set in CLIP_benchmark's layout, read where it lies",
        "type": kind,
        "classes": len(classes),
        "splits": list(dict.fromkeys(pool.splits)),
        "licence": "not stated",
    }
    return tars, card


class Labels(NamedTuple):
    """Layout of one tar of a data set: its split and number, class names (empty: unknown) and type."""

    split: str
    number: int
    classes: tuple[str, ...]
    type: str
    value_names: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """Keys repeat in every tar of every split; a uid does not."""
        return f"{self.split}-{self.number}-"

    def sides(self, limits: Limits) -> dict[str, int]:
        """Extension -> largest member that is read."""
        lines = max(_MAX_LINES_BYTES, limits.max_caption_bytes)
        return {"txt": lines, "json": MAX_JSON_BYTES, "cls": _MAX_CLS_BYTES, "npy": _MAX_ARRAY_BYTES}

    def read(self, members: Mapping[str, Member], shard: str, limits: Limits, dropped: list[Dropped]) -> Said:
        """Captions and metadata of a pair.

        Raises:
            UnusableError: a label or a caption cannot be read, or a retrieval pair has no caption.
            ShardError: a label does not fit the class names, so that every other label is in doubt.
        """
        document = read_document(members.get("json"), shard, dropped)
        own = _lines(members["txt"]) if "txt" in members else json_captions(document)
        captions = checked_captions(own, document, limits)
        if not captions and self.type == "retrieval":
            raise UnusableError("missing_caption")
        return Said(captions, {**own_metadata(document), "split": self.split, **self._labels(members)})

    def _labels(self, members: Mapping[str, Member]) -> dict[str, Any]:
        array = _array(members["npy"]) if "npy" in members else None
        if "cls" in members:
            return {**self._class(members["cls"]), **self._values(members, array)}
        if array is not None and (self.type == "multilabel" or self._is_vector(array)):
            return self._classes(members["npy"], array)
        return self._values(members, array)

    def _values(self, members: Mapping[str, Member], array: Array | None) -> dict[str, Any]:
        """Numbers beside a label, as they are and by their names."""
        found = _values(array)
        if array is None or not self.value_names:
            return found
        if array.shape != (len(self.value_names),):
            names = ", ".join(self.value_names)
            raise ShardError(
                f"{self._place(members['npy'])}: array of shape {array.shape}, but value_names are {names}; name each"
            )
        return {**found, **dict(zip(self.value_names, found["values"], strict=True))}

    def _class(self, member: Member) -> dict[str, Any]:
        number = _integer(member)
        if not self.classes:
            return {"cls": number}
        if not 0 <= number < len(self.classes):
            raise ShardError(self._misfit(member, f"label {number}"))
        return {"cls": number, "class": self.classes[number]}

    def _is_vector(self, array: Array) -> bool:
        return array.shape == (len(self.classes),) and len(self.classes) > 1 and _is_binary(array)

    def _classes(self, member: Member, array: Array) -> dict[str, Any]:
        if array.ndim != 1 or (self.classes and len(array) != len(self.classes)):
            raise ShardError(self._misfit(member, f"label array of shape {array.shape}"))
        if not _is_binary(array):
            other = array[(array != 0) & (array != 1)][0]
            raise ShardError(f"{self._place(member)}: {other} in a label array; write 0 or 1 for each class")
        numbers = np.flatnonzero(array).tolist()
        named = {"classes": [self.classes[number] for number in numbers]} if self.classes else {}
        return {"cls": numbers, **named}

    def _misfit(self, member: Member, label: str) -> str:
        names = len(self.classes)
        return f"{self._place(member)}: {label}, but classnames.txt has {names} names; give one name for every label"

    def _place(self, member: Member) -> str:
        return f"{self.split}/{self.number}.tar, {printable(member.name)}"


def _lines(member: Member) -> dict[str, str]:
    if member.payload is None:
        raise UnusableError("caption_too_large")
    lines = member.payload.decode("utf-8", "surrogateescape").split("\n")  # as they were joined
    texts = [line.rstrip("\r") for line in lines if line.strip()]
    return {"alt" if number == 1 else f"alt{number}": text for number, text in enumerate(texts, start=1)}


def _integer(member: Member) -> int:
    try:
        return int(member.payload or b"")
    except ValueError as error:
        raise UnusableError("bad_label") from error


def _values(array: Array | None) -> dict[str, Any]:
    if array is None:
        return {}
    if array.size > _MAX_VALUES:
        raise UnusableError("array_too_large")
    return {"values": array.tolist()}


def _is_binary(array: Array) -> bool:
    return bool(((array == 0) | (array == 1)).all())


def _array(member: Member) -> Array:
    """Numbers of a numpy file; nothing is unpickled, and a header that promises more than there is allocates nothing.

    Raises:
        UnusableError: it is none, or no array of real numbers.
    """
    if member.payload is None:
        raise UnusableError("array_too_large")
    stream = io.BytesIO(member.payload)
    try:
        shape, is_fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
        if dtype.kind not in "biuf":
            raise UnusableError("bad_array")
        numbers = np.frombuffer(member.payload, dtype, math.prod(shape), stream.tell())
    except (ValueError, KeyError, TypeError, SyntaxError, EOFError, RecursionError, MemoryError) as error:
        raise UnusableError("bad_array") from error
    return numbers.reshape(shape, order="F" if is_fortran else "C")
