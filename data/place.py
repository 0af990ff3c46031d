"""Where a run happens: everything that cannot change a result, apart from the recipe and never part of its identity."""

import os
from typing import Literal

from pydantic import Field

from data.spec import Spec


def usable_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Place(Spec):
    """Where to run: storage root, processes, devices, image, services. Credentials come from the environment only."""

    root: str = Field(default="runs", description="folder or s3:// prefix that holds all artifacts")
    data_workers: int = Field(
        default=0,
        ge=0,
        description="processes of a data stage (Ray Data tasks of a CPU each); 0: its own",
    )
    train_workers: int = Field(default=1, ge=1, description="processes of a training stage (Ray Train workers)")
    cpus_per_worker: int = Field(default_factory=usable_cpus, ge=1, description="CPU threads each")
    gpus_per_worker: int = Field(default=0, ge=0, description="GPUs each (NCCL and bf16 become available above 0)")
    loader_workers: int = Field(default=1, ge=0, description="processes per rank that decode; 0: none but its own")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="fsdp shards weights, gradients and optimiser over the ranks"
    )
    activation_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    compile: bool = Field(default=False, description="torch.compile every transformer block (needs a compiler)")
    min_train_workers: int | None = Field(
        default=None, ge=1, description="go on with so few when workers are gone for good; None: never with fewer"
    )
    max_restarts: int = Field(default=3, ge=0, description="how often a stage resumes by itself after a lost worker")
    stall_seconds: float = Field(default=600, gt=0, description="a rank that makes no progress for so long is an error")
    keep_checkpoints: int = Field(default=2, ge=1, description="restart states kept of a running phase, the last ones")
    profile_steps: int = Field(default=0, ge=0, description="write a trace of so many steps of each phase; 0: none")
    precision: str = Field(
        default="auto", pattern="^(auto|float32|bf16)$", description="auto: bf16 on CUDA, else float32"
    )
    llm_url: str | None = Field(
        default=None, description="OpenAI-compatible endpoint for rewriting, e.g. http://host:8000/v1"
    )
    image: str = Field(default="clipworks:0.1.0", description="container image of every component on a cluster")
    wandb_mode: str = Field(default="offline", pattern="^(offline|online|disabled)$")
    wandb_project: str = "clipworks"
