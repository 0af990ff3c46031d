"""How fast each stage of curation is, how much memory it takes, and how both grow with the pool.

    python -m benchmarks.curation [--pairs 100000 1000000] [--workers 0] [--seed 0] [--folder FOLDER]

Every stage of every pool runs in a fresh process: time is that of the stage's call (compiling kernels and starting Ray
included) and of the CPU, memory the peak resident set of that process (and, with workers, of the largest of Ray's).
Growth is the larger pool's time beyond the smaller's, over what growth in proportion would add: 1 is linear, 0 a cost
that does not depend on the pool. It is that of the CPU's time where all work is done in the stage's own process.
"""

import argparse
import multiprocessing
import platform
import tempfile
import time
from itertools import pairwise
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NamedTuple

from benchmarks.pools import write_pool
from data import storage
from data.curation.specs import (
    AspectRatio,
    Balance,
    Bigrams,
    CaptionCharacters,
    CaptionLength,
    CaptionRepetition,
    CurateSpec,
    Decodable,
    DedupSpec,
    ImageSize,
    InspectSpec,
    Language,
    MatchSpec,
    MetaFlag,
    MetaNumber,
    PoolNgrams,
    WordFrequencies,
)
from data.place import Place
from data.specs import HoldoutFraction, IngestSpec, ShardPool, SplitSpec
from data.stage import StageSpec, run_stage

_PAIRS_PER_SHARD = 10_000  # img2dataset's default
_POLL_SECONDS = 0.1
_WORKERS = ("ray::IDLE", "ray::Map")  # "ray::" alone are Ray's agents too, which take the node with them


class Cost(NamedTuple):
    """What one stage took."""

    seconds: float
    cpu_seconds: float  # of the stage's own process
    peak_bytes: int
    worker_bytes: int


def chain(pool: str, pairs: int) -> dict[str, StageSpec]:
    """Stages by name, in order; a stage is named as the references to it."""
    return {
        "pairs": IngestSpec(pool=ShardPool(url=pool)),
        "split": SplitSpec(pairs="pairs", holdouts={"test": HoldoutFraction(fraction=0.02)}),
        "inspection": InspectSpec(pairs="pairs"),
        "matches": MatchSpec(
            pairs="pairs", split="split",
            metadata=(WordFrequencies(top=50_000), Bigrams(), PoolNgrams(min_count=max(5, pairs // 20_000))),
        ),
        "duplicates": DedupSpec(pairs="pairs", split="split", inspection="inspection"),
        "selection": CurateSpec(
            pairs="pairs", split="split", inspection="inspection", duplicates="duplicates",
            filters=(
                CaptionLength(), CaptionCharacters(), CaptionRepetition(), Decodable(), ImageSize(min_side=16),
                AspectRatio(), Language(), MetaFlag(field="NSFW"), MetaNumber(field="similarity", at_least=0.2),
            ),
            balance=Balance(matches="matches", t=max(20, pairs // 2_000)),
        ),
    }  # fmt: skip


def uris_of(spec: StageSpec, made: dict[str, str]) -> dict[str, str]:
    """Role -> URI of a stage's parents."""
    return {role: made[stage] for role, (stage, _) in spec.roles().items()}


def cost_of(name: str, spec: StageSpec, uris: dict[str, str], place: Place) -> tuple[str, Cost]:
    """Run a stage in a fresh process; its artifact's URI, and what it took."""
    context = multiprocessing.get_context("spawn")
    answers: Queue[tuple[str, float, float, int]] = context.Queue()
    process = context.Process(target=_run, args=(answers, name, spec, uris, place))
    process.start()
    worker_bytes, workers = 0, place.data_workers > 0
    while process.is_alive() and answers.empty():
        if workers and process.pid is not None:
            worker_bytes = max([worker_bytes, *map(_peak_bytes, ray_workers(process.pid))])
        time.sleep(_POLL_SECONDS)
    if answers.empty():
        raise SystemExit(f"stage {name} failed; its traceback is above")
    uri, seconds, cpu_seconds, peak_bytes = answers.get()
    process.join()
    return uri, Cost(seconds, cpu_seconds, peak_bytes, worker_bytes)


def _run(
    answers: "Queue[tuple[str, float, float, int]]", name: str, spec: StageSpec, uris: dict[str, str], place: Place
) -> None:
    start = time.perf_counter()
    artifact = run_stage(name, spec, uris, place)
    answers.put((artifact.uri, time.perf_counter() - start, time.process_time(), _peak_bytes("self")))


def _peak_bytes(process: int | str) -> int:
    """Peak resident set of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def ray_workers(process: int, titles: tuple[str, ...] = _WORKERS) -> list[int]:
    """Ray's workers below a process."""
    return [pid for pid in descendants(process) if _command(pid).startswith(titles)]


def descendants(process: int) -> list[int]:
    """All processes below a process."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # that thread has ended since
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def measure(root: str, pairs: int, workers: int, seed: int) -> dict[str, Cost]:
    """Make a pool, run the chain, print a line a stage."""
    pool, tars = storage.join(root, f"pool-{pairs}"), max(2, pairs // _PAIRS_PER_SHARD)
    place, start = Place(root=storage.join(root, f"runs-{pairs}"), data_workers=workers), time.perf_counter()
    write_pool(pool, pairs, tars, seed)
    print(f"{pairs:,} pairs in {tars} tars, written in {time.perf_counter() - start:.0f} s")
    made, costs = dict[str, str](), dict[str, Cost]()
    for name, spec in chain(pool, pairs).items():
        made[name], costs[name] = cost_of(name, spec, uris_of(spec, made), place)
        cost = costs[name]
        print(f"  {spec.kind:<8} {_told(cost, pairs)}", flush=True)
    total = sum(cost.seconds for cost in costs.values())
    slowest = max(costs, key=lambda name: costs[name].seconds)
    print(f"  in all {total:.1f} s, {pairs / total:,.0f} pairs/s; slowest: {slowest}, "
          f"{costs[slowest].seconds / total:.0%} of it")  # fmt: skip
    return costs


def _told(cost: Cost, pairs: int) -> str:
    workers = f", workers' {cost.worker_bytes / 1e6:,.0f} MB" if cost.worker_bytes else ""
    rate = f"{pairs / cost.seconds:>10,.0f} pairs/s"
    return f"{cost.seconds:>7.1f} s, CPU {cost.cpu_seconds:>7.1f} s {rate} {cost.peak_bytes / 1e6:>8,.0f} MB{workers}"


def print_growth(small: int, large: int, before: dict[str, Cost], after: dict[str, Cost]) -> None:
    """Print how time and memory grow from one pool to the next."""
    print(f"from {small:,} to {large:,} pairs (x {large / small:g}); growth 1 is in proportion")
    for name in before:
        old, new = before[name], after[name]
        before_s, after_s = (cost.seconds if cost.worker_bytes else cost.cpu_seconds for cost in (old, new))
        growth = (after_s - before_s) / (before_s * (large / small - 1))
        per_pair = (new.peak_bytes - old.peak_bytes) / (large - small)
        workers = f", workers' {new.worker_bytes / old.worker_bytes:.2f} x" if old.worker_bytes else ""
        print(
            f"  {name:<11} time {after_s / before_s:6.2f} x, growth {growth:5.2f}; "
            f"memory {new.peak_bytes / old.peak_bytes:5.2f} x, {per_pair:6,.0f} bytes a pair more{workers}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=0, help="Ray's; 0: each stage in one process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where pools and artifacts lie meanwhile: about 3 kB a pair")
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {multiprocessing.cpu_count()} CPUs, {options.workers} workers")
    with tempfile.TemporaryDirectory(prefix="clipworks-curation-", dir=options.folder) as root:
        costs = {pairs: measure(root, pairs, options.workers, options.seed) for pairs in options.pairs}
    for small, large in pairwise(options.pairs):
        print_growth(small, large, costs[small], costs[large])


if __name__ == "__main__":
    main()
