"""A training stage's ranks on this machine without Ray: rank 0 in this process, the others as its children.

For whoever has processes and devices already: a sweep's trial, whose Ray worker holds the CPUs and GPUs of all ranks.
What listens to rank 0's events in this process (a scheduler that stops a bad trial) interrupts it like any call.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from data.events import Events
from data.place import Place
from training.phases import Job
from training.workers import die_with

_HOST = "127.0.0.1"


def fit_here(job: Job) -> None:
    """Run all ranks of the job and wait.

    Raises:
        UserError: as raised by rank 0; LostWorker or an error of the process group where another rank is gone.
    """
    from training.fit import run_rank

    place = Place.model_validate(job.place)
    with _others(job, place):
        run_rank(job, 0, place.train_workers, _device(0, place))


@contextmanager
def _others(job: Job, place: Place) -> Iterator[None]:
    """Ranks 1 and up as processes, joined with this one into a group; they end with the block."""
    if place.train_workers == 1:
        yield
        return
    store = TCPStore(_HOST, 0, place.train_workers, is_master=True, wait_for_workers=False)
    # spawned: a fork of a process whose threads hold locks may hang, and CUDA refuses one
    context = multiprocessing.get_context("spawn")
    silent = Job(job.spec, job.parents, job.out_uri, job.state_uri, Events(None, ""), job.place)
    children = []
    try:
        for rank in range(1, place.train_workers):
            child = context.Process(target=_rank, args=(silent, rank, store.port, os.getpid()), name=f"rank-{rank}")
            child.start()
            children.append(child)
        _join_group(store, 0, place)
        yield
        for child in children:
            child.join()
    finally:
        for child in children:
            child.kill()
            child.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def _rank(job: Job, rank: int, port: int, parent: int) -> None:
    """The life of another rank; what ends it is in its note, and rank 0 misses it."""
    from training.fit import run_rank

    threading.Thread(target=die_with, args=(parent,), daemon=True).start()
    place = Place.model_validate(job.place)
    _join_group(TCPStore(_HOST, port, place.train_workers), rank, place)
    run_rank(job, rank, place.train_workers, _device(rank, place))


def _join_group(store: TCPStore, rank: int, place: Place) -> None:
    timeout = timedelta(seconds=place.stall_seconds * 2 + 60)  # the watchdog speaks first
    backend = "nccl" if place.gpus_per_worker else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=place.train_workers, timeout=timeout)


def _device(rank: int, place: Place) -> torch.device:
    if not place.gpus_per_worker:
        return torch.device("cpu")
    torch.cuda.set_device(rank * place.gpus_per_worker)
    return torch.device("cuda", rank * place.gpus_per_worker)
