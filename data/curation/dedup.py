"""The dedup stage: which pairs are alike, and which an evaluation holds too. It drops nothing; `curate` does.

Pictures are never opened: all is found from the checksums and hashes of an inspection, captions, and feature sets. What
it holds of a pool are columns, about 100 bytes a pair; for near captions 8 bytes a band more.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.artifacts import open_artifact
from data.curation.alike import contamination, exact, near_caption, near_image, semantic
from data.curation.alike.pictures import read_evaluations, read_pool
from data.curation.alike.sketches import sketch
from data.curation.captions import first_captions, shard_uids
from data.curation.groups import Bools, Longs, is_linked, merge
from data.curation.specs import DedupSpec, ExactImages, Likeness, NearCaptions, NearImages
from data.curation.tables import GROUP_SCHEMA
from data.errors import ArtifactError, ShardError
from data.features import FeatureSet
from data.selection import in_splits
from data.shards import ShardSet, read_parquet, write_parquet
from data.shardwise import Summary, each_shard
from data.stage import Outcome, Work

_LARGEST, _EXAMPLES = 10, 5


def run(spec: DedupSpec, work: Work) -> Outcome:
    """Write `groups.parquet` (GROUP_SCHEMA) and `protected.parquet` (PROTECTED_SCHEMA).

    Raises:
        ShardError: the splits hold no pair.
        ArtifactError: a parent speaks of other pairs, or an evaluation to protect holds no picture.
    """
    pool = read_pool(work)
    pairs = pool.filter(pc.is_in(pool["split"], value_set=pa.array(spec.splits, pa.string())))
    if not len(pairs):
        raise ShardError(f"stage {work.name}: no pair is in splits {', '.join(spec.splits)}; name others in splits")
    evaluations = read_evaluations(spec, work, pool)
    order = pc.sort_indices(pairs["uid"]).to_numpy()
    pairs = pairs.take(pa.array(order))
    links = [_link(spec, work, number, pairs, order) for number in range(len(spec.alike))]
    linked = _linked_by(spec.alike, links)
    groups = _group_table(pairs["uid"], merge(links), linked)
    work.events.message(f"comparing {len(pairs)} pairs with {len(evaluations)} protected pictures")
    protected = contamination.find(pairs, evaluations, spec.protect_distance)
    write_parquet(work.out.at("groups.parquet"), groups)
    write_parquet(work.out.at("protected.parquet"), protected)
    counts = {"pairs": len(pairs), **_group_counts(groups, linked), **_protected_counts(protected, evaluations)}
    return Outcome(counts, {"largest_groups": _largest_groups(groups)})


def _link(spec: DedupSpec, work: Work, number: int, pairs: pa.Table, order: Longs) -> Longs:
    """Partition of the pairs (sorted by uid; `order`: their rows in the shards' order) by one kind of likeness."""
    likeness = spec.alike[number]
    work.events.message(f"linking {len(pairs)} pairs by {likeness.by}")
    if isinstance(likeness, ExactImages):
        return exact.link(pairs["content"])
    if isinstance(likeness, NearImages):
        return near_image.link(pairs["phash"], likeness.max_distance)
    if isinstance(likeness, NearCaptions):
        uris = _write_sketches(spec, likeness, work, number)
        return near_caption.link(uris, np.argsort(order), likeness.min_similarity)
    features = FeatureSet(work.parents[f"alike.{number}.features"])
    rows_P = _feature_rows(features, pairs)
    return semantic.link(features.images, rows_P, likeness.clusters, likeness.epsilon, spec.seed)


def _write_sketches(spec: DedupSpec, likeness: NearCaptions, work: Work, number: int) -> list[str]:
    """Sketch the captions of every shard; the files are restart state, gone when the stage is done."""
    names = [shard.name for shard in ShardSet(work.parents["pairs"]).shards]
    uris = [storage.join(work.out.state_uri, f"sketches{number}", f"{name}.parquet") for name in names]
    parents = {role: work.parents[role].uri for role in ("pairs", "split")}
    each_shard(work, f"captions{number}", names, partial(sketch_shard, spec, likeness, parents, uris))
    return uris


def sketch_shard(
    spec: DedupSpec, likeness: NearCaptions, parents: dict[str, str], uris: Sequence[str], number: int
) -> Summary:
    """Write SKETCH_SCHEMA rows of one shard's pairs in the splits, in the shard's order."""
    pairs = ShardSet(open_artifact(parents["pairs"], "shard_set"))
    inside = in_splits(open_artifact(parents["split"], "split"), pairs.shards[number].name, spec.splits)
    uids = shard_uids(pairs, number).filter(inside.combine_chunks())
    captions = first_captions(pairs, number, spec.caption_source, uids)
    table = sketch(captions, likeness.ngram_words, likeness.permutations, likeness.min_similarity, spec.seed)
    write_parquet(uris[number], table)
    return {"captions": len(table) - table["whole"].null_count}


def _feature_rows(features: FeatureSet, pairs: pa.Table) -> Longs:
    """Row of each pair's image feature; -1 for a picture that does not decode and has none.

    Raises:
        ArtifactError: a picture that decodes was not embedded.
    """
    embedded = read_parquet(features.artifact.at("images.parquet"), ["uid"])["uid"].cast(pa.large_string())
    rows = pc.index_in(pairs["uid"], value_set=embedded)
    lacking = pairs.filter(pc.and_(rows.is_null(), pairs["decodes"]))
    if len(lacking):
        raise ArtifactError(
            f"{features.artifact.uri}: uid {lacking['uid'][0].as_py()!r} was not embedded, nor were {len(lacking) - 1} "
            "others; add the splits that dedup reads to the embed stage"
        )
    return pc.fill_null(rows, -1).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------- what is written


def _linked_by(alike: Sequence[Likeness], links: Sequence[Longs]) -> dict[str, Bools]:
    """Kind -> which pairs it links to another one; kinds in order of their names."""
    kinds = sorted({likeness.by for likeness in alike})
    of_kind = {kind: [links[i] for i, likeness in enumerate(alike) if likeness.by == kind] for kind in kinds}
    return {kind: np.any([is_linked(labels) for labels in found], axis=0) for kind, found in of_kind.items()}


def _group_table(uids: pa.ChunkedArray, labels: Longs, linked: dict[str, Bools]) -> pa.Table:
    """GROUP_SCHEMA rows of the pairs that are like another one."""
    rows = np.flatnonzero(is_linked(labels))
    kinds = list(linked)
    # there are 15 sets of kinds at most: a row is a reference to one of them until it is written
    code = np.sum([linked[kind][rows].astype(np.int64) << bit for bit, kind in enumerate(kinds)], axis=0)
    sets = [[kind for bit, kind in enumerate(kinds) if number >> bit & 1] for number in range(1 << len(kinds))]
    by = pa.array(sets, pa.list_(pa.string())).take(pa.array(code))
    columns = [uids.take(pa.array(rows)), uids.take(pa.array(labels[rows])), by]
    return pa.table(columns, names=GROUP_SCHEMA.names).cast(GROUP_SCHEMA)


def _group_counts(groups: pa.Table, linked: dict[str, Bools]) -> dict[str, int]:
    num_groups = pc.count_distinct(groups["group"]).as_py()
    found = {"groups": num_groups, "grouped_pairs": len(groups), "redundant": len(groups) - num_groups}
    return {**found, **{f"linked_by_{kind}": int(mask.sum()) for kind, mask in linked.items()}}


def _protected_counts(protected: pa.Table, evaluations: pa.Table) -> dict[str, int]:
    """Contaminated pairs, all and by evaluation; an evaluation of which no picture was met is there too, at 0."""
    found = dict(zip(*(c.to_pylist() for c in pc.value_counts(protected["evaluation"]).flatten()), strict=True))
    names = sorted(evaluations["evaluation"].unique().to_pylist())
    return {"protected": len(protected), **{f"protected_by_{name}": found.get(name, 0) for name in names}}


def _largest_groups(groups: pa.Table) -> list[dict[str, Any]]:
    """The largest groups, and a few uids of each."""
    sizes = groups.group_by("group").aggregate([("uid", "count")])
    sizes = sizes.sort_by([("uid_count", "descending"), ("group", "ascending")]).slice(0, _LARGEST)
    found = []
    for group, size in zip(sizes["group"].to_pylist(), sizes["uid_count"].to_pylist(), strict=True):
        members = groups.filter(pc.equal(groups["group"], group))
        kinds = sorted(pc.list_flatten(members["by"]).unique().to_pylist())
        found.append({"group": group, "pairs": size, "by": kinds, "uids": members["uid"].to_pylist()[:_EXAMPLES]})
    return found
