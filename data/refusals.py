"""What storage refused, in one line for a person: the place, what was done, why, and the fix; never a credential."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from data.addresses import is_s3
from data.errors import StorageError
from data.output import redacted

_FULL = "no space left; free some or choose another --root"
_SET_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_FIXES = {
    "NoCredentialsError": f"no credentials; {_SET_KEYS}",
    "PartialCredentialsError": f"one of the two keys is missing; {_SET_KEYS}",
}


@contextmanager
def explained(uri: str, doing: str, path: str | None = None) -> Iterator[None]:
    """Turn what storage raises while `doing` something to `uri` into one line with the place and the fix.

    With `path`, only errors about that local file are turned: the block runs a caller's code, whose other files and
    pictures are not this place's fault.

    Raises:
        StorageError: in place of OSError, and of botocore's and aiohttp's own errors.
    """
    try:
        yield
    except OSError as error:
        if path and (error.errno is None or (error.filename and os.fspath(error.filename) != path)):
            raise
        raise StorageError(f"{uri}: cannot {doing}: {_reason(error, uri)}") from error
    except Exception as error:  # botocore and safetensors have trees of their own; the rest goes on as it is
        told = _of_library(error, uri)
        if told is None:
            raise
        raise StorageError(f"{uri}: cannot {doing}: {told}") from error


def _of_library(error: Exception, uri: str) -> str | None:
    """What an error of the network's libraries says; None for any other error."""
    name, library = type(error).__name__, type(error).__module__.partition(".")[0]
    if library == "aiohttp" and is_s3(uri):
        return f"{name}: the answer broke off, again and again; check the network and the server"
    if library == "aiohttp":
        told = f"{name} {getattr(error, 'status', '')}".strip()
        return f"{told}; check the address and your access to it"
    if library == "botocore":
        return f"{name}: {_FIXES[name]}" if name in _FIXES else f"{name}; check the AWS_* settings"
    return _FULL if "No space left on device" in str(error) else None


def _reason(error: OSError, uri: str) -> str:
    """What is wrong and what to do, in a few words that hold no credentials."""
    if isinstance(error, FileNotFoundError):
        return "not found; check the path or bucket"
    if isinstance(error, PermissionError):
        return "access denied; check permissions or credentials"
    if is_s3(uri) and isinstance(error, ConnectionError):  # data/s3.py, with its own fix
        return redacted(str(error))
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder must be; choose another path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _FULL
    if error.errno == errno.EROFS:
        return "read-only file system; choose another --root"
    return redacted(" ".join(f"{type(error).__name__}: {error.strerror or error}".split())[:200])
