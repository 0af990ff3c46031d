"""Where a run happens: everything that cannot change a result, apart from the recipe and never part of its identity."""

import os

from pydantic import Field

from data.spec import Spec


def usable_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Place(Spec):
    """Where to run: storage root, processes, devices, image, services. Credentials come from the environment only."""

    root: str = Field(default="runs", description="folder or s3:// prefix that holds all artifacts")
    train_workers: int = Field(default=1, ge=1, description="processes of a training stage (Ray Train workers)")
    cpus_per_worker: int = Field(default_factory=usable_cpus, ge=1, description="CPU threads each")
    gpus_per_worker: int = Field(default=0, ge=0, description="GPUs each (NCCL and bf16 become available above 0)")
    precision: str = Field(
        default="auto", pattern="^(auto|float32|bf16)$", description="auto: bf16 on CUDA, else float32"
    )
    llm_url: str | None = Field(
        default=None, description="OpenAI-compatible endpoint for rewriting, e.g. http://host:8000/v1"
    )
    image: str = Field(default="clipworks:0.1.0", description="container image of every component on a cluster")
    wandb_mode: str = Field(default="offline", pattern="^(offline|online|disabled)$")
    wandb_project: str = "clipworks"
