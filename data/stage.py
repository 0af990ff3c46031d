"""A stage: parse, open the parents, reuse or make, commit. The same call serves a notebook, kfp.local and a cluster.

A stage's spec says what; its `build()` imports the function that does it, a `StageFunction`: it gets the spec, the
opened parents, the output to write to and the place, and returns an `Outcome`. It writes no record and draws nothing.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

from data import storage
from data.artifacts import Artifact, Output, Record, find_fingerprint, fingerprint, open_artifact
from data.errors import ArtifactError, StorageError
from data.events import Events
from data.place import Place
from data.spec import Spec, identity, orders, references


class Outcome(NamedTuple):
    """What a stage says of what it made."""

    counts: dict[str, int]
    metrics: dict[str, Any] = {}  # noqa: RUF012 - never mutated
    checksums: dict[str, str] = {}  # noqa: RUF012 - of files already hashed while they were written


class Work(NamedTuple):
    """What a stage function gets besides its spec."""

    name: str
    parents: Mapping[str, Artifact]
    out: Output
    place: Place
    events: Events

    def parents_below(self, prefix: str) -> dict[str, Artifact]:
        """Parents whose role is `prefix.<label>`, by label, in order: `captions` gives {"0": ..., "1": ...}."""
        return {role.removeprefix(prefix + "."): a for role, a in self.parents.items() if role.startswith(prefix + ".")}


StageFunction = Callable[[Any, Work], Outcome]


class StageSpec(Spec):
    """Base of every stage's spec. A subclass adds `kind: Literal[...]`, its numbers, and `build`."""

    REVISION: ClassVar[int] = 1
    MAKES: ClassVar[str] = ""
    kind: str

    def build(self) -> StageFunction:
        """Import and return the function that does the work."""
        raise NotImplementedError

    def roles(self) -> dict[str, tuple[str, str]]:
        """Role -> (name of the stage it comes from, kind of artifact it must be)."""
        return {role: (stage, kind) for role, stage, kind in references(self)}

    def source_identity(self) -> dict[str, Any]:
        """Identity of what the stage reads from outside (a pool's files); empty for all others."""
        return {}

    def resolved(self) -> dict[str, Any]:
        """The config that counts for the fingerprint."""
        source, order = self.source_identity(), dict(orders(self))
        return {**identity(self), **({"source": source} if source else {}), **({"order": order} if order else {})}

    def fingerprint(self, parents: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
        """Fingerprint of what this stage makes from parents with these fingerprints (role -> fingerprint).

        `config` is `resolved()`, where the caller has it: reading a pool's identity may take a while.
        """
        return fingerprint(self.kind, self.REVISION, self.resolved() if config is None else config, dict(parents))


def run_stage(name: str, spec: StageSpec, parent_uris: Mapping[str, str], place: Place) -> Artifact:
    """Return the stage's artifact: the finished one if it exists, else make it.

    Raises:
        UserError: something the user can put right; nothing half written becomes visible.
    """
    parents = _open_parents(name, spec, parent_uris)
    prints = {role: parent.fingerprint for role, parent in parents.items()}
    config = spec.resolved()
    print_ = spec.fingerprint(prints, config)
    out = Output(place.root, name, print_)
    events = Events(out.events_uri, name)
    record = Record(
        kind=spec.MAKES, stage=spec.kind, revision=spec.REVISION, fingerprint=print_, config=config, parents=prints
    )
    found = find_fingerprint(place.root, print_)
    if found is None:
        with out.lock():
            found = find_fingerprint(place.root, print_)  # another run may have made it before we got the lock
            if found is None:
                return _make(spec, Work(name, parents, out, place, events), record)
            out.discard()
    events.emit("reused", artifact=found.uri)
    return found


def _open_parents(name: str, spec: StageSpec, uris: Mapping[str, str]) -> dict[str, Artifact]:
    roles = spec.roles()
    if roles.keys() != uris.keys():
        given, needed = ", ".join(sorted(uris)) or "none", ", ".join(sorted(roles)) or "none"
        raise ArtifactError(f"{name}: parents given: {given}; parents needed: {needed}")
    return {role: open_artifact(uri, roles[role][1]) for role, uri in uris.items()}


def _make(spec: StageSpec, work: Work, record: Record) -> Artifact:
    started, out, events = time.time(), work.out, work.events
    try:
        events.emit("started", artifact=out.final_uri)
        outcome = spec.build()(spec, work)
        artifact = out.commit(record.model_copy(update=outcome._asdict()))
    except BaseException as error:
        with suppress(StorageError):  # a full or lost place must not hide what went wrong first
            events.emit("failed", error=type(error).__name__, message=str(error))
        raise
    seconds = round(time.time() - started, 2)
    storage.write_json(storage.join(work.place.root, ".events", f"{out.name}.timing.json"), {"seconds": seconds})
    events.emit("finished", artifact=artifact.uri, seconds=seconds, counts=outcome.counts)
    return artifact
