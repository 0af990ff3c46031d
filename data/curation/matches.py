"""The match stage: which metadata entries each caption holds, one file a shard.

What balancing makes of it is another stage, so that its threshold changes without matching again.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import open_artifact
from data.curation.captions import first_captions, shard_set, shard_uids
from data.curation.languages import unspaced
from data.curation.match import Matcher, Mode
from data.curation.metadata import build_entries
from data.curation.specs import MatchSpec
from data.curation.tables import MATCHES_SCHEMA, METADATA_SCHEMA, shard_table
from data.selection import in_splits
from data.shards import ShardSet, read_parquet, write_parquet
from data.shardwise import Summary, each_shard
from data.stage import Outcome, Work


def run(spec: MatchSpec, work: Work) -> Outcome:
    """Write `entries.parquet` (METADATA_SCHEMA) and `matches/<shard>.parquet` (MATCHES_SCHEMA)."""
    pairs = ShardSet(work.parents["pairs"])
    uris = {role: parent.uri for role, parent in work.parents.items()}
    read = partial(_chunks, spec, uris, len(pairs.shards))
    entries = build_entries(spec.metadata, read, spec.matching, by_language="inspection" in uris)
    work.events.message(f"{len(entries)} metadata entries")
    columns = zip(*entries, strict=True)
    table = pa.table([range(len(entries)), *map(list, columns)], schema=METADATA_SCHEMA)
    write_parquet(work.out.at("entries.parquet"), table)
    names = [shard.name for shard in pairs.shards]
    done = each_shard(work, "match", names, partial(match_shard, spec, uris, work.out.uri))
    totals = {name: sum(summary[name] for summary in done) for name in ("pairs", "no_caption", "matched", "matches")}
    metrics = {"matching": spec.matching, "entries_per_pair": totals["matches"] / max(1, totals["pairs"])}
    return Outcome({**totals, "entries": len(entries)}, metrics)


def _chunks(spec: MatchSpec, uris: dict[str, str], num_shards: int) -> Iterator[tuple[pa.Array, pa.Array | None]]:
    return (_chunk(spec, uris, number) for number in range(num_shards))


def _chunk(spec: MatchSpec, uris: dict[str, str], number: int) -> tuple[pa.Array, pa.Array | None]:
    """Captions of one shard's pairs in the splits, and their languages where those count."""
    _, captions, languages = _captions(spec, uris, number)
    return captions.drop_null() if languages is None else captions, languages


def _captions(spec: MatchSpec, uris: dict[str, str], number: int) -> tuple[pa.Array, pa.Array, pa.Array | None]:
    """(uids, captions, languages) of one shard's pairs in the splits."""
    pairs = shard_set(uris["pairs"])
    shard = pairs.shards[number].name
    inside = in_splits(open_artifact(uris["split"]), shard, spec.splits)
    uids = shard_uids(pairs, number).filter(inside.combine_chunks())
    captions = first_captions(pairs, number, spec.caption_source, uids)
    if "inspection" not in uris:
        return uids, captions, None
    languages = shard_table(open_artifact(uris["inspection"]), "inspection", shard, ["language"])["language"]
    return uids, captions, languages.filter(inside).combine_chunks()


def match_shard(spec: MatchSpec, uris: dict[str, str], out_uri: str, number: int) -> Summary:
    """Match one shard's captions and write the ids."""
    uids, captions, languages = _captions(spec, uris, number)
    matchers = _matchers(out_uri, spec.matching, languages is not None)
    if languages is None:
        indptr, ids = matchers[None].match(captions)
    else:
        indptr, ids = _by_language(matchers, captions, languages)
    entries = pa.ListArray.from_arrays(indptr.astype(np.int32), pa.array(ids, pa.int32()), mask=captions.is_null())
    name = shard_set(uris["pairs"]).shards[number].name
    write_parquet(f"{out_uri}/matches/{name}.parquet", pa.table([uids, entries], schema=MATCHES_SCHEMA))
    matched = int((np.diff(indptr) > 0).sum())
    return {"pairs": len(uids), "no_caption": captions.null_count, "matched": matched, "matches": len(ids)}


def _by_language(matchers: dict[str | None, Matcher], captions: pa.Array, languages: pa.Array) -> Any:
    """CSR of all captions, each matched with its own language's entries; a language without any matches nothing."""
    counts, parts = np.zeros(len(captions), np.int64), []
    for language in pc.unique(languages.drop_null()).to_pylist():
        rows = np.flatnonzero(pc.equal(languages, language).fill_null(False).to_numpy(zero_copy_only=False))
        if language in matchers:
            indptr, ids = matchers[language].match(captions.take(pa.array(rows)))
            counts[rows] = np.diff(indptr)
            parts.append((rows, indptr, ids))
    indptr_all = np.concatenate(([0], np.cumsum(counts)))
    ids_all = np.zeros(indptr_all[-1], np.int32)
    for rows, indptr, ids in parts:
        inside = np.arange(len(ids)) - np.repeat(indptr[:-1], np.diff(indptr))
        ids_all[np.repeat(indptr_all[rows], np.diff(indptr)) + inside] = ids
    return indptr_all, ids_all


@cache
def _matchers(out_uri: str, mode: Mode, by_language: bool) -> dict[str | None, Matcher]:
    """A matcher of all entries (None), or one a language whose ids are those of the whole list."""
    table = read_parquet(f"{out_uri}/entries.parquet")
    texts, codes = table["entry"].to_pylist(), table["language"].to_pylist()
    if not by_language:
        return {None: Matcher(texts, mode)}
    found: dict[str | None, Matcher] = {}
    for language in dict.fromkeys(codes):
        chosen = [number for number, code in enumerate(codes) if code == language]
        found[language] = _Numbered(chosen, [texts[number] for number in chosen], mode, language)
    return found


class _Numbered(Matcher):
    """A matcher of some entries, which answers with their numbers in a longer list."""

    def __init__(self, numbers: Sequence[int], texts: Sequence[str], mode: Mode, language: str) -> None:
        super().__init__(texts, mode, [unspaced(language, text) for text in texts])
        self.numbers = np.array(numbers, np.int32)

    def match(self, captions: Any) -> Any:
        """CSR with ids of the longer list."""
        indptr, ids = super().match(captions)
        return indptr, self.numbers[ids]
