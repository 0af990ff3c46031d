"""The one door to bytes: local paths and `s3://` (or any fsspec URL) behind a few functions.

Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), never
from a recipe, and never reach a message.
"""

import errno
import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

from data.errors import StorageError

_CHUNK_BYTES = 8 << 20
_NO_SUCH_RANGE = 416  # HTTP status
_FULL = "no space left; free some or choose another --root"


def is_local(uri: str) -> bool:
    """True for plain paths and `file://` URLs."""
    return "://" not in uri or uri.startswith("file://")


def normalise(uri: str | os.PathLike[str]) -> str:
    """Absolute path for local places, the URL without a trailing slash otherwise."""
    text = os.fspath(uri)
    if not is_local(text):
        return text.rstrip("/")
    return str(Path(text.removeprefix("file://")).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    """Join path parts below a path or URL."""
    return posixpath.join(uri, *parts)


def name_of(uri: str) -> str:
    """Last part of a path or URL."""
    return posixpath.basename(uri.rstrip("/"))


def parent_of(uri: str) -> str:
    """Everything before the last part of a path or URL."""
    return posixpath.dirname(uri.rstrip("/"))


def filesystem(uri: str) -> tuple[Any, str]:
    """Return (fsspec filesystem, path inside it) for a path or URL."""
    # a listing kept from before would hide what another process has written since
    options = {} if is_local(uri) else {"use_listings_cache": False}
    try:
        fs, path = fsspec.core.url_to_fs(normalise(uri), **options)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"{uri}: no storage for this kind of URL ({error}); use a path or s3://bucket/path"
        ) from error
    return fs, path


@contextmanager
def explained(uri: str, doing: str, path: str | None = None) -> Iterator[None]:
    """Turn what storage raises while `doing` something to `uri` into one line with the place and the fix.

    With `path`, only errors about that local file are turned: the block runs a caller's code, whose other files and
    pictures are not this place's fault.

    Raises:
        StorageError: in place of OSError and of botocore's own errors.
    """
    try:
        yield
    except OSError as error:
        if path and (error.errno is None or (error.filename and os.fspath(error.filename) != path)):
            raise
        raise StorageError(f"{uri}: cannot {doing}: {_reason(error)}") from error
    except Exception as error:  # botocore and safetensors have trees of their own; the rest goes on as it is
        if type(error).__module__.startswith("aiohttp"):
            told = f"{type(error).__name__} {getattr(error, 'status', '')}".strip()
            raise StorageError(f"{uri}: cannot {doing}: {told}; check the address and your access to it") from error
        if type(error).__module__.startswith("botocore"):
            raise StorageError(f"{uri}: cannot {doing}: {type(error).__name__}; check the AWS_* settings") from error
        if "No space left on device" in str(error):
            raise StorageError(f"{uri}: cannot {doing}: {_FULL}") from error
        raise


def _reason(error: OSError) -> str:
    """What is wrong and what to do, in a few words that hold no credentials."""
    if isinstance(error, FileNotFoundError):
        return "not found; check the path or bucket"
    if isinstance(error, PermissionError):
        return "access denied; check permissions or credentials"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder must be; choose another path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _FULL
    if error.errno == errno.EROFS:
        return "read-only file system; choose another --root"
    return " ".join(f"{type(error).__name__}: {error.strerror or error}".split())[:200]


def exists(uri: str) -> bool:
    """True when a file or folder is there."""
    fs, path = filesystem(uri)
    with explained(uri, "look"):
        return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """True when a folder (or a non-empty prefix) is there."""
    fs, path = filesystem(uri)
    with explained(uri, "look"):
        return bool(fs.isdir(path))


def list_files(uri: str, recursive: bool = False) -> list[tuple[str, int]]:
    """Return (relative name, size in bytes) of the files below a folder, sorted by name; empty if there is none."""
    fs, path = filesystem(uri)
    with explained(uri, "list"):
        if not recursive:
            found = [entry for entry in _entries(fs, path) if not _is_folder_entry(entry)]
        elif is_local(uri):  # fsspec's own walk goes silently past a folder that it may not read
            found = [
                fs.info(Path(folder, name)) for folder, _, names in os.walk(path, onerror=_raise) for name in names
            ]
        else:
            found = list(fs.find(path, detail=True).values())
    prefix = path.rstrip("/") + "/"
    sizes = {entry["name"].removeprefix(prefix): int(entry["size"] or 0) for entry in found}
    # a path that is a file finds itself, and some object stores keep empty markers for folders
    return sorted((name, size) for name, size in sizes.items() if name and name != path and not name.endswith("/"))


def list_folders(uri: str) -> list[str]:
    """Names of the folders right below a folder; empty if there is none."""
    fs, path = filesystem(uri)
    with explained(uri, "list"):
        return sorted(name_of(entry["name"]) for entry in _entries(fs, path) if _is_folder_entry(entry))


def _entries(fs: Any, path: str) -> list[dict[str, Any]]:
    """Entries right below a folder; none where there is no such folder."""
    try:
        return list(fs.ls(path, detail=True))
    except FileNotFoundError:
        return []


def _is_folder_entry(entry: dict[str, Any]) -> bool:
    """True for folders, and for links to folders: people link a shared artifact into their own root."""
    return entry["type"] == "directory" or (bool(entry.get("islink")) and Path(entry["name"]).is_dir())


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def size_bytes(uri: str) -> int:
    """Size of a file."""
    fs, path = filesystem(uri)
    with explained(uri, "read"):
        size = fs.size(path)
    if size is None:
        raise StorageError(f"{uri}: the server does not say how large it is; copy it to a folder or bucket")
    return int(size)


def is_web(uri: str) -> bool:
    """True for `http://` and `https://`, which can be read but not listed or written."""
    return uri.startswith(("http://", "https://"))


def serves_ranges(uri: str) -> bool:
    """False for a file of a web server that sends whole files only: no picture could be read from a tar there."""
    if not is_web(uri):
        return True
    try:
        with open_read(uri) as stream:
            stream.seek(1)
            return len(stream.read(1)) == 1
    except ValueError:  # what fsspec raises when the answer to a range is the whole file, or the stream cannot seek
        return False


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """Read a whole file, or the range [start, end); beyond its end there are no bytes."""
    fs, path = filesystem(uri)
    if start is not None and start == end:
        return b""  # S3 has no empty ranges
    with explained(uri, "read"):
        try:
            content = bytes(fs.cat_file(path, start=start, end=end))
        except OSError as error:
            if start is not None and error.errno == errno.EINVAL and not is_local(uri):  # S3: InvalidRange
                return b""
            raise
        except Exception as error:  # aiohttp's; the package is not imported for those who read no web address
            if start is not None and is_web(uri) and getattr(error, "status", None) == _NO_SUCH_RANGE:
                return b""
            raise
    if start is not None and end is not None and len(content) > end - start:
        raise StorageError(f"{uri}: the server sends whole files, not ranges; copy it to a folder or bucket")
    return content


def read_json(uri: str) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{uri}: is damaged, not JSON ({error}); remove it and make it again") from error


@contextmanager
def open_read(uri: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes."""
    fs, path = filesystem(uri)
    with explained(uri, "read", path if is_local(uri) else None), fs.open(path, "rb") as stream:
        yield stream


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part."""
    fs, path = filesystem(uri)
    with explained(uri, "write"):
        if not is_local(uri):
            fs.pipe_file(path, content)  # an object appears when its upload is complete
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(Path(path))
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append_line(uri: str, line: str) -> None:
    """Append one line to a local file in a single write, so that processes may share the file."""
    path = Path(normalise(uri))
    with explained(uri, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as stream:
            stream.write(line.encode() + b"\n")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(name: str) -> bool:
    """True for the name of a file that a killed `write_bytes` or `local_output` left behind."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", name_of(name)) is not None


def write_json(uri: str, value: Any) -> None:
    """Write indented JSON atomically."""
    write_bytes(uri, (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path for a file or folder: the place itself when it is local, a temporary download otherwise."""
    fs, path = filesystem(uri)
    if is_local(uri):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="clipworks-") as folder:
        target = Path(folder) / name_of(uri)
        with explained(uri, "read"):
            fs.get(path, str(target), recursive=bool(fs.isdir(path)))
        yield target


@contextmanager
def local_output(uri: str) -> Iterator[Path]:
    """A local path to write a file to; it appears at `uri` atomically when the block ends without an error."""
    if not is_local(uri):
        with tempfile.TemporaryDirectory(prefix="clipworks-") as folder:
            temporary = Path(folder) / name_of(uri)
            with explained(uri, "write", str(temporary)):
                yield temporary
            fs, path = filesystem(uri)
            with explained(uri, "write"):
                fs.put_file(str(temporary), path)
        return
    target = Path(normalise(uri))
    temporary = _temporary(target)
    with explained(uri, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with explained(uri, "write", str(temporary)):
            yield temporary
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove a file or folder if it is there."""
    fs, path = filesystem(uri)
    with explained(uri, "remove"):
        if is_local(uri):
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)
        elif fs.exists(path):
            fs.rm(path, recursive=True)


def sha256(uri: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    state = hashlib.sha256()
    with open_read(uri) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()
