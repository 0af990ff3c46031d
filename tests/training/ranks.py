"""Functions and whole training stages on several gloo ranks of this machine, without Ray.

As a script it runs one stage (test_stage.py starts it). Tests that need ranks of their own process call `together`,
and `built` for a phase whose batches are made up on the spot.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data.events import SILENT
from data.place import Place
from training import surgeries
from training.fit import run_rank
from training.loading import Batch
from training.loop import PhaseRun, make_optimizer
from training.meter import Meter
from training.parallel import parallelise
from training.phases import Job
from training.specs import AdamW, InfoNCE, Phase, Term, Upcycle
from training.towers import create_towers, save_towers
from training.watchdog import Watchdog
from training.weights import set_trainable

PAIRS, STEPS = 16, 4
CONTRAST = {"contrast": Term(loss=InfoNCE())}


def started(function, ranks: int, store, *arguments):
    """Start function(rank, ranks, *arguments) in so many processes, forked from this one; torch's context of them.

    `store` is a file that is not there yet, or a URL, where ranks meet.
    """
    where = str(store) if "://" in str(store) else f"file://{store}"
    return mp.start_processes(_enter, (function, ranks, where, arguments), ranks, join=False, start_method="fork")


def together(function, ranks: int, store, *arguments) -> None:
    """Start the processes and wait for their ends; raise what one raises."""
    context = started(function, ranks, store, *arguments)
    while not context.join():
        pass


def _enter(rank: int, function, ranks: int, store: str, arguments) -> None:
    gc.freeze()  # an old process group of this session, collected in a fork, waits for threads that are not there
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    function(rank, ranks, *arguments)
    dist.destroy_process_group()


def stage(rank: int, ranks: int, order: dict) -> None:
    """One rank of the stage that `order` describes."""
    job = Job(order["spec"], order["parents"], order["out"], order["state"], SILENT, order["place"])
    run(rank, ranks, job)


def jobs(world, root, architecture=None):
    """A function (name, spec, **place) -> Job of a stage on the tiny world's pairs, from one initial checkpoint."""
    pairs, split, selection = world.small_world(root)
    towers = create_towers(architecture or world.TINY)
    init = world.commit(root, "init", "checkpoint", lambda uri: save_towers(towers, uri))
    parents = {"init": init, "pairs": pairs, "selection": selection, "validation.split": split}

    def job(name, spec, **place):
        out = str(root / name)
        place = Place(**{"root": str(root), "cpus_per_worker": 1, "loader_workers": 0, **place})
        uris = {role: artifact.uri for role, artifact in parents.items()}
        return Job(spec.model_dump(mode="json"), uris, out, out + ".state", SILENT, place.model_dump(mode="json"))

    return job


def run(rank: int, ranks: int, job: Job) -> None:
    """One rank of a job."""
    run_rank(job, rank, ranks, torch.device("cpu"))


def in_child(function, *arguments) -> int:
    """Exit code of a forked process that calls the function; minus the signal's number where one killed it."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child must not come back into its parent's test
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Slice:
    """What the loop asks of a data view besides batches."""

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def batches(self, steps):
        """The rank's part of the same global batches, whatever the number of ranks."""
        for step in steps:
            random = torch.Generator().manual_seed(step)
            image = torch.randint(0, 256, (PAIRS, 3, 16, 16), generator=random, dtype=torch.uint8)
            text = torch.randint(1, 1000, (PAIRS, 8), generator=random)
            text[:, -1] = 49407
            mine = slice(self.rank * PAIRS // self.world_size, (self.rank + 1) * PAIRS // self.world_size)
            names = [str(number) for number in range(PAIRS)][mine]
            more = {"text_id": torch.arange(PAIRS)[mine], "position": step * PAIRS + torch.arange(PAIRS)[mine]}
            yield Batch(image[mine], {"text": text[mine]}, names, names, more)


def built(rank, world_size, architecture, is_mixture, phase_changes, place, autocast=None):
    """A phase's run over the slices, and the list that its readings go to."""
    plain = {"objectives": CONTRAST, "optimizer": AdamW(lr=3e-3), "samples_seen": PAIRS * STEPS}
    phase = Phase(**{**plain, "global_batch_size": PAIRS, **phase_changes})
    towers = create_towers(architecture, seed=0)
    if is_mixture:
        towers, _ = surgeries.apply(Upcycle(experts=("init",) * 3), towers, {"init": towers.model.state_dict()})
    set_trainable(towers.model, phase.trainable)
    module, view, readings = parallelise(towers, place, autocast), Slice(rank, world_size), []
    run = PhaseRun(
        phase, towers, module, view, view.batches, {}, make_optimizer(towers, phase.optimizer), seed=0,
        meter=Meter(lambda _tokens: None, torch.device("cpu"), world_size),
        watchdog=Watchdog(rank, world_size, 60, print), after_step=lambda _step, values: readings.append(values),
        autocast=autocast,
    )  # fmt: skip
    return run, readings


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    together(stage, order["ranks"], order["out"] + ".store", order)
