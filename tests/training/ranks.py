"""Runs one training stage on several gloo ranks of this machine, without Ray. Started by test_stage.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data.events import SILENT
from training.phases import Job, StageRun


def one(rank: int, order: dict, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=order["ranks"])
    job = Job(order["spec"], order["parents"], order["out"], order["state"], SILENT, order["place"])
    StageRun(job, rank, order["ranks"], torch.device("cpu")).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    mp.start_processes(one, (order, order["out"] + ".store"), nprocs=order["ranks"], start_method="fork")
