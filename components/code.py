"""Code that differs from the image's: an archive of our packages that a run uses in place of what is installed.

So a change reaches a cluster without an image being built. The archive is named by its own SHA-256, which is checked;
what a run makes with it says so (`clipworks 0.1.0+code.<digest>` among the record's packages).
"""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from data import storage
from data.artifacts import CODE
from data.errors import StorageError
from data.ray import CODE_FOLDER

PACKAGES = ("components", "data", "evaluation", "pipelines", "training")
MOST_BYTES, MOST_FILES = 20_000_000, 5_000  # of all files together, unpacked: sources and templates are 2 MB


class Told(SystemExit):
    """The process with the other code failed; it has said why and left a failure."""


def is_active() -> bool:
    """Whether this process runs on such an archive already."""
    return CODE in os.environ


def fetch(uri: str, folder: Path) -> str:
    """Unpack the archive into `folder` and return its digest.

    Raises:
        StorageError: it is not there, is not what its name says, or holds what no archive of ours does.
    """
    content = storage.read_bytes(uri)
    digest = hashlib.sha256(content).hexdigest()
    if storage.name_of(uri) != f"{digest}.zip":
        raise StorageError(f"{uri}: its bytes are not what its name says; submit again with --code")
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise StorageError(f"{uri}: not a zip archive; submit again with --code") from error
    with archive:
        members = archive.infolist()
        if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_BYTES:
            raise StorageError(f"{uri}: unpacks to more than {MOST_BYTES:,} bytes or {MOST_FILES:,} files; send less")
        for member in members:
            parts = PurePosixPath(member.filename).parts
            if parts[0] not in PACKAGES or ".." in parts:
                raise StorageError(f"{uri}: {member.filename!r}: not a file of ours; submit again with --code")
        archive.extractall(folder)
    return digest


def run_with(uri: str, task: dict[str, str]) -> str:
    """Run a component in a process that uses the archive at `uri`; return the URI of its artifact.

    Raises:
        Told: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="clipworks-code-") as scratch:
        folder, answer = Path(scratch, "code"), Path(scratch, "answer")
        digest = fetch(uri, folder)
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, CODE: digest, CODE_FOLDER: str(folder)}
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "components.code", str(answer)], stdin=subprocess.PIPE, env=environment
        )
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # a cancelled stage cleans up behind it
        try:
            child.communicate(json.dumps(task).encode())
        finally:
            signal.signal(signal.SIGTERM, before)
        if child.returncode:
            raise Told(child.returncode if child.returncode > 0 else 128 - child.returncode)
        return answer.read_text(encoding="utf-8")


def main() -> None:
    """Run the component that standard input describes, and write its artifact's URI to the file that is named."""
    from components.runtime import end_with_parent, run_component

    end_with_parent(signal.SIGTERM)
    task = json.load(sys.stdin)
    Path(sys.argv[1]).write_text(run_component(**task), encoding="utf-8")


if __name__ == "__main__":
    main()
