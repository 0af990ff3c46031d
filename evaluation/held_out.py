"""What tasks ask about: the embedded pairs of one split, their metadata, captions and clusters."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow.compute as pc

from data.artifacts import Artifact
from data.errors import ArtifactError, EvaluationError, nearest
from data.features import FeatureSet
from data.selection import read_split, uids_of
from data.shards import CaptionLayer, ShardSet

Meta = dict[str, dict[str, Any]]
NOT_EMBEDDED = "not_embedded"


class HeldOut(NamedTuple):
    """The pairs of one split that have features; `dropped` maps the others to a reason, `meta` covers the shard set."""

    name: str
    uids: list[str]
    dropped: dict[str, str]
    meta: Meta
    clusters: dict[str, str]


def read_meta(pairs: ShardSet) -> Meta:
    """Metadata of every pair of a shard set, by uid."""
    index = pairs.index()
    return {
        uid: json.loads(meta or "{}")
        for uid, meta in zip(index["uid"].to_pylist(), index["meta"].to_pylist(), strict=True)
    }


def require_field(meta: Meta, field: str, what: str) -> None:
    """Refuse a metadata field that no pair has.

    Raises:
        EvaluationError: names the fields that exist.
    """
    known = sorted({name for values in meta.values() for name in values})
    if field not in known:
        hint = nearest(field, known) or f"; fields are {', '.join(known) or 'none'}"
        raise EvaluationError(f"{what}: no pair has a metadata field {field!r}{hint}")


def split_uids(split: Artifact, names: Sequence[str]) -> dict[str, list[str]]:
    """Uids of each named split.

    Raises:
        EvaluationError: a split does not exist or holds nothing.
    """
    table = read_split(split)
    known = sorted(pc.unique(table["split"]).to_pylist())
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"; splits are {', '.join(known)}"
            raise EvaluationError(f"splits: {name!r} is not a split of {split.uri}{hint}")
    return {name: uids_of(table, (name,)) for name in names}


def held_out(name: str, uids: list[str], features: FeatureSet, meta: Meta, cluster_field: str | None) -> HeldOut:
    """The pairs of a split that were embedded, with the cluster each belongs to (its own where it lacks the field).

    Raises:
        ArtifactError: the feature set holds nothing of this split.
    """
    embedded = [uid for uid in uids if uid in features.image_row]
    if not embedded:
        raise ArtifactError(f"{features.artifact.uri}: no pair of split {name!r}; add it to the embed stage's splits")
    dropped = dict.fromkeys(set(uids) - set(embedded), NOT_EMBEDDED)
    clusters = {uid: str(meta[uid].get(cluster_field) or uid) if cluster_field else uid for uid in embedded}
    return HeldOut(name, embedded, dropped, meta, clusters)


def captions_of(source: str, pairs: ShardSet, features: FeatureSet) -> dict[str, list[str]]:
    """Captions of one source by uid, from the shard set and the caption layers that were embedded with the features.

    Raises:
        EvaluationError: nothing has captions of this source.
    """
    layers = [role for role in features.artifact.record.parents if role.startswith("caption_layers.")]
    tables = [pairs.captions(), *(CaptionLayer(features.artifact.parent(role)).captions() for role in layers)]
    captions: dict[str, list[str]] = {}
    for table in tables:
        own = table.filter(pc.equal(table["source"], source))
        for uid, caption in zip(own["uid"].to_pylist(), own["caption"].to_pylist(), strict=True):
            if not (caption and caption.strip()):
                continue
            captions.setdefault(uid, []).append(caption)
    if not captions:
        known = sorted({name for table in tables for name in pc.unique(table["source"]).to_pylist()})
        hint = nearest(source, known) or f"; sources are {', '.join(known)}"
        raise EvaluationError(f"caption_source: no caption has source {source!r}{hint}")
    return captions
