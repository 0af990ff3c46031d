"""Does curation that is killed again and again end with the bytes of one that is left alone?

    python -m benchmarks.curation_kills [--kills 20] [--workers 2] [--seed 0] [--pairs 1200]

The whole chain (ingest, split, inspect, match, dedup, curate) runs in a child process, with `--workers` on a Ray of
this machine that outlives it, as a cluster does. SIGKILL hits the child, or one of Ray's workers, at a random moment; a
killed chain is started again until it is done. Chains repeat until so many kills have hit; every file of every artifact
must be that of an undisturbed chain. Exit code 1 if one is not.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from benchmarks.curation import chain, ray_workers, uris_of
from benchmarks.pools import write_pool
from data import storage
from data.artifacts import RECORD_NAME
from data.place import Place
from data.stage import run_stage

_SHARDS = 12
_POLL_SECONDS = 0.005
_KILLS_PER_CHAIN = 4  # about
_AFTER_PROGRESS_FRACTION = 0.8
_AT_WORK = ("ray::Map",)
_WORKER_FRACTION = 0.5  # of the kills, where there are workers


class Strike(NamedTuple):
    """A kill to come: whom, and when, in seconds after the start, the kill before, or after the next file is whole."""

    is_worker: bool
    worker: int
    is_after_progress: bool
    delay_seconds: float


class Hit(NamedTuple):
    """A kill that happened: whom, in which stage, and whether it left a file half written."""

    victim: str
    stage: str
    is_writing: bool


def strikes(seed: int, seconds: float, workers: int) -> Iterator[Strike]:
    """Random kills of a chain that lasts about so long."""
    draw = random.Random(seed)
    while True:
        is_worker = workers > 0 and draw.random() < _WORKER_FRACTION
        # a new worker imports for seconds before its first shard: kills that never let one finish would go on for ever
        is_after_progress = draw.random() < _AFTER_PROGRESS_FRACTION
        yield Strike(is_worker, draw.randrange(1 << 16), is_after_progress, draw.uniform(0, seconds / _KILLS_PER_CHAIN))


def run_chain(pool: str, root: str, pairs: int, workers: int) -> None:
    """Run all stages, each reused where it is done."""
    made = dict[str, str]()
    for name, spec in chain(pool, pairs).items():
        made[name] = run_stage(name, spec, uris_of(spec, made), Place(root=root, data_workers=workers)).uri


def run_under_fire(start: Callable[[], BaseProcess], root: str, coming: Iterator[Strike], most: int) -> list[Hit]:
    """Start the chain until it is done, struck at most so many times; what hit.

    Raises:
        RuntimeError: a chain failed that was not killed.
    """
    hits: list[Hit] = []
    while True:
        process, is_killed = start(), False
        while len(hits) < most and not is_killed:
            hit = _hit(process, root, next(coming))
            if hit is None:
                break
            hits.append(hit)
            is_killed = hit.victim == "driver"
        process.join()
        if process.exitcode == 0:
            return hits
        if not is_killed:
            raise RuntimeError(f"a chain that was not killed ended with {process.exitcode}; its traceback is above")


def _hit(process: BaseProcess, root: str, strike: Strike) -> Hit | None:
    """Kill when the moment has come; None where the chain was over before."""
    if strike.is_after_progress:
        before = _finished(root)
        _wait(process, lambda: _finished(root) != before)
    moment = time.monotonic() + strike.delay_seconds
    _wait(process, lambda: time.monotonic() >= moment)
    if strike.is_worker:
        _wait(process, lambda: bool(ray_workers(os.getpid(), _AT_WORK)))
    workers = ray_workers(os.getpid(), _AT_WORK) if strike.is_worker else []
    target = workers[strike.worker % len(workers)] if workers else process.pid
    if target is None or not process.is_alive():
        return None
    stage = _stage_at_work(root)
    with suppress(ProcessLookupError):  # a worker that has ended by itself in this instant
        os.kill(target, signal.SIGKILL)
    return Hit("worker" if workers else "driver", stage, _has_temporary(root))


def _finished(root: str) -> set[str]:
    """Files that are whole."""
    names = (name for name, _ in storage.list_files(root, recursive=True) if not name.startswith(".events/"))
    return {name for name in names if not storage.is_temporary(name)}


def _has_temporary(root: str) -> bool:
    names = (name for name, _ in storage.list_files(storage.join(root, ".partial"), recursive=True))
    return any(storage.is_temporary(name) for name in names)


def _wait(process: BaseProcess, until: Callable[[], bool]) -> bool:
    """Wait until something is so; False where the chain was over before."""
    while process.is_alive():
        if until():
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _stage_at_work(root: str) -> str:
    """Name of the stage whose state or files are there and not yet done; "" before the first and after the last."""
    folders = [name for name in storage.list_folders(storage.join(root, ".partial")) if not name.endswith(".state")]
    return folders[0].rpartition("-")[0] if folders else ""


def contents(root: str) -> dict[str, bytes]:
    """Every file of every artifact; a record without its packages."""
    found = {}
    for name, _ in storage.list_files(root, recursive=True):
        if not name.startswith((".events/", ".partial/")):
            content = storage.read_bytes(storage.join(root, name))
            found[name] = _without_packages(content) if storage.name_of(name) == RECORD_NAME else content
    return found


def _without_packages(record: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(record).items() if name != "packages"}).encode()


def measure(folder: str, pairs: int, workers: int, kills: int, seed: int) -> bool:
    """Run one chain in peace and others under fire; print what hit; whether all agree."""
    pool, context = storage.join(folder, "pool"), multiprocessing.get_context("spawn")
    write_pool(pool, pairs, _SHARDS, seed)

    def starter(root: str) -> Callable[[], BaseProcess]:
        def start() -> BaseProcess:
            process = context.Process(target=run_chain, args=(pool, root, pairs, workers))
            process.start()
            return process

        return start

    peaceful = storage.join(folder, "undisturbed")
    begun = time.monotonic()
    run_under_fire(starter(peaceful), peaceful, iter(()), 0)
    seconds, expected = time.monotonic() - begun, contents(peaceful)
    print(f"{pairs} pairs, {_SHARDS} tars, {workers} workers, undisturbed: {seconds:.1f} s, {len(expected)} files")
    coming, hits, chains, is_ours = strikes(seed, seconds, workers), list[Hit](), 0, True
    while len(hits) < kills:
        chains += 1
        root = storage.join(folder, f"chain-{chains}")
        found = run_under_fire(starter(root), root, coming, kills - len(hits))
        made = contents(root)
        different = sorted(name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name))
        hits, is_ours = hits + found, is_ours and not different
        told = ", ".join(f"{hit.victim} in {hit.stage or 'between'}{' (writing)' * hit.is_writing}" for hit in found)
        print(f"  chain {chains}: {f'DIFFERENT: {different[:5]}' if different else 'equal'}; killed: {told or 'none'}",
              flush=True)  # fmt: skip
        storage.remove(root)
    drivers, writing = sum(hit.victim == "driver" for hit in hits), sum(hit.is_writing for hit in hits)
    print(f"  {len(hits)} kills in {chains} chains, {drivers} of the driver, {len(hits) - drivers} of workers, "
          f"{writing} while a file was written: {'all' if is_ours else 'NOT all'} files equal")  # fmt: skip
    return is_ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="Ray's; 0: each stage in one process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=1200)
    options = parser.parse_args()
    if options.workers:
        import ray

        ray.init(num_cpus=options.workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory(prefix="clipworks-kills-") as folder:
        is_ours = measure(folder, options.pairs, options.workers, options.kills, options.seed)
    sys.exit(0 if is_ours else 1)


if __name__ == "__main__":
    main()
