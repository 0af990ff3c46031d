"""What a selection looks like, as numbers of its record: shards leave counts and examples, which are added up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.curation.specs import CurateSpec
from data.lookup import string_hashes
from data.shardwise import Summary

Mask = npt.NDArray[np.bool_]
WORD_EDGES = (0, 1, 2, 3, 5, 8, 12, 20, 40, 80, 160, 1_000_000)  # the last bin takes all that is longer, too
SIDE_EDGES = (0, 32, 64, 128, 224, 256, 384, 512, 1024, 2048, 100_000)
_HEAD_ROWS = 15
_EXAMPLES = 6
_EXAMPLE_CHARACTERS = 300


def examples_of(selection: pa.Table, captions: pa.Array, shard: int) -> dict[str, list[list[Any]]]:
    """Reason -> [hash, uid, caption, p_keep, shard] of a few pairs, chosen by hash: the same whatever the shards."""
    hashes = string_hashes(selection["uid"].cast(pa.large_string()).combine_chunks())
    found: dict[str, list[list[Any]]] = {}
    for reason in pc.unique(selection["reason"]).to_pylist():
        rows = np.flatnonzero(pc.equal(selection["reason"], reason).to_numpy())
        for row in rows[np.argsort(hashes[rows], kind="stable")[:_EXAMPLES]].tolist():
            caption = captions[row].as_py()
            shown = caption if caption is None else caption[:_EXAMPLE_CHARACTERS]
            uid, p_keep = (selection[name][row].as_py() for name in ("uid", "p_keep"))
            entry = [int(hashes[row]), uid, shown, p_keep, shard]
            found.setdefault(reason, []).append(entry)
    return found


def shapes_of(looks: pa.Table | None, captions: pa.Array, kept: Mask) -> dict[str, Any]:
    """Histograms and languages of one shard, each of all its pairs and of those that are kept."""
    words = pc.list_value_length(pc.utf8_split_whitespace(captions)).fill_null(0).to_numpy(zero_copy_only=False)
    found: dict[str, Any] = {"caption_words": _both(words, WORD_EDGES, kept)}
    if looks is not None:
        side = pc.min_element_wise(looks["width"], looks["height"]).fill_null(0).to_numpy()
        found["shorter_side"] = _both(side, SIDE_EDGES, kept)
        languages = looks["language"].fill_null("").to_numpy()
        before, after = Counter(languages.tolist()), Counter(languages[kept].tolist())
        found["languages"] = {name: [number, after[name]] for name, number in sorted(before.items())}
    return found


def _both(values: npt.NDArray[np.integer], edges: Sequence[int], kept: Mask) -> list[list[int]]:
    """Counts in [edge, next edge): of all, of the kept."""
    return [np.histogram(np.minimum(part, edges[-1]), edges)[0].tolist() for part in (values, values[kept])]


def portrait(
    spec: CurateSpec,
    counts: Mapping[str, int],
    entries: pa.Table,
    thresholds: Mapping[str, int],
    judged: Sequence[Summary],
    drawn: Sequence[Summary],
) -> dict[str, Any]:
    """The metrics of a selection's record."""
    found: dict[str, Any] = {
        "examples": {reason: [uid for _, uid, *_ in rows] for reason, rows in merged_examples(drawn).items()},
        "drops": dict(sum((Counter(summary["drops"]) for summary in judged), Counter())),
        "shapes": merged_shapes(drawn),
        "balanced": spec.balance is not None,
    }
    if spec.balance is None:
        return found
    matched = counts["kept"] + counts["dropped_drawn_out"]
    return found | _entry_metrics(spec.balance.t, entries) | {
        "thresholds": dict(thresholds),
        "matched_fraction": matched / max(1, matched + counts["dropped_unmatched"]),
        "expected_kept": sum(summary["expected"] for summary in drawn),
    }  # fmt: skip


def merged_examples(drawn: Sequence[Summary]) -> dict[str, list[list[Any]]]:
    """The first few of all shards' examples; "kept" stands for no reason."""
    found: dict[str, list[list[Any]]] = {}
    for summary in drawn:
        for reason, rows in summary["examples"].items():
            found.setdefault(reason or "kept", []).extend(rows)
    return {reason: sorted(rows)[:_EXAMPLES] for reason, rows in sorted(found.items())}


def merged_shapes(drawn: Sequence[Summary]) -> dict[str, Any]:
    """All shards' histograms (with their edges) and languages, added up."""
    found: dict[str, Any] = {}
    for name, edges in (("caption_words", WORD_EDGES), ("shorter_side", SIDE_EDGES)):
        parts = [summary["shapes"][name] for summary in drawn if name in summary["shapes"]]
        if parts:
            before, after = np.sum(parts, axis=0).tolist()
            found[name] = {"edges": list(edges), "before": before, "after": after}
    languages: dict[str, list[int]] = {}
    for summary in drawn:
        for name, (before, after) in summary["shapes"].get("languages", {}).items():
            known = languages.get(name, [0, 0])
            languages[name] = [known[0] + before, known[1] + after]
    return found | ({"languages": dict(sorted(languages.items()))} if languages else {})


def _entry_metrics(t: int, entries: pa.Table) -> dict[str, Any]:
    before_E, after_E = entries["count"].to_numpy(), entries["kept"].to_numpy()
    is_head = entries["p"].to_numpy() < 1
    return {
        "t": t, "entries": len(entries), "entries_matched": int((before_E > 0).sum()),
        "entries_kept": int((after_E > 0).sum()), "head_entries": int(is_head.sum()),
        "tail_entries": int((~is_head & (before_E > 0)).sum()),
        "head_match_fraction": float(before_E[is_head].sum() / max(1, before_E.sum())),
        "top_entries": _top_entries(entries, before_E),
        "entry_counts": _histogram(before_E, after_E),
    }  # fmt: skip


def _top_entries(entries: pa.Table, before_E: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """The largest entries before balancing, with what is left of them."""
    top = entries.take(pa.array(np.argsort(-before_E, kind="stable")[:_HEAD_ROWS]))
    renamed = top.select(["entry", "count", "kept", "p"]).rename_columns(["entry", "before", "after", "p"])
    found: list[dict[str, Any]] = renamed.to_pylist()
    return found


def _histogram(before_E: npt.NDArray[np.int64], after_E: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """Entries by how many pairs they are in: bins [0, 1), [1, 2), [2, 4), [4, 8) ... before and after."""
    top = int(before_E.max(initial=1))
    edges = [0, *(2**power for power in range(top.bit_length() + 1))]
    return {
        "edges": edges,
        "before": np.histogram(before_E, edges)[0].tolist(),
        "after": np.histogram(after_E, edges)[0].tolist(),
    }
