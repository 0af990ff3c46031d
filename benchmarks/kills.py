"""Does a stage that is killed again and again end with the bits of one that is left alone?

    python -m benchmarks.kills [--kills 20] [--seed 0] [--workers 1 2]

Ranks are processes of this machine (gloo, no Ray) that train a small CLIP with frequent checkpoints and a validation.
SIGKILL hits a rank or a loader worker, at a random moment or while a checkpoint is being written. The other ranks end
by themselves, or are ended after some seconds where they wait for a rank that never joins, as Ray and torchrun do;
then all start again from what is on disk, until the stage is done. Stages repeat until so many kills have hit; every
one must end with the undisturbed stage's weights and log. Exit code 1 if one does not.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessContext

from benchmarks.pairs import open_shard_set, write_pairs
from data import storage
from data.artifacts import Output, Record
from data.events import Events, read_events
from data.place import Place
from data.selection import SELECTION_SCHEMA, write_selection, write_split
from training.fit import run_rank
from training.phases import Job
from training.specs import AdamW, InfoNCE, Phase, Term, TrainSpec, Validation
from training.towers import create_towers, save_towers

_BATCH, _STEPS = 16, 40
_TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
_POLL_SECONDS = 0.002
_SURVIVOR_SECONDS = 5


class Strike(NamedTuple):
    """A kill to come: whom, and when in seconds after the start, or after a checkpoint has begun."""

    rank: int
    is_loader: bool
    at_checkpoint: bool
    delay_seconds: float


class Hit(NamedTuple):
    """A kill that happened; `step` is the last one that was logged."""

    victim: str
    step: int
    is_writing: bool


def strikes(seed: int, ranks: int, seconds: float) -> Iterator[Strike]:
    """Random kills of a job whose attempts last about so long."""
    draw = random.Random(seed)
    while True:
        at_checkpoint = draw.random() < 0.4
        delay = draw.uniform(0, 0.03) if at_checkpoint else draw.uniform(0, seconds)
        yield Strike(draw.randrange(ranks), draw.random() < 0.25, at_checkpoint, delay)


def run_with(job: Job, ranks: int, coming: Iterator[Strike], most: int) -> list[Hit]:
    """Run the job to its end, struck at most so many times; what hit.

    Raises:
        RuntimeError: an attempt that nothing hit failed.
    """
    hits: list[Hit] = []
    while True:
        strike = next(coming) if len(hits) < most else None
        attempt = _start(job, ranks)
        hit = None if strike is None else _hit(job, attempt, strike)
        is_done = _end(attempt)
        if is_done:
            return hits
        if hit is None:
            raise RuntimeError(f"an undisturbed attempt failed:\n{Path(_log_of(job)).read_text()[-4000:]}")
        hits.append(hit)


def result(job: Job) -> tuple[str, bytes]:
    """SHA-256 of a finished job's weights, and its log."""
    weights = storage.join(job.out_uri, "open_clip_model.safetensors")
    return storage.sha256(weights), storage.read_bytes(storage.join(job.out_uri, "metrics.jsonl"))


def _start(job: Job, ranks: int) -> ProcessContext:
    store = tempfile.mktemp(prefix="clipworks-ranks-")  # gloo makes the file
    context = mp.start_processes(_rank, (ranks, job, store), ranks, join=False, start_method="fork")
    assert context is not None
    return context


def _rank(rank: int, ranks: int, job: Job, store: str) -> None:
    os.dup2(os.open(_log_of(job), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        run_rank(job, rank, ranks, torch.device("cpu"))
    except Exception:  # noqa: BLE001 - a rank that lost another ends with this, as a worker of Ray does
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _log_of(job: Job) -> str:
    return job.out_uri + ".stderr"


def _hit(job: Job, attempt: ProcessContext, strike: Strike) -> Hit | None:
    """Kill when the moment has come; None where the attempt was over before."""
    is_clean = _wait(attempt, lambda: not is_writing(job))  # what an earlier kill left half written is gone
    if strike.at_checkpoint:
        _wait(attempt, lambda: is_writing(job))
    time.sleep(strike.delay_seconds)
    rank = attempt.pids()[strike.rank]
    assert rank is not None
    loaders = _children(rank) if strike.is_loader else []
    if _is_over(attempt):
        return None
    victim = f"loader of rank {strike.rank}" if loaders else f"rank {strike.rank}"
    hit = Hit(victim, last_step(job), is_clean and is_writing(job))
    os.kill(loaders[0] if loaders else rank, signal.SIGKILL)
    return hit


def _wait(attempt: ProcessContext, until: Callable[[], bool]) -> bool:
    """Wait until something is so; False where the attempt was over before."""
    while not _is_over(attempt):
        if until():
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _is_over(attempt: ProcessContext) -> bool:
    return not all(process.is_alive() for process in attempt.processes)


def _children(process: int) -> list[int]:
    """Processes that a process has forked, from any of its threads."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def _end(attempt: ProcessContext) -> bool:
    """Wait until all ranks have ended, end those that outlive another; whether all ended by themselves and well."""
    while not _is_over(attempt):
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _SURVIVOR_SECONDS
    for process in attempt.processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()
    return all(process.exitcode == 0 for process in attempt.processes)


def is_writing(job: Job) -> bool:
    """Whether a checkpoint is on disk that the position does not count yet."""
    there = {name for name in storage.list_folders(job.state_uri) if ".step-" in name}
    position = storage.join(job.state_uri, "position.json")
    where = storage.read_json(position) if storage.exists(position) else {}
    return bool(there - {f"{where.get('phase')}.step-{step}" for step in where.get("steps", [])})


def last_step(job: Job) -> int:
    """The last step that the job's events tell of, over all attempts."""
    assert job.events.uri is not None
    logged = [event["step"] for event in read_events(job.events.uri) if event["event"] == "metrics"]
    return int(max(logged, default=0)) // TrainSpec.model_validate(job.spec).phases["a"].global_batch_size


def make_parents(root: str) -> dict[str, str]:
    """Initial towers, 96 pairs, a split that holds 16 of them out, and a selection of the others."""

    def commit(name: str, kind: str, write: Callable[[str], None]) -> str:
        fingerprint = name.encode().hex().ljust(64, "0")
        out = Output(root, name, fingerprint)
        write(out.uri)
        return out.commit(Record(kind=kind, stage=name, revision=1, fingerprint=fingerprint, config={})).uri

    pairs = commit("pairs", "shard_set", lambda uri: write_pairs(uri, 96, side=48))
    uids = open_shard_set(pairs).index()["uid"].to_pylist()
    split = pa.table({"uid": uids, "split": ["val" if number < 16 else "train" for number in range(len(uids))]})
    rest = {"reason": "", "p_keep": 1.0, "draw": 0.0}
    rows = [{"uid": uid, "kept": number >= 16, **rest} for number, uid in enumerate(uids)]
    selection = pa.Table.from_pylist(rows, SELECTION_SCHEMA)
    return {
        "init": commit("init", "checkpoint", lambda uri: save_towers(create_towers(_TOWERS), uri)),
        "pairs": pairs,
        "selection": commit("selection", "selection", lambda uri: write_selection(uri, selection)),
        "validation.split": commit("split", "split", lambda uri: write_split(uri, split)),
    }


def make_job(root: str, parents: dict[str, str], name: str) -> Job:
    """A stage that keeps a checkpoint every third step and the best of its validations."""
    phase = Phase(
        objectives={"contrast": Term(loss=InfoNCE())}, optimizer=AdamW(lr=1e-3), samples_seen=_BATCH * _STEPS,
        global_batch_size=_BATCH, result="best",
    )  # fmt: skip
    spec = TrainSpec(
        init="init", pairs="pairs", selection="selection", phases={"a": phase}, log_every_steps=1,
        validation=Validation(split="split", name="val", every_samples=4 * _BATCH),
        checkpoint_every_samples=3 * _BATCH,
    )  # fmt: skip
    place = Place(root=root, cpus_per_worker=1, loader_workers=1, stall_seconds=120)
    events = Events(storage.join(root, f"{name}.events.jsonl"), name)
    out = storage.join(root, name)
    return Job(spec.model_dump(mode="json"), parents, out, out + ".state", events, place.model_dump(mode="json"))


def measure(root: str, ranks: int, kills: int, seed: int) -> bool:
    """Run one stage in peace and others under fire; print what hit; whether all agree."""
    parents, ours = make_parents(root), True
    peaceful = make_job(root, parents, "undisturbed")
    start = time.monotonic()
    run_with(peaceful, ranks, iter(()), 0)
    seconds, expected = time.monotonic() - start, result(peaceful)
    print(f"{ranks} ranks, {_STEPS} steps, undisturbed: {seconds:.1f} s, weights {expected[0][:16]}")
    coming, hits, stages = strikes(seed, ranks, seconds), [], 0
    while len(hits) < kills:
        stages += 1
        job = make_job(root, parents, f"stage-{stages}")
        found = run_with(job, ranks, coming, kills - len(hits))
        hits += found
        is_equal = result(job) == expected
        ours &= is_equal
        told = ", ".join(f"{hit.victim} at {hit.step}{' (writing)' if hit.is_writing else ''}" for hit in found)
        print(f"  stage {stages}: {'equal' if is_equal else 'DIFFERENT'}; killed: {told or 'none'}")
    writing = sum(hit.is_writing for hit in hits)
    loaders = sum(hit.victim.startswith("loader") for hit in hits)
    print(f"  {len(hits)} kills in {stages} stages, {writing} while a checkpoint was written, {loaders} of loaders: "
          f"{'all equal' if ours else 'NOT all equal'} to the undisturbed stage, weights and log")  # fmt: skip
    return ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    equal = []
    for ranks in options.workers:
        with tempfile.TemporaryDirectory(prefix="clipworks-kills-") as folder:
            equal.append(measure(folder, ranks, options.kills, options.seed))
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
