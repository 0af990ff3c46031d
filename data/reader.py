"""Pictures out of tars by byte range: open files are kept, remote ranges travel together, a bad range names its pair.

A reader belongs to one thread of one process: make it where it is used. Nothing is memory-mapped, because a file that
is truncated under a map ends the process with SIGBUS.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from itertools import groupby
from typing import Any, NamedTuple

from data import storage
from data.errors import ShardError, StorageError, located
from data.shards import ShardSet

_GAP_BYTES = 64 << 10  # reading over a gap of this size costs less than one more request


class PictureRange(NamedTuple):
    """Where one pair's picture lies: number of the shard, and bytes inside its tar."""

    uid: str
    shard: int
    offset: int
    bytes: int

    @property
    def end(self) -> int:
        """First byte behind the picture."""
        return self.offset + self.bytes


def _watch_nothing(_number: int, _together: int) -> None:
    """Do nothing: the default of `ShardReader.read`."""


class ShardReader:
    """Reads pictures of a shard set: local tars through open files, remote ones with concurrent range requests."""

    def __init__(self, shard_set: ShardSet, open_files: int = 64) -> None:
        """Keep at most `open_files` local tars open, those used last."""
        self.shard_set, self.open_files = shard_set, open_files
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._urls: dict[int, str] = {}

    def read(self, ranges: Sequence[PictureRange], watch: Callable[[int, int], None] = _watch_nothing) -> list[bytes]:
        """Bytes of these pictures, in order; they are read shard by shard.

        `watch(number, together)` is told before each read: the number of a picture, and how many are read with it.

        Raises:
            ShardError: names the uid and shard of a tar that is gone, cannot be read or is shorter than its index.
        """
        found = [b""] * len(ranges)
        remote = []
        for number in sorted(range(len(ranges)), key=lambda number: ranges[number][1:3]):
            if storage.is_local(self._url(ranges[number])):
                watch(number, 1)
                found[number] = self._read_local(ranges[number])
            else:
                remote.append(number)
        if remote:
            watch(remote[0], len(remote))
            for number, content in self._read_remote(remote, ranges):
                found[number] = content
        return found

    def _read_local(self, place: PictureRange) -> bytes:
        url = self._url(place)
        try:
            with storage.explained(url, "read"):
                descriptor = self._file(place.shard, url).fileno()
                if os.fstat(descriptor).st_nlink == 0:
                    raise FileNotFoundError(errno.ENOENT, "removed while it was read")
                content = _pread(descriptor, place)
        except StorageError as error:
            raise self._error(place, str(error)) from error
        return self._whole(place, content)

    def _url(self, place: PictureRange) -> str:
        if place.shard not in self._urls:
            self._urls[place.shard] = self.shard_set.url(place.shard)
        return self._urls[place.shard]

    def _file(self, shard: int, url: str) -> FileIO:
        if shard not in self._files:
            while len(self._files) >= self.open_files:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = FileIO(storage.normalise(url))
        self._files.move_to_end(shard)
        return self._files[shard]

    def _read_remote(self, numbers: list[int], ranges: Sequence[PictureRange]) -> Iterator[tuple[int, bytes]]:
        """Yield (number, bytes); near ranges of one tar are one request, all requests run at the same time."""
        spans = list(_spans(numbers, ranges))
        for _, same in groupby(spans, key=lambda span: self._url(ranges[span[0]]).split("://")[0]):
            part = list(same)
            for span, content in zip(part, self._fetch(part, ranges), strict=True):
                start = ranges[span[0]].offset
                for number in span:
                    place = ranges[number]
                    yield number, self._whole(place, content[place.offset - start : place.end - start])

    def _fetch(self, spans: list[list[int]], ranges: Sequence[PictureRange]) -> list[bytes]:
        urls = [self._url(ranges[span[0]]) for span in spans]
        starts, ends = ([f(ranges[i] for i in span) for span in spans] for f in (_start, _end))
        fs, _ = storage.filesystem(urls[0])
        paths = [storage.filesystem(url)[1] for url in urls]
        answers: list[Any] = fs.cat_ranges(paths, starts, ends, on_error="return")
        return [
            self._answer(ranges[span[0]], url, answer) for span, url, answer in zip(spans, urls, answers, strict=True)
        ]

    def _answer(self, place: PictureRange, url: str, answer: Any) -> bytes:
        if isinstance(answer, OSError) and answer.errno == errno.EINVAL:  # S3: the range begins behind the end
            return b""
        if not isinstance(answer, BaseException):
            return bytes(answer)
        try:
            with storage.explained(url, "read"):
                raise answer
        except StorageError as error:
            raise self._error(place, str(error)) from error

    def _whole(self, place: PictureRange, content: bytes) -> bytes:
        if len(content) != place.bytes:
            url = self._url(place)
            raise self._error(place, f"{url} ends before byte {place.end}; the shard is torn, ingest it again")
        return content

    def _error(self, place: PictureRange, what: str) -> ShardError:
        shard = self.shard_set.shards[place.shard].name
        return located(ShardError(f"uid {place.uid!r} in shard {shard}: {what}"), uid=place.uid, shard=shard)


def _pread(descriptor: int, place: PictureRange) -> bytes:
    content = os.pread(descriptor, place.bytes, place.offset)
    while len(content) < place.bytes:  # network file systems may give less than was asked for
        more = os.pread(descriptor, place.bytes - len(content), place.offset + len(content))
        if not more:
            break
        content += more
    return content


def _start(places: Iterator[PictureRange]) -> int:
    return min(place.offset for place in places)


def _end(places: Iterator[PictureRange]) -> int:
    return max(place.end for place in places)


def _spans(numbers: list[int], ranges: Sequence[PictureRange]) -> Iterator[list[int]]:
    """Group numbers (sorted by shard and offset) whose ranges lie near each other in one tar."""
    span: list[int] = []
    for number in numbers:
        place = ranges[number]
        if span and (place.shard != ranges[span[-1]].shard or place.offset - ranges[span[-1]].end > _GAP_BYTES):
            yield span
            span = []
        span.append(number)
    if span:
        yield span
