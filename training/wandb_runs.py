"""One W&B run: its config, its place in the lineage, its summary, tables and page. Nothing is copied but small tables.

Artifacts go to W&B by reference: one entry that says where the artifact lies, with our fingerprint as its digest. So
W&B sees the same version whoever logs it, from whatever root, and a parent that is named as an input meets the version
that its own run made. Measured on 2 cores, offline: 1 s to import wandb, 0.7 s for a first run, 0.16 s for each other.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data import storage
from data.artifacts import SHORT, Artifact, find_fingerprint
from training.table_pictures import Picture
from training.tables import Table, tables_of

NOTE_NAME = "clipworks.json"  # beside a run's .wandb file: which stage it is, without parsing W&B's own format
CONFIG_KEYS = ("recipe", "place", "versions", "image", "code", "run", "fingerprint", "parents")
_MOST_PAGE_BYTES = 10_000_000
_INTERVAL = ("value", "low", "high", "n", "chance")
REUSED = "reused"


class Tracked(NamedTuple):
    """One stage to follow. `artifact` is set for one that this run reuses: it is only put into the lineage."""

    stage: str
    kind: str
    config: dict[str, Any]
    events_uri: str
    fingerprint: str = ""
    parents: Mapping[str, str] = {}
    artifact: str = ""


class Where(NamedTuple):
    """Which W&B project, group and folder. `shared`: config of every run of the group (recipe, place, versions)."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    group: str
    folder: str
    since: float
    shared: Mapping[str, Any] = {}


def start_run(stage: Tracked, where: Where, tags: Iterable[str] = ()) -> Any:
    """Start a W&B run with the stage's resolved config, and beside it the whole recipe it is part of."""
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, disable_job_creation=True,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
    )  # fmt: skip
    Path(where.folder).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_DATA_DIR", where.folder)
    run = wandb.init(
        mode=where.mode, project=where.project, group=where.group, name=stage.stage, job_type=stage.kind,
        config=config_of(stage, where), tags=list(tags), dir=where.folder, reinit="create_new", settings=settings,
    )  # fmt: skip
    if where.mode == "offline":
        note = {"run": where.group, "stage": stage.stage, "kind": stage.kind, "fingerprint": stage.fingerprint,
                "parents": sorted(set(stage.parents.values()))}  # fmt: skip
        Path(run.dir).parent.joinpath(NOTE_NAME).write_text(json.dumps(note))
    return run


def config_of(stage: Tracked, where: Where) -> dict[str, Any]:
    """The stage's own fields, then what all stages of the run share."""
    identity = {"fingerprint": stage.fingerprint, "parents": dict(stage.parents)} if stage.fingerprint else {}
    return {**stage.config, **where.shared, "run": where.group, **identity}


def log_result(run: Any, artifact: Artifact, seconds: float | None) -> None:
    """What a finished stage leaves: summary, tables, the report's page, and its place in the lineage."""
    run.summary.update(summary(artifact, seconds))
    tables = tables_of(artifact)
    if tables:
        run.log({name: _wandb_table(table) for name, table in tables.items()})
    _log_page(run, artifact)
    log_lineage(run, artifact)


def log_lineage(run: Any, artifact: Artifact) -> None:
    """The artifact as this run's output, its parents as inputs; a parent that is gone is named in the summary."""
    missing = []
    for print_ in dict.fromkeys(artifact.record.parents.values()):
        parent = find_fingerprint(artifact.root, print_)
        if parent is None:
            missing.append(print_)
        else:
            use(run, parent)
    if missing:
        run.summary["parents_missing"] = missing
    run.log_artifact(reference_to(artifact), aliases=[artifact.fingerprint[:SHORT]])


def use(run: Any, artifact: Artifact) -> None:
    """Name an artifact as an input.

    The public `use_artifact` is refused offline, and online it waits for the server, without end when that is gone.
    What it does before it waits is in W&B's file format and its sync too: an artifact that this run did not make and
    uses once it exists. The server finds it by its digest, so the run that made it keeps it.
    """
    aliases = [artifact.fingerprint[:SHORT]]
    run._log_artifact(reference_to(artifact), aliases=aliases, is_user_created=True, use_after_commit=True)


def reference_to(artifact: Artifact) -> Any:
    """A W&B artifact that holds no byte of ours: where it is, and its fingerprint."""
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    record, folder = artifact.record, storage.name_of(artifact.uri)
    name = folder.removesuffix(f"-{artifact.fingerprint[:SHORT]}")
    uri = f"file://{artifact.uri}" if storage.is_local(artifact.uri) else artifact.uri
    said = {"uri": uri, "fingerprint": record.fingerprint, "stage": record.stage, "counts": record.counts,
            "packages": record.packages}  # fmt: skip
    made = wandb.Artifact(name, type=record.kind, metadata=said)
    made.manifest.add_entry(ArtifactManifestEntry(path=folder, ref=uri, digest=record.fingerprint))
    return made


def _log_page(run: Any, artifact: Artifact) -> None:
    """The report's page, if it is small enough to be worth a copy; the artifact's reference leads to it anyway."""
    uri = artifact.at("report.html")
    if artifact.record.kind != "report" or storage.size_bytes(uri) > _MOST_PAGE_BYTES:
        return
    import wandb

    run.log({"report": wandb.Html(storage.read_bytes(uri).decode(), inject=False)})


def _wandb_table(table: Table) -> Any:
    import wandb

    rows = [[_cell(value) for value in row] for row in table.rows]
    return wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)


def _cell(value: Any) -> Any:
    if not isinstance(value, Picture):
        return value
    import io

    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(value.png)), caption=value.uid)


def summary(artifact: Artifact, seconds: float | None) -> dict[str, Any]:
    """What the record says, flat, with the artifact's lineage by fingerprint; every number with its interval."""
    record = artifact.record
    return {
        "artifact": storage.name_of(artifact.uri),
        "fingerprint": record.fingerprint,
        **({} if seconds is None else {"seconds": seconds}),
        **{f"counts/{name}": count for name, count in record.counts.items()},
        **{f"parents/{role}": print_ for role, print_ in record.parents.items()},
        **flat(record.metrics),
        **headline(record.metrics.get("headline")),
    }


def headline(said: Any) -> dict[str, Any]:
    """A report's headline by label: value, interval, number of samples and chance."""
    if not isinstance(said, dict):
        return {}
    return {f"headline/{row['label']}/{name}": row[name] for row in said.get("rows", ()) for name in _INTERVAL}


def flat(metrics: Any, prefix: str = "") -> dict[str, Any]:
    """Nested metrics by path, lists left out: they are in the report."""
    if isinstance(metrics, dict):
        inner = (flat(value, f"{prefix}/{name}" if prefix else name) for name, value in metrics.items())
        return {path: number for part in inner for path, number in part.items()}
    return {prefix: metrics} if isinstance(metrics, int | float | str | bool) else {}


def noted(folder: str) -> set[str]:
    """Fingerprints that runs in this W&B folder have made already."""
    return {str(note["fingerprint"]) for _, note in read_notes(Path(folder)) if note.get("fingerprint")}


def read_notes(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, note) of every offline run below a W&B folder, oldest first; a note may lack and is then empty."""
    found = []
    for run in sorted(folder.glob("wandb/offline-run-*")):
        note: Any = {}
        if (run / NOTE_NAME).exists():
            note = json.loads((run / NOTE_NAME).read_text())
        found.append((run, note if isinstance(note, dict) else {}))
    return found
