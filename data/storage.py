"""The one door to bytes: local paths and `s3://` (or any fsspec URL) behind a few functions.

Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), never
from a recipe, and never reach a message (data/refusals.py). What S3 needs more than a path does is in data/s3.py.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

from data.addresses import is_local as is_local
from data.addresses import is_s3
from data.addresses import is_web as is_web
from data.addresses import join as join
from data.addresses import name_of as name_of
from data.addresses import normalise as normalise
from data.addresses import parent_of as parent_of
from data.errors import StorageError
from data.refusals import explained as explained

_CHUNK_BYTES = 8 << 20
_NO_SUCH_RANGE = 416  # HTTP status
for _protocol in ("s3", "s3a"):  # by name: the client is imported with the first such URL
    fsspec.register_implementation(_protocol, "data.s3.PatientS3", clobber=True)


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


def exists(uri: str) -> bool:
    """True when a file or folder is there."""
    fs, path = filesystem(uri)
    with explained(uri, "look"):
        return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """True when a folder (or a non-empty prefix) is there."""
    fs, path = filesystem(uri)
    with explained(uri, "look"):
        return bool(_entries_of_s3(fs, path, most=1)) if is_s3(uri) else bool(fs.isdir(path))


def list_files(uri: str, recursive: bool = False) -> list[tuple[str, int]]:
    """Return (relative name, size in bytes) of the files below a folder, sorted by name; empty if there is none."""
    fs, path = filesystem(uri)
    with explained(uri, "list"):
        if is_s3(uri):
            files = _entries_of_s3(fs, path, recursive)
            # some tools keep empty markers for folders
            return sorted((name, size) for name, size in files if size is not None and name and name[-1] != "/")
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
        if is_s3(uri):
            return sorted(name for name, size in _entries_of_s3(fs, path) if size is None)
        return sorted(name_of(entry["name"]) for entry in _entries(fs, path) if _is_folder_entry(entry))


def _entries_of_s3(fs: Any, path: str, recursive: bool = False, most: int = 0) -> list[tuple[str, int | None]]:
    from data.s3 import entries

    try:
        return list(entries(fs, path, recursive, most))
    except FileNotFoundError:  # no such bucket
        return []


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


def be_patient() -> None:
    """Let this process and its children wait for a bucket also before it answered them once: for stages of a run."""
    os.environ.setdefault("CLIPWORKS_S3_PATIENCE_SECONDS", "120")  # data/s3.py


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
            # s3fs asks for the size first, where it might read in parts: two requests for each small file
            whole = {"max_concurrency": 1} if is_s3(uri) and end is None else {}
            content = bytes(fs.cat_file(path, start=start, end=end, **whole))
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


def read_if_there(uri: str) -> bytes | None:
    """Read a whole file, None if there is none: one request, where `exists` before would be one or two more."""
    try:
        return read_bytes(uri)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def read_text(uri: str) -> str:
    """Read a text file that a user named; what is wrong with a local one is for the caller to explain.

    Raises:
        OSError, UnicodeDecodeError: about a local file.
        StorageError: about any other.
    """
    if not is_local(uri):
        return read_bytes(uri).decode()
    return Path(uri.removeprefix("file://")).read_text(encoding="utf-8")


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
        with _written(Path(path), content) as temporary:
            temporary.replace(path)


def create_bytes(uri: str, content: bytes) -> bool:
    """Write a file atomically where there is none; False, and nothing is changed, where one is there already.

    On S3 this is a conditional write. A server that knows none is asked first whether the object is there: two writers
    in the same moment may then both be told True.
    """
    fs, path = filesystem(uri)
    with explained(uri, "write"):
        if is_s3(uri):
            from data.s3 import create

            return create(fs, path, content)
        if not is_local(uri):
            try:
                fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True
        with _written(Path(path), content) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True


@contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """A temporary file beside `path` with this content, on disk; removed when the block ends, if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
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


def json_bytes(value: Any) -> bytes:
    """Indented JSON as it is written."""
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def write_json(uri: str, value: Any) -> None:
    """Write indented JSON atomically."""
    write_bytes(uri, json_bytes(value))


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
            _download(uri, fs, path, target)
        yield target


def _download(uri: str, fs: Any, path: str, target: Path) -> None:
    """Copy a file, or a folder with all below it, to this machine."""
    if not is_s3(uri):
        fs.get(path, str(target), recursive=bool(fs.isdir(path)))
        return
    from data.s3 import download

    names = [name for name, _ in list_files(uri, recursive=True)]
    for name in names or [""]:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        download(fs, join(path, name) if name else path, file)


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
                _upload(uri, fs, temporary, path)
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


def _upload(uri: str, fs: Any, local: Path, path: str) -> None:
    if not is_s3(uri):
        fs.put_file(str(local), path)
        return
    from data.s3 import upload

    upload(fs, local, path)


def end_uploads(uri: str) -> None:
    """End what killed processes began to upload below a folder of a bucket; elsewhere there is no such thing."""
    if is_s3(uri):
        from data.s3 import abort_uploads

        fs, path = filesystem(uri)
        with explained(uri, "end uploads"):
            abort_uploads(fs, path)


def remove(uri: str) -> None:
    """Remove a file or folder if it is there."""
    fs, path = filesystem(uri)
    with explained(uri, "remove"):
        if is_local(uri):
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)
        elif is_s3(uri):
            from data.s3 import remove_all

            remove_all(fs, list(fs.find(path)))
        elif fs.exists(path):
            fs.rm(path, recursive=True)


def sha256(uri: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    state = hashlib.sha256()
    with open_read(uri) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()
