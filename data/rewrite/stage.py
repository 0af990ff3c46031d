"""The rewrite stage: distinct captions in, a caption layer out.

Asking is apart from judging. The LLM's answers go into a journal as they come; the artifact is a pure function of the
journal, so it does not matter in which order they came or how often the stage was killed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data import storage
from data.errors import ShardError
from data.rewrite.backends import Backend, open_backend
from data.rewrite.checks import check
from data.rewrite.journal import Journal
from data.rewrite.prompts import MAX_SOURCE_CHARS, Request, prompt_id, read_completion, request_of
from data.selection import kept_uids
from data.shards import CAPTION_SCHEMA, ShardSet, write_parquet
from data.spec import canonical_json
from data.specs import RewriteSpec
from data.stage import Outcome, Work

ATTEMPT_SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("attempt", pa.int32()),
        ("rewrite", pa.string()),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),  # of a rewrite that is not used; "" for one that is
        ("source", pa.string()),  # the caption source an accepted rewrite became
        ("provenance", pa.string()),
    ]
)
_EXAMPLES = 12


class Attempt(NamedTuple):
    """One rewrite of one caption, judged: a row of `rewrites.parquet`."""

    caption: str
    attempt: int
    rewrite: str
    accepted: bool
    reason: str
    source: str
    provenance: str


def run(spec: RewriteSpec, work: Work) -> Outcome:
    """Write a caption layer for the pairs a selection keeps.

    Raises:
        ShardError: no pair has a caption of the source.
        BackendError: the LLM is not there, or gave up after its retries.
    """
    pairs = ShardSet(work.parents["pairs"])
    caption_of = _captions(pairs, spec.caption_source, set(kept_uids(work.parents["selection"]).to_pylist()))
    if not caption_of:
        raise ShardError(
            f"stage {work.name}: no kept pair has a caption of source {spec.caption_source!r}; name another"
        )
    distinct = choose_captions(set(caption_of.values()), spec.max_captions)
    with Journal(work.out.state_uri) as journal:
        _ask(spec, work, distinct, journal)
        attempts = [attempt for caption in distinct for attempt in judge(spec, caption, journal.answers)]
    write_parquet(
        work.out.at("rewrites.parquet"), pa.Table.from_pylist([a._asdict() for a in attempts], ATTEMPT_SCHEMA)
    )
    written = _write_layer(work.out.uri, pairs, caption_of, attempts)
    return Outcome(*_summary(distinct, attempts, written))


def choose_captions(captions: set[str], most: int | None) -> list[str]:
    """Distinct captions, sorted; at most `most` of them, chosen by hash so that a larger number only adds."""
    by_hash = sorted(captions, key=lambda caption: hashlib.blake2b(caption.encode("utf-8", "surrogatepass")).digest())
    return sorted(by_hash[:most])


def judge(spec: RewriteSpec, caption: str, answers: dict[str, str]) -> Iterator[Attempt]:
    """All attempts at one caption. Accepted ones become `<writes>`, `<writes>2` ... in the order of the attempts."""
    accepted: list[str] = []
    for number in range(spec.rewrites_per_caption):
        request = request_of(caption, number, spec)
        rewrite = read_completion(answers.get(request.key, ""))
        reason = check(caption, rewrite, spec.checks) if _fits(caption) else "source_too_long"
        if not reason and rewrite in accepted:
            reason = "duplicate"
        source = "" if reason else f"{spec.writes}{len(accepted) + 1 if accepted else ''}"
        accepted += [] if reason else [rewrite]
        yield Attempt(caption, number, rewrite, not reason, reason, source, _provenance(spec, request))


def _fits(caption: str) -> bool:
    return len(caption) <= MAX_SOURCE_CHARS


def _provenance(spec: RewriteSpec, request: Request) -> str:
    sampling = {"temperature": spec.temperature, "top_p": spec.top_p, "seed": request.seed}
    prompt = {"prompt": prompt_id(spec), "shots": spec.shots, "menu": request.menu}
    return canonical_json({"model": spec.llm.model, **prompt, **sampling, "checks": spec.checks.model_dump()})


def _captions(pairs: ShardSet, source: str, uids: set[str]) -> dict[str, str]:
    """uid -> its first caption of the source; blank captions are none."""
    table, found = pairs.captions(source), dict[str, str]()
    for uid, caption in zip(table["uid"].to_pylist(), table["caption"].to_pylist(), strict=True):
        if uid in uids and caption and caption.strip():
            found.setdefault(uid, caption)
    return found


def _ask(spec: RewriteSpec, work: Work, captions: Sequence[str], journal: Journal) -> None:
    """Ask for every rewrite the journal does not have; requests that share examples go together."""
    requests = [request_of(c, n, spec) for c in captions if _fits(c) for n in range(spec.rewrites_per_caption)]
    missing = sorted((r for r in requests if r.key not in journal.answers), key=lambda r: (r.menu, r.key))
    done = len(requests) - len(missing)
    if done:
        work.events.message(f"{done} of {len(requests)} rewrites were there from an earlier try")
    if not missing:
        return
    work.events.progress(done, len(requests), "captions", "rewriting")
    with open_backend(spec, work.place) as backend:
        for count, (request, text) in enumerate(complete_all(backend, missing), start=done + 1):
            journal.add(request.key, text)
            work.events.progress(count, len(requests), "captions", "rewriting")


def complete_all(backend: Backend, requests: Sequence[Request]) -> Iterator[tuple[Request, str]]:
    """Answers as they come, never more than `backend.concurrency` requests in flight; the first error ends it."""
    waiting = iter(requests)
    with ThreadPoolExecutor(backend.concurrency, thread_name_prefix="rewrite") as threads:
        flying: dict[Future[str], Request] = {}
        while True:
            for request in islice(waiting, backend.concurrency - len(flying)):
                flying[threads.submit(backend.complete, request)] = request
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                yield flying.pop(future), future.result()


def _write_layer(uri: str, pairs: ShardSet, caption_of: dict[str, str], attempts: Sequence[Attempt]) -> int:
    """One caption file per shard: every accepted rewrite for all pairs that share its caption. Returns the rows."""
    accepted: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.accepted:
            accepted.setdefault(attempt.caption, []).append(attempt)
    index, written = pairs.index(), 0
    for number, shard in enumerate(pairs.shards):
        uids = sorted(index.filter(pc.equal(index["shard"], number))["uid"].to_pylist())
        rows = [
            {"uid": uid, "source": found.source, "caption": found.rewrite, "provenance": found.provenance}
            for uid in uids
            for found in accepted.get(caption_of.get(uid, ""), ())
        ]
        write_parquet(
            storage.join(uri, "captions", f"{shard.name}.parquet"), pa.Table.from_pylist(rows, CAPTION_SCHEMA)
        )
        written += len(rows)
    return written


def _summary(distinct: list[str], attempts: list[Attempt], written: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Counts and metrics of the record."""
    reasons = [attempt.reason for attempt in attempts]
    accepted = [attempt for attempt in attempts if attempt.accepted]
    rejected = {f"rejected_{reason}": reasons.count(reason) for reason in sorted(set(reasons) - {""})}
    counts = {"distinct_captions": len(distinct), "rewrites": len(attempts), "accepted": len(accepted), **rejected}
    metrics = {
        "acceptance_fraction": len(accepted) / len(attempts),
        "rewritten_captions": len({attempt.caption for attempt in accepted}),
        "examples_accepted": _some(accepted),
        "examples_rejected": _some([attempt for attempt in attempts if not attempt.accepted]),
    }
    return {**counts, "captions_written": written}, metrics


def _some(attempts: list[Attempt]) -> list[dict[str, str]]:
    """A few attempts spread over all of them, for the report."""
    step = max(1, len(attempts) // _EXAMPLES)
    return [{"caption": a.caption, "rewrite": a.rewrite, "reason": a.reason} for a in attempts[::step][:_EXAMPLES]]
