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
from data.measurement import Measurement, folder_bytes, measurement_uri, resources_of, seconds_to_progress
from data.place import Place
from data.spec import Spec, digest, identity, orders, references


class Outcome(NamedTuple):
    """What a stage says of what it made."""

    counts: dict[str, int]
    metrics: dict[str, Any] = {}  # noqa: RUF012 - never mutated
    checksums: dict[str, str] = {}  # noqa: RUF012 - of files already hashed while they were written
    measured: dict[str, Any] = {}  # noqa: RUF012 - fields of `Measurement`: workers, device, FLOPs; not in the record


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
    ON_RAY: ClassVar[bool] = True  # its shards go to `data_workers`, where the place has some
    kind: str

    def build(self) -> StageFunction:
        """Import and return the function that does the work."""
        raise NotImplementedError

    def roles(self) -> dict[str, tuple[str, str]]:
        """Role -> (name of the stage it comes from, kind of artifact it must be)."""
        return {role: (stage, kind) for role, stage, kind in references(self)}

    def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int | None:
        """Pairs that the stage goes through, from its parents' counts by role.

        0 where its time does not depend on pairs, None where they are not known before it ran.
        """
        return parents.get("pairs", {}).get("pairs")

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


def run_stage(
    name: str, spec: StageSpec, parent_uris: Mapping[str, str], place: Place,
    events_at: Callable[[str, str], Events] = Events,
) -> Artifact:  # fmt: skip
    """Return the stage's artifact: the finished one if it exists, else make it.

    `events_at(uri, stage)` makes what the stage reports to: for one who listens while it works.

    Raises:
        UserError: something the user can put right; nothing half written becomes visible.
    """
    parents = open_parents(name, spec, parent_uris)
    prints = {role: parent.fingerprint for role, parent in parents.items()}
    config = spec.resolved()
    print_ = spec.fingerprint(prints, config)
    out = Output(place.root, name, print_)
    events = events_at(out.events_uri, name)
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


def open_parents(name: str, spec: StageSpec, uris: Mapping[str, str]) -> dict[str, Artifact]:
    """Open a stage's parents, by role.

    Raises:
        ArtifactError: one is missing, too many, incomplete or of another kind.
    """
    roles = spec.roles()
    if roles.keys() != uris.keys():
        given, needed = ", ".join(sorted(uris)) or "none", ", ".join(sorted(roles)) or "none"
        raise ArtifactError(f"{name}: parents given: {given}; parents needed: {needed}")
    return {role: open_artifact(uri, roles[role][1]) for role, uri in uris.items()}


def _make(spec: StageSpec, work: Work, record: Record) -> Artifact:
    started, out, events = time.time(), work.out, work.events
    was_begun = bool(storage.list_files(out.state_uri, recursive=True))
    try:
        events.emit("started", artifact=out.final_uri)
        outcome = spec.build()(spec, work)
        kept = {name: getattr(outcome, name) for name in ("counts", "metrics", "checksums")}
        artifact = out.commit(record.model_copy(update=kept))
    except BaseException as error:
        with suppress(StorageError):  # a full or lost place must not hide what went wrong first
            events.emit("failed", error=type(error).__name__, message=str(error))
        raise
    measurement = _measurement(spec, work, artifact, outcome, started, not was_begun)
    storage.write_json(measurement_uri(work.place.root, out.name), measurement.model_dump(mode="json"))
    events.emit("finished", artifact=artifact.uri, seconds=measurement.seconds, counts=outcome.counts)
    return artifact


def _measurement(
    spec: StageSpec, work: Work, artifact: Artifact, outcome: Outcome, started: float, is_whole: bool
) -> Measurement:
    """What the stage took that began at `started` and ended now."""
    ended, record = time.time(), artifact.record
    pairs = spec.workload({role: parent.record.counts for role, parent in work.parents.items()})
    taken = {
        "seconds": round(ended - started, 2), "ended": round(ended, 3), "is_whole": is_whole,
        "start_seconds": seconds_to_progress(work.out.events_uri, started),
        "stage": work.name, "kind": spec.kind, "fingerprint": record.fingerprint, "config": digest(record.config),
        "parents": record.parents, "pairs": outcome.counts.get("pairs") if pairs is None else pairs,
        "bytes_written": folder_bytes(artifact.uri),
    }  # fmt: skip
    return Measurement(**{**resources_of(work.place, spec.ON_RAY), **taken, **outcome.measured})
