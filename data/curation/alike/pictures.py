"""What dedup knows of pictures: columns of inspections, with the split or the evaluation that each picture is in."""

import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.artifacts import Artifact
from data.curation.specs import DedupSpec
from data.curation.tables import shard_table
from data.errors import ArtifactError, RecipeError
from data.shards import ShardSet
from data.stage import Work

_MIN_ENTROPY_BITS = 1.0  # below, a picture is all but empty and its perceptual hash is noise: it is alike by bytes only


def read_pool(work: Work) -> pa.Table:
    """Every pair of the shard set, in its order: uid, content, phash, decodes, split.

    Raises:
        ArtifactError: inspection and split speak of different pairs.
    """
    shards, inspection, split = (
        ShardSet(work.parents["pairs"]).shards,
        work.parents["inspection"],
        work.parents["split"],
    )
    tables = []
    for shard in work.events.track(shards, len(shards), "shards", "reading"):
        pictures, splits = _pictures(inspection, shard.name), shard_table(split, "split", shard.name)
        if not pictures["uid"].equals(splits["uid"].cast(pa.large_string())):
            raise ArtifactError(
                f"{inspection.uri}: shard {shard.name} holds other pairs than the split {split.uri}; "
                "make both from the shard set that is given as pairs"
            )
        tables.append(pictures.append_column("split", splits["split"]))
    if not tables:
        return _EMPTY.append_column("split", pa.array([], pa.string()))
    return pa.concat_tables(tables).combine_chunks()


def read_evaluations(spec: DedupSpec, work: Work, pool: pa.Table) -> pa.Table:
    """Pictures that must not be trained on: uid, content, phash, decodes, evaluation (a label, or a held-out split).

    Raises:
        ArtifactError: an evaluation holds no picture.
        RecipeError: an evaluation has the name of a split.
    """
    free = [*spec.splits, None] if spec.protect_splits else pool["split"].unique().to_pylist()
    held_out = pool.filter(pc.invert(pc.is_in(pool["split"], value_set=pa.array(free, pa.string()))))
    tables, splits = [held_out.rename_columns({"split": "evaluation"})], set(pool["split"].unique().to_pylist())
    for label in spec.protect:
        if label in splits:
            raise RecipeError(f"protect.{label}: is the name of a split too; choose another label")
        pictures = _all_pictures(work.parents[f"protect.{label}.inspection"], label)
        tables.append(pictures.append_column("evaluation", pa.array([label] * len(pictures), pa.string())))
    return pa.concat_tables(tables)


def _all_pictures(inspection: Artifact, label: str) -> pa.Table:
    """Pictures of all shards of an evaluation."""
    names = [name for name, _ in storage.list_files(inspection.at("inspection"), recursive=True)]
    shards = [name.removesuffix(".parquet") for name in names if name.endswith(".parquet")]
    table = pa.concat_tables([_EMPTY, *(_pictures(inspection, shard) for shard in shards)])
    if table["content"].null_count == len(table):
        raise ArtifactError(
            f"{inspection.uri}: protect.{label} holds no picture and would protect nothing; "
            "inspect the evaluation's shard set again, or leave the label out"
        )
    return table


def _pictures(inspection: Artifact, shard: str) -> pa.Table:
    """One shard's pictures: uid, content, phash (null where it means nothing), decodes."""
    table = shard_table(inspection, "inspection", shard, ["uid", "content", "phash", "entropy"])
    is_empty = pc.fill_null(pc.less(table["entropy"], _MIN_ENTROPY_BITS), False)
    phash = pc.if_else(is_empty, pa.scalar(None, pa.uint64()), table["phash"])
    columns = [table["uid"], table["content"], phash, table["phash"].is_valid()]
    return pa.table(columns, names=_EMPTY.column_names).cast(_EMPTY.schema)


_EMPTY = pa.schema(
    [("uid", pa.large_string()), ("content", pa.binary(16)), ("phash", pa.uint64()), ("decodes", pa.bool_())]
).empty_table()
