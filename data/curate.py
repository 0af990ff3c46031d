"""The curate stage: which pairs of the splits to train on, with what probability, and why not.

MetaCLIP (arXiv 2309.16671): match captions with metadata entries, keep the tail whole, thin the head to about `t` pairs
an entry. Images are never touched; the result is a selection.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.balance import Floats, count_entries, draws, entry_probabilities, keep_probabilities
from data.errors import ShardError
from data.match import Ints, Longs, Matcher
from data.metadata import Entry, build_entries
from data.selection import ENTRY_SCHEMA, SELECTION_SCHEMA, read_split, uids_of, write_selection
from data.shards import ShardSet
from data.specs import Balance, CurateSpec
from data.stage import Outcome, Work

_HEAD_ROWS = 15
_EXAMPLES = 5
_CHUNK_CAPTIONS = 20_000


class Balanced(NamedTuple):
    """What balancing says of P pairs (with a caption) and E entries."""

    entries: list[Entry]
    indptr: Longs
    ids: Ints
    counts: Longs  # E
    p: Floats  # E
    p_keep: Floats  # P


def run(spec: CurateSpec, work: Work) -> Outcome:
    """Write a selection of the pairs of `spec.splits`.

    Raises:
        ShardError: nothing is left, with what was dropped for which reason.
    """
    uids = uids_of(read_split(work.parents["split"]), spec.splits)
    captions = _captions(ShardSet(work.parents["pairs"]), spec.caption_source, uids)
    with_caption = [uid for uid in uids if uid in captions]
    texts = [captions[uid] for uid in with_caption]
    balanced = _balance(spec.balance, texts, work) if spec.balance and texts else _keep_all(len(texts))
    draws_P = draws(with_caption, texts, spec.seed)
    kept_P = draws_P < balanced.p_keep
    table = _selection_table(with_caption, balanced, draws_P, kept_P, sorted(set(uids) - captions.keys()))
    counts = _counts(table)
    if not counts["kept"]:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ShardError(f"stage {work.name}: no pair is kept ({told}); {_fix(spec, counts)}")
    write_selection(work.out.uri, table, _entry_table(balanced))
    return Outcome(counts, _metrics(spec, balanced, kept_P, table))


def _captions(pairs: ShardSet, source: str, uids: Sequence[str]) -> dict[str, str]:
    """uid -> its first caption of the source; blank captions are none."""
    wanted, found = set(uids), dict[str, str]()
    table = pairs.captions(source)
    for uid, caption in zip(table["uid"].to_pylist(), table["caption"].to_pylist(), strict=True):
        if uid in wanted and caption and caption.strip():
            found.setdefault(uid, caption)
    return found


def _balance(spec: Balance, captions: list[str], work: Work) -> Balanced:
    work.events.message(f"building metadata for {len(captions)} captions")
    entries = build_entries(spec.metadata, captions, spec.matching)
    indptr, ids = _match(Matcher([entry.text for entry in entries], spec.matching), captions, work)
    counts_E = count_entries(ids, len(entries))
    p_E = entry_probabilities(counts_E, spec.t)
    return Balanced(entries, indptr, ids, counts_E, p_E, keep_probabilities(indptr, ids, p_E))


def _match(matcher: Matcher, captions: list[str], work: Work) -> tuple[Longs, Ints]:
    """Match in chunks, so that a large pool shows how far it is."""
    indptrs, found = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)]
    for start in range(0, len(captions), _CHUNK_CAPTIONS):
        indptr, ids = matcher.match(captions[start : start + _CHUNK_CAPTIONS])
        indptrs.append(indptr[1:] + indptrs[-1][-1])
        found.append(ids)
        work.events.progress(start + len(indptr) - 1, len(captions), "captions", "matching")
    return np.concatenate(indptrs), np.concatenate(found)


def _keep_all(num_pairs: int) -> Balanced:
    """No balancing: no entries, every pair with a caption is sure."""
    return Balanced(
        [],
        np.zeros(num_pairs + 1, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.int64),
        np.zeros(0),
        np.ones(num_pairs),
    )


def _selection_table(
    uids: list[str], balanced: Balanced, draws_P: Floats, kept_P: Any, without_caption: list[str]
) -> pa.Table:
    """SELECTION_SCHEMA rows: pairs with a caption, then those without."""
    reasons = np.where(kept_P, "", np.where(np.diff(balanced.indptr) == 0, "unmatched", "drawn_out"))
    entries = pa.LargeListArray.from_arrays(balanced.indptr, pa.array(balanced.ids, pa.int32()))
    known = pa.table(
        [pa.array(uids, pa.string()), pa.array(kept_P), pa.array(balanced.p_keep), pa.array(draws_P),
         pa.array(reasons.tolist(), pa.string()), entries.cast(pa.list_(pa.int32()))],
        schema=SELECTION_SCHEMA,
    )  # fmt: skip
    none: dict[str, Any] = {"kept": False, "p_keep": 0.0, "draw": None, "reason": "no_caption", "entries": []}
    return pa.concat_tables(
        [known, pa.Table.from_pylist([{"uid": uid, **none} for uid in without_caption], SELECTION_SCHEMA)]
    )


def _entry_table(balanced: Balanced) -> pa.Table:
    texts, sources = [e.text for e in balanced.entries], [e.source for e in balanced.entries]
    return pa.table([range(len(texts)), texts, sources, balanced.counts, balanced.p], schema=ENTRY_SCHEMA)


def _counts(table: pa.Table) -> dict[str, int]:
    """Pairs, kept, and dropped by reason; every reason is there, also at 0."""
    kept = table["kept"].to_pylist().count(True)
    reasons = table["reason"].to_pylist()
    dropped = {f"dropped_{reason}": reasons.count(reason) for reason in ("no_caption", "unmatched", "drawn_out")}
    return {"pairs": table.num_rows, "kept": kept, **dropped}


def _fix(spec: CurateSpec, counts: dict[str, int]) -> str:
    """What to change when nothing is kept, by what happened to most pairs."""
    if not counts["pairs"]:
        return f"splits {', '.join(spec.splits)} are empty: name others"
    if counts["dropped_no_caption"] == counts["pairs"]:
        return f"no pair has a caption of source {spec.caption_source!r}: name another caption_source"
    return "add metadata that names what the captions do, or raise balance.t"


def _metrics(spec: CurateSpec, balanced: Balanced, kept_P: Any, table: pa.Table) -> dict[str, Any]:
    """What the report shows: matching, head and tail, entry counts before and after, a few uids by fate."""
    examples = {reason or "kept": _some_uids(table, reason) for reason in sorted(set(table["reason"].to_pylist()))}
    if spec.balance is None:
        return {"balanced": False, "examples": examples}
    pair = np.repeat(np.arange(len(kept_P)), np.diff(balanced.indptr))
    after_E = count_entries(balanced.ids[kept_P[pair]], len(balanced.entries))
    before_E, t = balanced.counts, spec.balance.t
    matched = int((np.diff(balanced.indptr) > 0).sum())
    return {
        "balanced": True, "matching": spec.balance.matching, "t": t, "entries": len(balanced.entries),
        "entries_matched": int((before_E > 0).sum()), "entries_kept": int((after_E > 0).sum()),
        "head_entries": int((before_E >= t).sum()), "tail_entries": int(((before_E > 0) & (before_E < t)).sum()),
        "head_match_fraction": float(before_E[before_E >= t].sum() / max(1, before_E.sum())),
        "matched_fraction": matched / max(1, len(kept_P)),
        "expected_kept": float(balanced.p_keep.sum()),
        "top_entries": _top_entries(balanced, after_E),
        "entry_counts": _histogram(before_E, after_E),
        "examples": examples,
    }  # fmt: skip


def _some_uids(table: pa.Table, reason: str) -> list[str]:
    chosen = table.filter(pc.equal(table["reason"], reason))["uid"].to_pylist()
    return sorted(chosen)[:_EXAMPLES]


def _top_entries(balanced: Balanced, after_E: Longs) -> list[dict[str, Any]]:
    """The largest entries before balancing, with what is left of them."""
    order = np.argsort(-balanced.counts, kind="stable")[:_HEAD_ROWS]
    before, after, p = balanced.counts[order].tolist(), after_E[order].tolist(), balanced.p[order].tolist()
    names = [balanced.entries[number].text for number in order]
    rows = zip(names, before, after, p, strict=True)
    return [dict(zip(("entry", "before", "after", "p"), row, strict=True)) for row in rows]


def _histogram(before_E: Longs, after_E: Longs) -> dict[str, list[int]]:
    """Entries by how many pairs they are in: bins [0, 1), [1, 2), [2, 4), [4, 8) ... before and after."""
    top = int(before_E.max(initial=1))
    edges = [0, *(2**power for power in range(top.bit_length() + 1))]
    return {
        "edges": edges,
        "before": np.histogram(before_E, edges)[0].tolist(),
        "after": np.histogram(after_E, edges)[0].tolist(),
    }
