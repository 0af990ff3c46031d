"""`submit --code`: packs this checkout's packages, so that a change runs on a cluster without an image being built."""

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

from components.code import MOST_BYTES, MOST_FILES, PACKAGES
from data import storage
from data.errors import RecipeError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal files give equal bytes, whenever they are packed


def checkout() -> Path:
    """The folder that holds the packages that run now."""
    return Path(__file__).resolve().parents[2]


def upload_code(root: str, folder: Path) -> str:
    """Put the packages of a checkout below a root, unless they are there; return their URI.

    Raises:
        RecipeError: this is no checkout of clipworks, or it holds more than a change of code should.
    """
    content = pack(folder)
    uri = storage.join(storage.normalise(root), ".code", f"{hashlib.sha256(content).hexdigest()}.zip")
    if not storage.exists(uri):
        storage.write_bytes(uri, content)
    return uri


def pack(folder: Path) -> bytes:
    """The packages as a zip archive: files that git knows or does not ignore; the same files give the same bytes."""
    missing = [name for name in PACKAGES if not (folder / name / "__init__.py").exists()]
    if missing:
        raise RecipeError(f"--code {folder}: no {missing[0]}/ in it; give a checkout of clipworks")
    files = {name: (folder / name).read_bytes() for name in _names(folder)}
    size = sum(map(len, files.values()))
    if size > MOST_BYTES or len(files) > MOST_FILES:
        largest = max(files, key=lambda name: len(files[name]))
        raise RecipeError(
            f"--code {folder}: {len(files):,} files, {size:,} bytes, of which {largest} has {len(files[largest]):,}; "
            f"at most {MOST_FILES:,} files and {MOST_BYTES:,} bytes are sent: ignore what is not code (.gitignore)"
        )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return stream.getvalue()


def _names(folder: Path) -> list[str]:
    """Files of the packages, without what git ignores; links are not followed."""
    git = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES]
    try:
        listed = subprocess.run(git, capture_output=True, text=True, check=True, timeout=60).stdout.split("\0")
    except (OSError, subprocess.SubprocessError) as error:
        raise RecipeError(
            f"--code {folder}: git cannot list its files ({type(error).__name__}); give a git checkout of clipworks"
        ) from error
    return sorted({name for name in listed if (folder / name).is_file() and not (folder / name).is_symlink()} - {""})
