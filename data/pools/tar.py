"""Walk a tar that may be hostile or damaged: every member, and everything that is wrong, in one sequential read.

After a bad header the walk looks for the next block that is one, so a flipped byte costs a member and not the rest of
the shard. Nothing is unpacked, and no more of a member is held in memory than the caller asks for.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from data.pools.text import is_utf8

BLOCK = tarfile.BLOCKSIZE
_ZERO = bytes(BLOCK)
_STEP_BYTES = 1 << 20
_MAX_EXTENDED_BYTES = 1 << 20
DAMAGE = ("bad_header", "torn_tar", "data_after_end")  # problems of the archive itself
_EXTENDED_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_IGNORED_TYPES = (tarfile.DIRTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
_EMPTY_TYPES = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)


class Member(NamedTuple):
    """A member, or bytes that are none. `problem` is "" for a usable member; `payload` is None if it was not wanted."""

    name: str
    offset: int
    size: int
    payload: bytes | None
    problem: str


class Tape:
    """Reads a file once from start to end, and hashes it."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.size, self.position = size, 0
        self._stream, self._state = stream, hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Read `count` bytes, fewer at the end of the file."""
        content = self._stream.read(count)
        self._state.update(content)
        self.position += len(content)
        if len(content) < count:
            self.size = self.position  # shorter than it was when it was listed
        return content

    def skip(self, count: int) -> None:
        """Read past `count` bytes, keeping none."""
        while count > 0 and self.position < self.size:
            count -= len(self.read(min(count, _STEP_BYTES)))

    def sha256(self) -> str:
        """Read to the end; return the hash of the whole file."""
        self.skip(self.size - self.position)
        return self._state.hexdigest()


def walk(tape: Tape, is_wanted: Callable[[str, int], bool]) -> Iterator[Member]:
    """Yield the members of a tar in order, and its damage as members with a problem.

    `is_wanted(name, size)` says whether a member's bytes are read. Problems: `unsafe_name`, `not_a_file`, `bad_header`
    (the bytes until the next good header are lost), `torn_tar` (a member or the archive has no end), `data_after_end`.
    """
    info, extended = None, dict[str, str]()
    while True:
        if info is None:
            start, block = tape.position, tape.read(BLOCK)
            info = parse_header(block)
            if info is None:
                info, end = _find_header(tape)
                yield from _damage(block, start, end)
                extended = {}
        if info is None:
            return
        name, size, position = _name(info, extended), _size(info, extended), tape.position
        if position + size > tape.size:
            yield Member(name, position, tape.size - position, None, "torn_tar")
            info, _ = _find_header(tape)  # a header that lies about its size hides good ones
            extended = {}
            continue
        if info.type in _EXTENDED_TYPES:
            extended |= _read_extended(tape, info)
        elif info.type in _IGNORED_TYPES:
            tape.skip(size)
        else:
            problem = _member_problem(name, info)
            is_read = not problem and is_wanted(name, size)
            payload = tape.read(size) if is_read else None
            tape.skip(position + size - tape.position)
            yield Member(name, position, size, payload, problem)
            extended = {}
        tape.skip(-size % BLOCK)
        info = None


def parse_header(block: bytes) -> tarfile.TarInfo | None:
    """Read a header block; None if it is not one (its checksum, which covers every byte, does not fit)."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _find_header(tape: Tape) -> tuple[tarfile.TarInfo | None, int]:
    """Read on to the next block that is a header; return it and where the bytes before it end (without zeros)."""
    end = 0
    while block := tape.read(BLOCK):
        if block[257:262] == b"ustar":
            info = parse_header(block)
            if info is not None:
                return info, tape.position - BLOCK
        if block.count(0) != len(block):
            end = tape.position
    return None, end


def _damage(block: bytes, start: int, end: int) -> Iterator[Member]:
    """Say what is wrong where a header was expected at `start` and the archive (`end` > 0) goes on until `end`."""
    if len(block) < BLOCK:
        yield Member("end of archive", start, len(block), None, "torn_tar")
    elif block != _ZERO:
        end = max(end, start + BLOCK)
        yield Member(f"bytes {start} to {end}", start, end - start, None, "bad_header")
    elif end:
        yield Member(f"bytes {start} to {end}", start, end - start, None, "data_after_end")


def _name(info: tarfile.TarInfo, extended: dict[str, str]) -> str:
    return extended.get("path", info.name).removeprefix("./")


def _size(info: tarfile.TarInfo, extended: dict[str, str]) -> int:
    if info.type in _EMPTY_TYPES:
        return 0
    return info.size if info.type in _EXTENDED_TYPES else int(extended.get("size", info.size))


def _member_problem(name: str, info: tarfile.TarInfo) -> str:
    has_control = any(ord(letter) < 32 for letter in name)
    if not name or name.startswith("/") or ".." in name.split("/") or has_control or not is_utf8(name):
        return "unsafe_name"
    return "" if info.isreg() else "not_a_file"


def _read_extended(tape: Tape, info: tarfile.TarInfo) -> dict[str, str]:
    """Read the `path` and `size` that a header gives the next member; an unreadable one makes its name unsafe."""
    if info.size > _MAX_EXTENDED_BYTES:
        tape.skip(info.size)
        return {"path": ""}
    content = tape.read(info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    records = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content):
            return {"path": ""}
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    if not records.get("size", "0").isdecimal():
        return {"path": ""}
    return {key: value for key, value in records.items() if key in ("path", "size")}
