"""The evaluate stage: every task on every scored split of every set, from features alone.

Writes `report.json` (an entry a metric: value, interval, n, dropped, ties, chance), `draws.npy` (their resamples, one
row an entry) and `rows/<set>/<split>/<task>.parquet` (an entry a sample). A task that is done is kept, so a stage that
is killed goes on at the next one.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from data import storage
from data.artifacts import open_artifact
from data.errors import EvaluationError, UserError
from data.features import FeatureSet
from data.shards import ShardSet
from data.shardwise import Summary, each_shard
from data.stage import Outcome, Work
from evaluation.bootstrap import Estimate, estimate, samples_digest
from evaluation.metrics.base import Metric
from evaluation.policy import SplitPolicy
from evaluation.rows import Doubles, file_name, write_rows
from evaluation.specs import EvaluateSpec
from evaluation.subject import Answer, SetData, Subject

Job = tuple[str, str, str]  # set, split, task


def run(spec: EvaluateSpec, work: Work) -> Outcome:
    """Score a checkpoint's feature sets.

    Raises:
        EvaluationError: pairs leaked into training, or a split, field or caption source does not exist.
        ArtifactError: something needed was not embedded.
    """
    world = World(spec, {role: parent.uri for role, parent in work.parents.items()})
    guard, checkpoint = world.policy.check_training(), world.checkpoint()
    jobs = [(name, split, task) for name, one in spec.sets.items() for split in one.splits for task in one.tasks]
    names = ["/".join(job) for job in jobs]
    do = partial(_answer_job, world, jobs, work.out.uri, work.out.state_uri)
    done = each_shard(work, "scored", names, do, unit="tasks")
    rows = [row for summary in done for row in summary["rows"]]
    draws = [_load(storage.join(work.out.state_uri, "draws", f"{name}.npy")) for name in names]
    storage.write_bytes(work.out.at("draws.npy"), _npy(np.concatenate(draws)))
    extra = {name: summary["extra"] for name, summary in zip(names, done, strict=True) if summary["extra"]}
    storage.write_json(work.out.at("report.json"), {"rows": rows, "guard": guard, "extra": extra})
    counts = {"tasks": len(jobs), "metrics": len(rows), "samples": sum(summary["samples"] for summary in done)}
    return Outcome(counts, _compact(rows) | {"guard": guard, "checkpoint": checkpoint})


class World:
    """All sets of an evaluation, opened where they are needed: a worker gets the addresses, not the features."""

    def __init__(self, spec: EvaluateSpec, uris: Mapping[str, str]) -> None:
        self.spec, self.uris = spec, dict(uris)

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec, "uris": self.uris}

    @property
    def policy(self) -> SplitPolicy:
        """Who may learn from what."""
        return self._opened()[1]

    def checkpoint(self) -> str:
        """Fingerprint of the one checkpoint behind all features.

        Raises:
            EvaluationError: features of several checkpoints would be one model's numbers.
        """
        found = {}
        for role, uri in self.uris.items():
            if role.endswith((".features", ".views")):
                found[open_artifact(uri).record.parents.get("checkpoint", "")] = role
        if len(found) > 1:
            roles = " and ".join(sorted(found.values()))
            raise EvaluationError(f"{roles}: were made with different checkpoints; evaluate one checkpoint a stage")
        return next(iter(found))

    def subject(self, set_name: str, split: str) -> Subject:
        """One split of one set."""
        data, policy = self._opened()

        def other(where: str) -> Subject:
            name, _, own_split = where.rpartition("/")
            if (name or set_name) not in data:
                raise EvaluationError(f"{where!r}: no set {name!r} in this evaluation; sets are {', '.join(data)}")
            return self.subject(name or set_name, own_split)

        return Subject(data[set_name], data[set_name].part(split), policy, other)

    @lru_cache(1)  # noqa: B019 - one world a process and stage
    def _opened(self) -> tuple[dict[str, SetData], SplitPolicy]:
        data = {name: self._open_set(name) for name in self.spec.sets}
        scored = {name: {u for split in one.scored.splits for u in one.split_uids(split)} for name, one in data.items()}
        return data, SplitPolicy(scored, data)

    def _open_set(self, name: str) -> SetData:
        parents = {
            role.rpartition(".")[2]: open_artifact(uri)
            for role, uri in self.uris.items() if role.startswith(f"sets.{name}.")
        }  # fmt: skip
        views = FeatureSet(parents["views"]) if "views" in parents else None
        return SetData(
            name, self.spec.sets[name], FeatureSet(parents["features"]), ShardSet(parents["pairs"]), parents["split"],
            views,
        )  # fmt: skip


def _answer_job(world: World, jobs: list[Job], out_uri: str, state_uri: str, number: int) -> Summary:
    """Do one task on one split: write its rows and draws, return its entries."""
    set_name, split, task = jobs[number]
    spec = world.spec.sets[set_name].tasks[task]
    try:
        answers: list[Answer] = spec.build()(spec, world.subject(set_name, split))
    except UserError as error:
        raise type(error)(f"sets.{set_name}.tasks.{task} on {split!r}: {error}") from error
    entries: list[dict[str, Any]] = []
    draws: list[Doubles] = []
    for answer in answers:
        file = file_name(set_name, split, task, answer.rows.direction, answer.baseline)
        write_rows(storage.join(out_uri, "rows", file), answer.rows)
        estimates = estimate(answer.rows, answer.metrics, world.spec.bootstrap)
        common = {"set": set_name, "split": split, "task": task, "kind": spec.task, "file": file} | _common(answer)
        for metric, found in zip(answer.metrics, estimates, strict=True):
            entries.append(common | _entry(metric, answer, found))
            draws.append(found.draws)
    storage.write_bytes(storage.join(state_uri, "draws", f"{'/'.join(jobs[number])}.npy"), _npy(np.stack(draws)))
    extra = {answer.baseline or answer.rows.direction: dict(answer.extra) for answer in answers if answer.extra}
    return {"rows": entries, "extra": extra, "samples": sum(len(a.rows) for a in answers if not a.baseline)}


def _common(answer: Answer) -> dict[str, Any]:
    rows = answer.rows
    candidates = rows.numbers.get("candidates")
    return {
        "direction": rows.direction,
        "baseline": answer.baseline,
        "chosen": dict(answer.chosen),
        "n": len(rows),
        "clusters": int(rows.clusters_Q.max()) + 1,
        "samples": samples_digest(rows),
        "candidates": None if candidates is None else int(candidates.max()),
        "ties": rows.ties,
        "dropped": len(rows.dropped),
        "dropped_reasons": dict(sorted(Counter(rows.dropped.values()).items())),
    }


def _entry(metric: Metric, answer: Answer, found: Estimate) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "chance": metric.chance(answer.rows),
        "better": metric.better,
        "unit": metric.unit,
    }


def _compact(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the record says of the results: all but the baselines."""
    names = ("value", "low", "high", "chance", "n")
    return {
        "/".join(row[part] for part in ("set", "split", "task", "metric")): {name: row[name] for name in names}
        for row in rows if not row["baseline"]
    }  # fmt: skip


def _npy(array: Doubles) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.asarray(array, np.float32), allow_pickle=False)
    return sink.getvalue()


def _load(uri: str) -> Doubles:
    return np.asarray(np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False), np.float64)
