"""Pictures that installed packages ship, found without importing the package (which may load plotting and more)."""

import importlib.util
from importlib import metadata
from pathlib import Path

from data.errors import BackendError


def version_of(package: str, pool: str) -> str:
    """Version of a package that a pool reads.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        fix = "run `uv sync --extra quickstart` or `pip install 'clipworks[quickstart]'`"
        raise BackendError(f"package {package} is not installed, and pool {pool!r} needs it; {fix}") from error


def folder_of(module: str, *parts: str) -> Path:
    """Folder inside an installed top-level package.

    Raises:
        BackendError: the package has no files.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise BackendError(f"package {module} is installed without its files; install it again")
    return Path(found.origin).parent.joinpath(*parts)
