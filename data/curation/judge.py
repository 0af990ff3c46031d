"""The first step of curate: what a pair is by itself. No caption, a filter, or an evaluation that holds it drops it."""

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data import storage
from data.artifacts import open_artifact
from data.curation.captions import first_captions, shard_set
from data.curation.filters import build_filter
from data.curation.specs import CurateSpec
from data.curation.tables import INSPECTION_SCHEMA, NO_CAPTION, PROTECTED, shard_table
from data.features import FeatureSet
from data.lookup import Lookup
from data.selection import in_splits
from data.shards import read_parquet, write_parquet
from data.shardwise import Summary

Uris = dict[str, str]
Texts = npt.NDArray[np.object_]
JUDGED_SCHEMA = pa.schema([("uid", pa.string()), ("reason", pa.string()), ("pixels", pa.int64())])


def judge_shard(spec: CurateSpec, uris: Uris, number: int) -> Summary:
    """Write JUDGED_SCHEMA rows of one shard's pairs in the splits to the state folder; count the reasons."""
    rows = shard_rows(spec, uris, number)
    reasons = np.full(rows.num_rows, "", object)
    reasons[rows["caption"].is_null().to_numpy()] = NO_CAPTION
    dropped = {}
    for filter_spec in spec.filters:
        drops = ~build_filter(filter_spec).judge(rows).keeps
        dropped[filter_spec.filter] = int(drops.sum())
        reasons[drops & (reasons == "")] = filter_spec.filter
    if spec.duplicates:
        is_protected = _protected(uris["duplicates"]).rows_of(rows["uid"]) >= 0
        reasons[is_protected & (reasons == "")] = PROTECTED
    table = pa.table([rows["uid"], pa.array(reasons, pa.string()), _pixels(rows)], schema=JUDGED_SCHEMA)
    name = shard_set(uris["pairs"]).shards[number].name
    write_parquet(storage.join(uris["state"], "judged", f"{name}.parquet"), table)
    return {"pairs": rows.num_rows, "drops": dropped}


def shard_rows(spec: CurateSpec, uris: Uris, number: int) -> pa.Table:
    """What filters read of one shard's pairs in the splits: uid, caption, meta, inspection, clip_score."""
    pairs = shard_set(uris["pairs"])
    name = pairs.shards[number].name
    inside = in_splits(open_artifact(uris["split"]), name, spec.splits)
    index = shard_table(pairs.artifact, "index", name, ["uid", "meta"]).filter(inside)
    rows = index.append_column(
        "caption", first_captions(pairs, number, spec.caption_source, index["uid"].combine_chunks())
    )
    if spec.inspection:
        found = shard_table(open_artifact(uris["inspection"]), "inspection", name).filter(inside)
        for column in INSPECTION_SCHEMA.names[1:]:
            rows = rows.append_column(column, found[column])
    if spec.features:
        rows = rows.append_column("clip_score", _clip_scores(uris["features"], rows))
    return rows


def _clip_scores(uri: str, rows: pa.Table) -> pa.Array:
    """Cosine of a pair's image_features and its caption's text_features, null where one was not embedded."""
    features, images, texts = _features(uri)
    image_B, text_B = images.rows_of(rows["uid"]), texts.rows_of(rows["caption"].fill_null(""))
    both = np.flatnonzero((image_B >= 0) & (text_B >= 0) & rows["caption"].is_valid().to_numpy())
    scores = np.full(rows.num_rows, np.nan, np.float32)
    scores[both] = np.einsum("bd,bd->b", features.images[image_B[both]], features.text_features[text_B[both]])
    return pa.array(scores, mask=np.isnan(scores))


def _pixels(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Pixels of each picture, 0 where they are not known."""
    if "width" not in rows.column_names:
        return np.zeros(rows.num_rows, np.int64)
    width, height = (rows[side].fill_null(0).to_numpy().astype(np.int64) for side in ("width", "height"))
    return np.asarray(width * height)


@cache
def _features(uri: str) -> tuple[FeatureSet, Lookup, Lookup]:
    artifact = open_artifact(uri)
    columns = (read_parquet(artifact.at(f"{name}.parquet"))[column] for name, column in _FEATURE_KEYS)
    images, texts = (Lookup(column) for column in columns)
    return FeatureSet(artifact), images, texts


_FEATURE_KEYS = (("images", "uid"), ("texts", "text"))


@cache
def _protected(uri: str) -> Lookup:
    table = read_parquet(open_artifact(uri).at("protected.parquet"), ["uid"])
    return Lookup(table["uid"].unique())
