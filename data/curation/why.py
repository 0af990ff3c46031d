"""Answers "why": everything that was decided about one pair, read from the artifacts below a root.

Only the filters' values are computed again, for this one pair; all else is what the stages wrote.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from data import storage
from data.artifacts import Artifact, open_artifact
from data.curation.captions import first_captions
from data.curation.catalogue import Catalogue
from data.curation.explanation import (
    DROPPED,
    KEPT,
    OUTSIDE,
    Decision,
    Entry,
    Explanation,
    FilterResult,
    Group,
    Likeness,
    Member,
    Use,
)
from data.curation.located import Found, find_pair, locate, row_of
from data.curation.specs import CurateSpec, Filter
from data.curation.tables import DRAWN_OUT, INSPECTION_SCHEMA, UNMATCHED, all_tables, shard_table
from data.errors import ArtifactError
from data.features import FeatureSet
from data.shards import read_parquet

_MOST_MEMBERS = 20
_SURVIVES_DUPLICATES = ("", UNMATCHED, DRAWN_OUT)  # reasons of pairs that are not dropped before balancing


class _Case(NamedTuple):
    """One pair before one selection."""

    catalogue: Catalogue
    selection: Artifact
    found: Found
    uid: str

    @property
    def shard(self) -> str:
        return self.found.shard_set.shards[self.found.number].name

    def parent(self, role: str) -> Artifact | None:
        return self.catalogue.parent(self.selection, role)


def explain_pair(
    root_uri: str, uid: str, selection_uri: str | None = None, artifacts: Collection[str] | None = None
) -> Explanation:
    """Explain a pair by every selection below the root, or by one; `artifacts` are the names of a run's.

    Raises:
        ShardError: no shard set has the pair, with what ingest said of it or the nearest uids.
        ArtifactError: the root holds no shard set, or the selection is not below it.
    """
    catalogue = Catalogue(root_uri, artifacts)
    chosen = _named(catalogue, selection_uri) if selection_uri else None
    sets = [catalogue.parent(chosen, "pairs")] if chosen else catalogue.of_kind("shard_set")
    places = find_pair(catalogue, [found for found in sets if found], uid)
    cases = [
        _Case(catalogue, selection, found, uid)
        for found in places
        for selection in (
            [chosen] if chosen else catalogue.of_kind("selection", pairs=found.shard_set.artifact.fingerprint)
        )
    ]
    return Explanation(
        uid,
        tuple(locate(catalogue, found, uid) for found in places),
        tuple(_decision(case) for case in cases if _is_readable(case.selection)),
        tuple(storage.name_of(case.selection.uri) for case in cases if not _is_readable(case.selection)),
    )


def _named(catalogue: Catalogue, selection_uri: str) -> Artifact:
    selection = open_artifact(selection_uri, "selection")
    if not catalogue.find(selection.fingerprint):
        raise ArtifactError(
            f"{selection_uri}: is not below {catalogue.root_uri}; give the folder that holds it as root"
        )
    return selection


def _is_readable(selection: Artifact) -> bool:
    return selection.record.revision >= CurateSpec.REVISION


def _decision(case: _Case) -> Decision:
    config, row = case.selection.record.config, row_of(shard_table(case.selection, "selection", case.shard), case.uid)
    caption, balance = _caption(case), config.get("balance")
    split = case.parent("split")
    return Decision(
        selection=storage.name_of(case.selection.uri),
        verdict=OUTSIDE if row is None else KEPT if row["kept"] else DROPPED,
        reason="" if row is None else row["reason"],
        p_keep=row["p_keep"] if row else None,
        draw=row["draw"] if row else None,
        split=(row_of(shard_table(split, "split", case.shard), case.uid) or {}).get("split") if split else None,
        splits=tuple(config["splits"]),
        caption_source=config["caption_source"],
        caption=caption,
        filters=tuple(_filters(case, caption)),
        duplicates=_duplicates(case),
        protected=tuple(_protected(case)),
        balanced=balance is not None,
        t=balance and balance["t"],
        entries=_entries(case),
        checkpoints=tuple(_uses(case, is_kept=row is not None and row["kept"])),
    )


def _caption(case: _Case) -> str | None:
    source = case.selection.record.config["caption_source"]
    captions = first_captions(case.found.shard_set, case.found.number, source, pa.array([case.uid], pa.string()))
    text = captions[0].as_py()
    return None if text is None else str(text)


# ----------------------------------------------------------------------------------------------------------- filters


def _filters(case: _Case, caption: str | None) -> Iterator[FilterResult]:
    """Every filter of the selection on this pair, also those behind the one that dropped it."""
    specs = _filter_specs(case.selection)
    if not specs:
        return
    from data.curation.filters import build_filter

    rows = _one_row(case, caption)
    for spec in specs:
        verdict = build_filter(spec).judge(rows)
        bounds = spec.model_dump(mode="json", exclude={"filter"})
        yield FilterResult(spec.filter, bool(_first(verdict.keeps)), _first(verdict.values), bounds)


def _filter_specs(selection: Artifact) -> list[Any]:
    try:
        return list(TypeAdapter(tuple[Filter, ...]).validate_python(selection.record.config["filters"]))
    except ValidationError as error:
        raise ArtifactError(
            f"{selection.uri}: its filters are not those of this clipworks; use the one that made it, or make it again"
        ) from error


def _one_row(case: _Case, caption: str | None) -> pa.Table:
    """What filters read, as the curate stage gives it to them: one row."""
    index = shard_table(case.found.shard_set.artifact, "index", case.shard, ["uid", "meta"]).slice(case.found.row, 1)
    inspection = case.parent("inspection")
    table = shard_table(inspection, "inspection", case.shard) if inspection else INSPECTION_SCHEMA.empty_table()
    seen = table.filter(pc.equal(table["uid"], case.uid))
    columns: dict[str, Any] = {"uid": index["uid"], "caption": pa.array([caption], pa.large_string())}
    columns["meta"] = index["meta"]
    for field in INSPECTION_SCHEMA:
        if field.name != "uid":
            columns[field.name] = seen[field.name] if seen.num_rows else pa.nulls(1, field.type)
    return pa.table(columns | {"clip_score": pa.array([_clip_score(case, caption)], pa.float32())})


def _clip_score(case: _Case, caption: str | None) -> float | None:
    """Cosine of picture and caption; None where one of them was not embedded."""
    artifact = case.parent("features")
    features = FeatureSet(artifact) if artifact else None
    if features is None or caption is None or caption not in features.text_row or case.uid not in features.image_row:
        return None
    image_D = features.images[features.image_row[case.uid]]
    return float(np.dot(image_D, features.text_features[features.text_row[caption]]))


def _first(column: Any) -> Any:
    """The one value of a column of arrow's or numpy's."""
    value = column[0]
    return value.as_py() if isinstance(value, pa.Scalar) else value.item() if isinstance(value, np.generic) else value


# -------------------------------------------------------------------------------------------------------- duplicates


def _duplicates(case: _Case) -> Group | None:
    artifact = case.parent("duplicates")
    groups = read_parquet(artifact.at("groups.parquet")) if artifact else None
    own = row_of(groups, case.uid) if groups else None
    if groups is None or own is None:
        return None
    members = groups.filter(pc.equal(groups["group"], own["group"])).sort_by("uid")
    fates = _fates(case, members["uid"].combine_chunks())
    stays = fates.filter(pc.is_in(fates["reason"], value_set=pa.array(_SURVIVES_DUPLICATES)))["uid"].to_pylist()
    first = stays[0] if stays else None
    rows = [row for row in (first and row_of(members, first),) if row]
    rows += [row for row in members.slice(0, _MOST_MEMBERS).to_pylist() if row["uid"] != first]
    told = tuple(
        Member(row["uid"], tuple(row["by"]), (row_of(fates, row["uid"]) or {}).get("reason"))
        for row in rows[:_MOST_MEMBERS]
    )
    return Group(own["group"], members.num_rows, tuple(own["by"]), first, told)


def _fates(case: _Case, uids: pa.Array) -> pa.Table:
    """uid and reason of these pairs, wherever they lie."""
    parts = [
        table.filter(pc.is_in(table["uid"], value_set=uids))
        for table in all_tables(case.selection, "selection", case.found.shard_set, ["uid", "reason"])
    ]
    return pa.concat_tables(parts).sort_by("uid")


def _protected(case: _Case) -> Iterator[Likeness]:
    artifact = case.parent("duplicates")
    if artifact:
        table = read_parquet(artifact.at("protected.parquet"))
        for row in table.filter(pc.equal(table["uid"], case.uid)).to_pylist():
            yield Likeness(row["evaluation"], row["evaluation_uid"], row["by"], row["distance"])


# ---------------------------------------------------------------------------------------------- balancing and training


def _entries(case: _Case) -> tuple[Entry, ...]:
    artifact = case.parent("balance.matches")
    row = row_of(shard_table(artifact, "matches", case.shard), case.uid) if artifact else None
    if not row or not row["entries"]:
        return ()
    table = read_parquet(case.selection.at("entries.parquet"))
    matched = table.filter(pc.is_in(table["id"], value_set=pa.array(row["entries"], pa.int32())))
    ordered = matched.sort_by([("p", "descending"), ("id", "ascending")])
    columns = ("entry", "source", "language", "count", "kept", "p")
    return tuple(Entry(*(entry[name] for name in columns)) for entry in ordered.to_pylist())


def _uses(case: _Case, *, is_kept: bool) -> Iterator[Use]:
    for checkpoint in case.catalogue.of_kind("checkpoint"):
        how = case.catalogue.use_of(case.selection.fingerprint, checkpoint)
        if how:
            name, record = storage.name_of(checkpoint.uri), checkpoint.record
            phases = (record.config.get("phases") or {}).values()
            steps = sum(phase["samples_seen"] // phase["global_batch_size"] for phase in phases)
            saw = is_kept and how in ("trained", "initialised")
            yield Use(name, how, saw, record.counts.get("samples_seen"), steps or None)
