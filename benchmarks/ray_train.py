"""What Ray Train costs: pairs per second of one training stage under Ray Train and under plain torchrun.

    python -m benchmarks.ray_train [--workers 1] [--turns 3] [--samples 20480]

The same stage function, pairs, model, place and threads in both; turns are interleaved. Speed is what the stage's own
events say between the first and the last logged step, so it is that of a warm run; what comes before the first step is
printed apart.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.pairs import open_shard_set, write_pairs
from benchmarks.ratios import print_result, spread, take_turns
from data import storage
from data.artifacts import Output, Record
from data.events import Events, read_events
from data.place import Place
from data.selection import SELECTION_SCHEMA, write_selection
from training.phases import Job
from training.specs import AdamW, InfoNCE, Phase, Term, TrainSpec

_TOWERS = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 192, "head_width": 64, "layers": 6},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4},
}


def make_parents(root: str, pairs: int) -> dict[str, str]:
    """Initial towers, pairs and a selection that keeps them all."""
    from training.towers import create_towers, save_towers

    def commit(name: str, kind: str, write: Callable[[str], None]) -> str:
        fingerprint = name.encode().hex().ljust(64, "0")
        out = Output(root, name, fingerprint)
        write(out.uri)
        return out.commit(Record(kind=kind, stage=name, revision=1, fingerprint=fingerprint, config={})).uri

    shard_set = commit("pairs", "shard_set", lambda uri: write_pairs(uri, pairs, side=96))
    uids = open_shard_set(shard_set).index()["uid"].to_pylist()
    none = {"kept": True, "reason": "", "p_keep": 1.0, "draw": 0.0}
    table = pa.Table.from_pylist([{"uid": uid, **none} for uid in uids], SELECTION_SCHEMA)
    return {
        "init": commit("init", "checkpoint", lambda uri: save_towers(create_towers(_TOWERS), uri)),
        "pairs": shard_set,
        "selection": commit("selection", "selection", lambda uri: write_selection(uri, table)),
    }


def make_job(root: str, parents: dict[str, str], name: str, samples: int, place: Place) -> Job:
    """One training stage of its own name."""
    phase = Phase(
        objectives={"contrast": Term(loss=InfoNCE())}, optimizer=AdamW(lr=1e-4), samples_seen=samples,
        global_batch_size=256,
    )  # fmt: skip
    spec = TrainSpec(
        init="init", pairs="pairs", selection="selection", phases={"a": phase}, checkpoint_every_samples=samples
    )
    out = Output(root, name, name.encode().hex().ljust(64, "0"))
    events = Events(out.events_uri, name)
    return Job(spec.model_dump(mode="json"), parents, out.uri, out.state_uri, events, place.model_dump(mode="json"))


def with_ray(job: Job) -> None:
    """Run the job on Ray Train, as a training stage does."""
    from training.fit import fit

    fit(job)


def with_torchrun(job: Job) -> None:
    """Run the job's ranks under torchrun."""
    order = {"spec": job.spec, "parents": job.parents, "out": job.out_uri, "state": job.state_uri, "place": job.place,
             "events": job.events.uri, "stage": job.events.stage}  # fmt: skip
    workers = job.place["train_workers"]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m",
         "benchmarks.ray_train", "--rank-of", json.dumps(order)],
        check=True,
    )  # fmt: skip


def one_rank(order: dict[str, Any]) -> None:
    """One of torchrun's processes."""
    import os

    import torch
    import torch.distributed as dist

    from training.fit import run_rank

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo")
    events = Events(order["events"], order["stage"])
    job = Job(order["spec"], order["parents"], order["out"], order["state"], events, order["place"])
    run_rank(job, rank, world, torch.device("cpu"))
    if world > 1:
        dist.destroy_process_group()


def measured(run: Callable[[Job], None], make: Callable[[], Job], before: list[float]) -> float:
    """Pairs per second between the first and the last logged step; seconds until the first go to `before`."""
    job, start = make(), time.time()
    run(job)
    assert job.events.uri is not None
    logged = [event for event in read_events(job.events.uri) if event["event"] == "metrics"]
    before.append(logged[0]["time"] - start)
    return float((logged[-1]["step"] - logged[0]["step"]) / (logged[-1]["time"] - logged[0]["time"]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--samples", type=int, default=20_480, help="pairs a turn")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        one_rank(json.loads(options.rank_of))
        return
    plain = Place()
    place = Place(train_workers=options.workers, cpus_per_worker=max(1, plain.cpus_per_worker // options.workers))
    with tempfile.TemporaryDirectory(prefix="clipworks-ray-train-") as folder:
        root = str(Path(folder, "runs"))
        place = place.model_copy(update={"root": root})
        parents, turn = make_parents(root, 2048), iter(range(10_000))

        def make() -> Job:
            return make_job(root, parents, f"turn-{next(turn)}", options.samples, place)

        before: dict[str, list[float]] = {"Ray Train": [], "torchrun": []}
        contenders = {
            "Ray Train": lambda: measured(with_ray, make, before["Ray Train"]),
            "torchrun": lambda: measured(with_torchrun, make, before["torchrun"]),
        }
        found = take_turns(contenders, options.turns, warmup=0)
        storage.remove(root)
    print_result(found, "Ray Train", "torchrun", "pairs/s", ">= 0.98")
    for name, seconds in before.items():
        print(f"  {name}: {spread(seconds)} s from the start to the first logged step")


if __name__ == "__main__":
    main()
