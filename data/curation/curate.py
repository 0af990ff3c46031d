"""The curate stage: which pairs of the splits to train on, with what probability, and why not.

Filters first, then one pair of each group of duplicates, then MetaCLIP's balancing (arXiv 2309.16671): the tail is kept
whole, the head thinned to about `t` pairs an entry. Images are never touched; the result is a selection, made shard by
shard in three passes: judge each pair, count the entries of those that are left, draw.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.artifacts import open_artifact
from data.curation.balance import Floats, draws, entry_probabilities, keep_probabilities
from data.curation.captions import first_captions, shard_set
from data.curation.card import write_card
from data.curation.counts import total_counts, write_counts
from data.curation.facts import card_facts
from data.curation.groups import representatives
from data.curation.judge import Uris, judge_shard
from data.curation.kernels import Longs
from data.curation.languages import language_thresholds, thresholds_of_entries
from data.curation.match import Ints
from data.curation.portrait import examples_of, portrait, shapes_of
from data.curation.specs import Balance, CurateSpec
from data.curation.tables import (
    DRAWN_OUT,
    DUPLICATE,
    ENTRY_SCHEMA,
    NO_CAPTION,
    PROTECTED,
    SELECTION_SCHEMA,
    UNMATCHED,
    shard_table,
)
from data.errors import ShardError
from data.lookup import Lookup
from data.selection import in_splits, write_entries, write_selection
from data.shards import read_parquet, write_parquet
from data.shardwise import Summary, each_shard
from data.stage import Outcome, Work

Mask = npt.NDArray[np.bool_]


def run(spec: CurateSpec, work: Work) -> Outcome:
    """Write a selection of the pairs of `spec.splits`.

    Raises:
        ShardError: nothing is left, with what was dropped for which reason.
    """
    names = [shard.name for shard in shard_set(work.parents["pairs"].uri).shards]
    uris = {role: parent.uri for role, parent in work.parents.items()} | {"state": work.out.state_uri}
    judged = each_shard(work, "judge", names, partial(judge_shard, spec, uris))
    if spec.duplicates:
        _choose_representatives(uris, names)
    entries, thresholds = ENTRY_SCHEMA.empty_table(), dict[str, int]()
    if spec.balance:
        entries, thresholds = _count(spec.balance, work, uris, names)
    drawn = each_shard(work, "draw", names, partial(draw_shard, spec, uris, work.out.uri))
    counts = _counts(spec, drawn)
    if not counts["kept"]:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ShardError(f"stage {work.name}: no pair is kept ({told}); {_fix(spec, counts)}")
    if spec.balance:
        kept_E = pa.array(total_counts(work, "kept", names, len(entries)))
        entries = entries.set_column(entries.schema.get_field_index("kept"), "kept", kept_E)
    write_entries(work.out.uri, entries)
    metrics = portrait(spec, counts, entries, thresholds, judged, drawn)
    if spec.balance:
        metrics["matching"] = work.parents["balance.matches"].record.metrics.get("matching")
    write_card(work.out.uri, card_facts(spec, work, counts, metrics, drawn))
    return Outcome(counts, metrics)


def _choose_representatives(uris: Uris, names: Sequence[str]) -> None:
    """Write the uids that are left out because another pair of their group stays, to `redundant.parquet`."""
    groups = read_parquet(open_artifact(uris["duplicates"]).at("groups.parquet"), ["uid", "group"])
    lookup, found = Lookup(groups["uid"]), []
    for name in names:
        judged = read_parquet(_state(uris, "judged", name))
        rows = lookup.rows_of(judged["uid"])
        left = np.flatnonzero((rows >= 0) & pc.equal(judged["reason"], "").to_numpy())
        found.append(judged.take(left).append_column("group", groups["group"].take(pa.array(rows[left]))))
    table = pa.concat_tables(found)
    stays = representatives(table["uid"], table["group"], table["pixels"].to_numpy())
    write_parquet(storage.join(uris["state"], "redundant.parquet"), table.filter(pa.array(~stays)).select(["uid"]))


def _count(balance: Balance, work: Work, uris: Uris, names: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
    """Entries (ENTRY_SCHEMA): how many of the pairs that are left hold each, and p; thresholds by language."""
    each_shard(work, "count", names, partial(count_shard, uris))
    entries = read_parquet(work.parents["balance.matches"].at("entries.parquet"))
    count_E = total_counts(work, "count", names, len(entries))
    thresholds: dict[str, int] = {}
    t: int | Longs = balance.t
    if balance.by_language:
        thresholds = language_thresholds(count_E, entries["language"], balance.t)
        t = thresholds_of_entries(count_E, entries["language"], balance.t)
    p_E = entry_probabilities(count_E, t)
    write_parquet(storage.join(uris["state"], "p.parquet"), pa.table({"p": p_E}))
    columns = [*entries.columns, count_E, np.zeros(len(entries), np.int64), p_E]
    return pa.table(columns, schema=ENTRY_SCHEMA), thresholds


def count_shard(uris: Uris, number: int) -> Summary:
    """Count the entries of one shard's pairs that are left."""
    name = shard_set(uris["pairs"]).shards[number].name
    judged = _judged(uris, name)
    left = pc.equal(judged["reason"], "").to_numpy()
    _, ids = _entries_of(uris, name, judged["uid"], left)
    write_counts(storage.join(uris["state"], "count"), name, ids)
    return {"matches": len(ids)}


def draw_shard(spec: CurateSpec, uris: Uris, out_uri: str, number: int) -> Summary:
    """Decide each pair of one shard and write its part of the selection."""
    pairs = shard_set(uris["pairs"])
    name = pairs.shards[number].name
    judged = _judged(uris, name)
    uids = judged["uid"].combine_chunks()
    captions = first_captions(pairs, number, spec.caption_source, uids)
    reasons = judged["reason"].to_numpy().copy()
    left = reasons == ""
    p_keep = left.astype(np.float64)
    if spec.balance:
        indptr, ids = _entries_of(uris, name, uids, left)
        p_keep = keep_probabilities(indptr, ids, _probabilities(uris["state"]))
        reasons[left & (np.diff(indptr) == 0)] = UNMATCHED
    drawn = draws(uids, captions, spec.seed)
    reasons[(reasons == "") & (drawn >= p_keep)] = DRAWN_OUT
    kept = reasons == ""
    if spec.balance:
        write_counts(storage.join(uris["state"], "kept"), name, ids[np.repeat(kept, np.diff(indptr))])
    table = pa.table(
        [uids, kept, p_keep, pa.array(drawn, mask=captions.is_null().to_numpy(False)), reasons], schema=SELECTION_SCHEMA
    )
    write_selection(out_uri, table, name)
    return {
        "reasons": dict(sorted(Counter(reasons.tolist()).items())),
        "expected": float(p_keep.sum()),
        "examples": examples_of(table, captions, number),
        "shapes": shapes_of(_looks(spec, uris, name), captions, kept),
    }


def _looks(spec: CurateSpec, uris: Uris, name: str) -> pa.Table | None:
    """Picture sizes and languages of one shard's pairs in the splits, where there is an inspection."""
    if not spec.inspection:
        return None
    inside = in_splits(open_artifact(uris["split"]), name, spec.splits)
    columns = ["width", "height", "language"]
    return shard_table(open_artifact(uris["inspection"]), "inspection", name, columns).filter(inside)


def _judged(uris: Uris, name: str) -> pa.Table:
    """Judged rows of a shard, duplicates that are left out included."""
    judged = read_parquet(_state(uris, "judged", name))
    if "duplicates" not in uris:
        return judged
    reasons = judged["reason"].to_numpy().copy()
    reasons[(reasons == "") & (_redundant(uris["state"]).rows_of(judged["uid"]) >= 0)] = DUPLICATE
    return judged.set_column(1, "reason", pa.array(reasons, pa.string()))


def _entries_of(uris: Uris, name: str, uids: Any, left: Mask) -> tuple[Longs, Ints]:
    """CSR of the entries of these pairs; none for a pair that is not left.

    Raises:
        ShardError: a pair was not matched.
    """
    matches = shard_table(open_artifact(uris["balance.matches"]), "matches", name)
    rows = pc.index_in(uids, value_set=matches["uid"].combine_chunks())
    if rows.null_count:
        lost = uids.filter(rows.is_null())[0].as_py()
        raise ShardError(f"uid {lost!r}: in splits that {uris['balance.matches']} did not match; name them there too")
    lists = matches["entries"].combine_chunks().take(rows.combine_chunks() if hasattr(rows, "combine_chunks") else rows)
    lengths = np.where(left, pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), 0)
    chosen = lists.filter(pa.array(left & (lengths > 0)))
    indptr = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return indptr, chosen.flatten().to_numpy(zero_copy_only=False).astype(np.int32)


def _state(uris: Uris, folder: str, name: str) -> str:
    return storage.join(uris["state"], folder, f"{name}.parquet")


@cache
def _redundant(state_uri: str) -> Lookup:
    return Lookup(read_parquet(storage.join(state_uri, "redundant.parquet"))["uid"])


@cache
def _probabilities(state_uri: str) -> Floats:
    return np.asarray(read_parquet(storage.join(state_uri, "p.parquet"))["p"].to_numpy())


def _counts(spec: CurateSpec, drawn: Sequence[Summary]) -> dict[str, int]:
    """Pairs, kept, and dropped by reason; every reason that could have been is there, also at 0."""
    found: Counter[str] = Counter()
    for summary in drawn:
        found.update(summary["reasons"])
    possible = [NO_CAPTION, *dict.fromkeys(each.filter for each in spec.filters)]
    possible += [PROTECTED, DUPLICATE] if spec.duplicates else []
    possible += [UNMATCHED, DRAWN_OUT] if spec.balance else []
    dropped = {f"dropped_{reason}": found[reason] for reason in possible}
    return {"pairs": found.total(), "kept": found[""], **dropped}


def _fix(spec: CurateSpec, counts: dict[str, int]) -> str:
    """What to change when nothing is kept, by what happened to most pairs."""
    if not counts["pairs"]:
        return f"splits {', '.join(spec.splits)} are empty: name others"
    if counts["dropped_no_caption"] == counts["pairs"]:
        return f"no pair has a caption of source {spec.caption_source!r}: name another caption_source"
    worst = max((name for name in counts if name.startswith("dropped_")), key=counts.__getitem__)
    if worst in ("dropped_unmatched", "dropped_drawn_out"):
        return "add metadata that names what the captions do, or raise balance.t"
    return f"most are {worst.removeprefix('dropped_')}: loosen that"
