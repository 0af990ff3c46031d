"""What the parts of a report show, gathered from artifacts; what an artifact does not have is not shown."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.artifacts import Artifact
from data.errors import EvaluationError
from data.features import FeatureSet
from data.selection import read_selection
from data.shards import ShardSet, read_parquet
from evaluation.gallery import best_pictures
from evaluation.images import Pictures
from evaluation.plots import runs

_EXAMPLES = 6
_LOOKED_AT = 3000
_CAPTION_SAMPLES = 8
_GALLERY_PICTURES = 8
_FACTS = {
    "matching": "matching rule",
    "t": "t (an entry with fewer matches keeps them all)",
    "entries": "metadata entries",
    "entries_matched": "entries that match a caption",
    "head_entries": "head entries (more than t matches)",
    "tail_entries": "tail entries",
    "head_match_fraction": "share of matches that fall on the head",
    "matched_fraction": "share of captions that match an entry",
}
Section = dict[str, Any]


def curation(selection: Artifact, pictures: Pictures | None) -> Section:
    """What was kept and why: fates, entries before and after, and examples whose pictures may be shown."""
    counts, metrics = selection.record.counts, selection.record.metrics
    fates = [("kept", counts.get("kept", 0))]
    fates += [(name.removeprefix("dropped_"), number) for name, number in counts.items() if name.startswith("dropped_")]
    total = sum(number for _, number in fates) or 1
    histogram = metrics.get("entry_counts") or metrics.get("histogram") or {}
    source = str(selection.record.config.get("caption_source", "alt"))
    return {
        "total": total,
        "fates": [{"name": name, "count": number, "share": number / total} for name, number in fates if number],
        "facts": {label: metrics[name] for name, label in _FACTS.items() if name in metrics},
        "histogram": runs.entry_histogram(**histogram) if {"edges", "before", "after"} == histogram.keys() else None,
        "top_entries": metrics.get("top_entries", []),
        "examples": _examples(selection, pictures, source) if pictures else {},
    }


def _examples(selection: Artifact, pictures: Pictures, source: str) -> dict[str, list[Section]]:
    table = read_selection(selection)
    chosen: dict[str, list[Section]] = {}
    for reason in sorted(set(table["reason"].to_pylist())):
        rows = table.filter(pc.equal(table["reason"], reason))
        shown = [row for row in _spread(rows, _LOOKED_AT).to_pylist() if pictures.may_show(row["uid"])]
        chosen[reason or "kept"] = _by_hash(shown, "uid")[:_EXAMPLES]
    uids = [row["uid"] for rows in chosen.values() for row in rows]
    images, captions = pictures.data_uris(uids), first_captions(pictures.pairs, uids, source)
    return {
        reason: [
            {"uid": row["uid"], "caption": captions.get(row["uid"], ""), "p_keep": row["p_keep"],
             "picture": images[row["uid"]]} for row in rows if row["uid"] in images
        ] for reason, rows in chosen.items() if rows
    }  # fmt: skip


def rewriting(layer: Artifact) -> Section:
    """Captions before and after: how many rewrites were used, why others were not, and samples of both."""
    rows = read_parquet(layer.at("rewrites.parquet")).to_pylist()
    used, refused = [row for row in rows if row["accepted"]], [row for row in rows if not row["accepted"]]
    reasons = Counter(str(row["reason"]) for row in refused)
    samples: list[Section] = []
    for reason, _ in reasons.most_common():  # the commonest reasons first, at most two samples each
        samples += _by_hash([row for row in refused if row["reason"] == reason], "caption")[:2]
    return {
        "attempts": len(rows),
        "used": len(used),
        "share": len(used) / max(1, len(rows)),
        "reasons": [{"name": name, "count": n, "share": n / len(rows)} for name, n in reasons.most_common()],
        "samples_used": _by_hash(used, "caption")[:_CAPTION_SAMPLES],
        "samples_refused": samples[:_CAPTION_SAMPLES],
        "model": str((layer.record.config.get("llm") or {}).get("model", "")),
    }  # fmt: skip


def training(checkpoints: Mapping[str, Artifact]) -> list[Section]:
    """Loss curve, last values and surgery checks of every checkpoint that has a log."""
    found = []
    for label, checkpoint in checkpoints.items():
        uri = checkpoint.at("metrics.jsonl")
        lines = _log(uri) if storage.exists(uri) else []
        if lines:
            phases = list(dict.fromkeys(str(line.get("phase", "")) for line in lines))
            last = {phase: [line for line in lines if str(line.get("phase", "")) == phase][-1] for phase in phases}
            own = {"label": label, "plot": runs.loss_curve(lines, label), "last": last}
            found.append(own | {"checks": checkpoint.record.metrics.get("checks", {})})
    return found


def parameters(evaluations: Mapping[str, Artifact]) -> dict[str, int]:
    """Number of parameters of the model behind each evaluation, where its checkpoint says it."""
    models = {label: checkpoint_of(evaluation) for label, evaluation in evaluations.items()}
    counts = {label: model.record.counts.get("parameters") for label, model in models.items()}
    return {label: count for label, count in counts.items() if count}


def checkpoint_of(evaluation: Artifact) -> Artifact:
    """The checkpoint behind an evaluation: the same for all its feature sets."""
    role = next(role for role in evaluation.record.parents if role.endswith(".features"))
    return evaluation.parent(role).parent("checkpoint")


def _log(uri: str) -> list[Section]:
    lines = (json.loads(line) for line in storage.read_bytes(uri).decode().splitlines() if line.strip())
    return [line for line in lines if "loss" in line and "samples_seen" in line]


def gallery(features: FeatureSet, uids: Sequence[str], queries: Sequence[str], pictures: Pictures) -> list[Section]:
    """The pictures of a split that a model finds for each query, among those that may be shown.

    Raises:
        ArtifactError: a query was not embedded.
        EvaluationError: no picture of the split may be shown.
    """
    shown = [uid for uid in features.embedded(uids) if pictures.may_show(uid)]
    if not shown:
        raise EvaluationError(
            "gallery.split: no embedded picture of it is of the vendors its set may show; name others in `sets`"
        )
    rows = features.text_rows(queries)
    hits = [best_pictures(features, shown, features.text_features[row], _GALLERY_PICTURES) for row in rows]
    every = [hit.uid for found in hits for hit in found]
    images, captions = pictures.data_uris(every, side=128), first_captions(pictures.pairs, every, "alt")
    return [
        {"query": query, "hits": [
            {"uid": hit.uid, "score": hit.score, "caption": captions.get(hit.uid, ""), "picture": images[hit.uid]}
            for hit in found if hit.uid in images
        ]} for query, found in zip(queries, hits, strict=True)
    ]  # fmt: skip


def first_captions(pairs: ShardSet, uids: Iterable[str], source: str) -> dict[str, str]:
    """The first caption of a source for each of these uids."""
    table = pairs.captions(source)
    table = table.filter(pc.is_in(table["uid"], value_set=pa.array(sorted(set(uids)), pa.string())))
    found: dict[str, str] = {}
    for uid, caption in zip(table["uid"].to_pylist(), table["caption"].to_pylist(), strict=True):
        found.setdefault(uid, caption)
    return found


def _spread(table: pa.Table, count: int) -> pa.Table:
    """At most `count` rows, evenly spread."""
    step = max(1, -(-table.num_rows // count))
    return table.take(pa.array(range(0, table.num_rows, step)))


def _by_hash(rows: Iterable[Section], key: str) -> list[Section]:
    """Rows in an order that has nothing to do with what they say, and is always the same."""
    return sorted(rows, key=lambda row: hashlib.sha256(str(row[key]).encode()).digest())
