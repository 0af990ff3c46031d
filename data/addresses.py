"""Where bytes are, as text: paths and URLs, taken apart and put together without looking."""

import os
import posixpath
from pathlib import Path


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


def is_s3(uri: str) -> bool:
    """True for a place in a bucket."""
    return uri.startswith(("s3://", "s3a://"))


def is_web(uri: str) -> bool:
    """True for `http://` and `https://`, which can be read but not listed or written."""
    return uri.startswith(("http://", "https://"))
