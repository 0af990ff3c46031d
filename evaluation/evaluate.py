"""The evaluate stage: every task on every held-out split, from features alone, with intervals, chance and ties.

Writes `report.json` (one row a metric) and `per_query.parquet` (one row a query).
"""

from collections import Counter
from typing import Any

import pyarrow as pa

from data import storage
from data.features import FeatureSet
from data.shards import ShardSet
from data.stage import Outcome, Work
from evaluation.bootstrap import Estimate, estimate
from evaluation.guard import guard_splits
from evaluation.held_out import HeldOut, captions_of, held_out, read_meta, require_field, split_uids
from evaluation.metrics import Metric
from evaluation.queries import Queries, table_of, write_queries
from evaluation.retrieval import retrieve
from evaluation.specs import EvaluateSpec, Task, ZeroShot
from evaluation.zero_shot import classify

Answer = tuple[Queries, list[Metric]]


def run(spec: EvaluateSpec, work: Work) -> Outcome:
    """Score a feature set.

    Raises:
        EvaluationError: pairs leaked into training, or a split, field or caption source does not exist.
        ArtifactError: something needed was not embedded.
    """
    features, pairs = FeatureSet(work.parents["features"]), ShardSet(work.parents["pairs"])
    uids = split_uids(work.parents["split"], spec.splits)
    guard = guard_splits(features.artifact, pairs.artifact, work.parents["split"], uids)
    meta = read_meta(pairs)
    if spec.bootstrap.cluster_field:
        require_field(meta, spec.bootstrap.cluster_field, "bootstrap.cluster_field")

    rows: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    jobs = [(name, task_name, task) for name in spec.splits for task_name, task in spec.tasks.items()]
    for name, task_name, task in work.events.track(jobs, len(jobs), "tasks"):
        split = held_out(name, uids[name], features, meta, spec.bootstrap.cluster_field)
        for queries, metrics in _answer(task, features, pairs, split):
            estimates = estimate(queries, metrics, spec.bootstrap)
            rows += [_row(name, task_name, queries, *pair) for pair in zip(metrics, estimates, strict=True)]
            tables.append(table_of(name, task_name, queries))
    storage.write_json(work.out.at("report.json"), {"rows": rows, "guard": guard})
    write_queries(work.out.uri, tables)
    counts = {"queries": sum(table.num_rows for table in tables), "metrics": len(rows)}
    return Outcome(counts, _compact(rows) | {"guard": guard})


def _answer(task: Task, features: FeatureSet, pairs: ShardSet, split: HeldOut) -> list[Answer]:
    if isinstance(task, ZeroShot):
        return [classify(task, features, split)]
    return retrieve(task, features, split, captions_of(task.caption_source, pairs, features))


def _row(split: str, task: str, queries: Queries, metric: Metric, found: Estimate) -> dict[str, Any]:
    return {
        "split": split,
        "task": task,
        "metric": metric.name,
        "direction": queries.direction,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "chance": metric.chance(queries),
        "better": metric.better,
        "unit": metric.unit,
        "n": len(queries),
        "clusters": len(set(queries.clusters)),
        "candidates": int(queries.candidates.max()),
        "ties": int((queries.ties > 0).sum()),
        "dropped": len(queries.dropped),
        "dropped_reasons": dict(sorted(Counter(queries.dropped.values()).items())),
    }


def _compact(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("value", "low", "high", "chance", "n")
    return {f"{row['split']}/{row['task']}/{row['metric']}": {name: row[name] for name in names} for row in rows}
