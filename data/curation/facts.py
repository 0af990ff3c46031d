"""What the data card says of a selection, from the numbers of its record and a few examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from data.curation.card import (
    CardFacts,
    Duplicates,
    EntryCounts,
    Histogram,
    LanguageCount,
    Step,
    TopEntry,
)
from data.curation.portrait import merged_examples
from data.curation.specs import CurateSpec
from data.curation.tables import DRAWN_OUT, DUPLICATE, NO_CAPTION, PROTECTED, UNMATCHED
from data.curation.thumbnails import Chosen, Example, make_examples
from data.errors import ShardError
from data.shards import ShardSet, read_parquet
from data.shardwise import Summary
from data.stage import Work

_STEPS = {
    NO_CAPTION: "no caption", PROTECTED: "held by an evaluation", DUPLICATE: "duplicates",
    UNMATCHED: "no entry matched", DRAWN_OUT: "balancing",
}  # fmt: skip


def card_facts(
    spec: CurateSpec, work: Work, counts: Mapping[str, int], metrics: Mapping[str, Any], drawn: Sequence[Summary]
) -> CardFacts:
    """All that the card says."""
    shapes = metrics["shapes"]
    balanced = _balanced(metrics) if spec.balance else {}
    return CardFacts(
        title=f"Data card of {work.name}",
        splits=spec.splits,
        caption_source=spec.caption_source,
        steps=_steps(counts),
        languages=_languages(shapes, metrics.get("thresholds", {})),
        picture_sides=_histogram("shorter side", shapes.get("shorter_side")),
        caption_words=_histogram("words", shapes.get("caption_words")),
        duplicates=_duplicates(work) if spec.duplicates else None,
        protected=_protected(work) if spec.duplicates else {},
        examples=_examples(work, drawn),
        **balanced,
    )


def _steps(counts: Mapping[str, int]) -> tuple[Step, ...]:
    """The funnel: reasons come in the order in which pairs are dropped."""
    left, steps = counts["pairs"], []
    for name, dropped in counts.items():
        if name.startswith("dropped_"):
            reason = name.removeprefix("dropped_")
            steps.append(Step(_STEPS.get(reason, reason), left, dropped, {reason: dropped} if dropped else {}))
            left -= dropped
    return tuple(steps)


def _balanced(metrics: Mapping[str, Any]) -> dict[str, Any]:
    top = tuple(TopEntry(**{"language": "", **entry}) for entry in metrics["top_entries"])
    counts = EntryCounts(*(tuple(metrics["entry_counts"][name]) for name in ("edges", "before", "after")))
    return {"t": metrics["t"], "entry_counts": counts, "top_entries": top}


def _languages(shapes: Mapping[str, Any], thresholds: Mapping[str, int]) -> tuple[LanguageCount, ...]:
    found = [(name or "unknown", *both) for name, both in shapes.get("languages", {}).items()]
    by_size = sorted(found, key=lambda row: (-row[1], row[0]))
    return tuple(LanguageCount(name, before, after, thresholds.get(name)) for name, before, after in by_size)


def _histogram(name: str, shape: Mapping[str, Any] | None) -> Histogram | None:
    return Histogram(name, *(tuple(shape[part]) for part in ("edges", "before", "after"))) if shape else None


def _duplicates(work: Work) -> Duplicates:
    counts = work.parents["duplicates"].record.counts
    by_kind = {n.removeprefix("linked_by_"): count for n, count in counts.items() if n.startswith("linked_by_")}
    return Duplicates(counts.get("groups", 0), counts.get("redundant", 0), by_kind)


def _protected(work: Work) -> dict[str, int]:
    table = read_parquet(work.parents["duplicates"].at("protected.parquet"), ["evaluation"])
    found = pc.value_counts(table["evaluation"].combine_chunks()).to_pylist()
    return {row["values"]: row["counts"] for row in sorted(found, key=lambda row: str(row["values"]))}


def _examples(work: Work, drawn: Sequence[Summary]) -> tuple[Example, ...]:
    """A few pairs of every fate, the kept first; without pictures where the shards no longer give them."""
    chosen = [
        Chosen(shard, uid, caption, "" if reason == "kept" else reason, p_keep)
        for reason, rows in sorted(merged_examples(drawn).items(), key=lambda item: (item[0] != "kept", item[0]))
        for _, uid, caption, p_keep, shard in rows
    ]
    examples: list[Example] = []
    for one in chosen:
        try:
            examples += make_examples(ShardSet(work.parents["pairs"]), [one])
        except ShardError as error:
            work.events.message(f"card: no picture of {one.uid}: {error}")
            examples.append(Example(one.uid, one.caption or "", one.reason, one.p_keep, None, False))
    return tuple(examples)
