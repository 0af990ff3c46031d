"""Where a run happens: everything that cannot change a result, apart from the recipe and never part of its identity."""

import os
from typing import Literal

from pydantic import Field

from data.spec import Spec

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"


def usable_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Toleration(Spec):
    """A taint of nodes that a pod may stand on (Kubernetes' own words)."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Pod(Spec):
    """What one kind of pod asks for, and where it may stand. Sizes are Kubernetes quantities, e.g. `8Gi`."""

    cpus: float = Field(default=1, gt=0)
    memory: str = Field(default="4Gi", pattern=_QUANTITY)
    disk: str | None = Field(default=None, pattern=_QUANTITY, description="ephemeral storage; None: not asked for")
    shm: str | None = Field(default=None, pattern=_QUANTITY, description="size of /dev/shm; None: the runtime's own")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class RayJob(Spec):
    """The KubeRay RayJob in which a stage that needs Ray runs: a head that only leads, and workers.

    How many workers, and their CPUs and GPUs, come from the place (`train_workers` x `cpus_per_worker`,
    `gpus_per_worker`; `data_workers`). Secrets are named, never held.
    """

    namespace: str = "clipworks"
    head: Pod = Pod(cpus=2, memory="8Gi")
    worker: Pod = Field(default=Pod(memory="16Gi", shm="8Gi"), description="`cpus` is of no account: the place's count")
    data: Pod | None = Field(
        default=None, description="worker pod of data stages without GPUs, with `cpus` of their workers; None: `worker`"
    )
    workers_per_pod: int = Field(default=1, ge=1, description="training ranks a pod, e.g. the GPUs of a node")
    queue: str | None = Field(default=None, description="Kueue local queue that admits it; None: no Kueue")
    service_account: str = Field(default="clipworks-ray", description="of its pods; needs no rights at all")
    secrets: tuple[str, ...] = Field(default=(), description="Kubernetes secrets, as environment of every pod")
    volumes: dict[str, str] = Field(default_factory=dict, description="persistent volume claim -> where it is mounted")
    gpu_resource: str = "nvidia.com/gpu"
    start_seconds: float = Field(default=1800, gt=0, description="longest wait for its pods; a queue's wait is apart")
    deadline_seconds: float | None = Field(default=None, gt=0, description="longest life once admitted; None: no limit")
    restarts: int = Field(default=1, ge=0, description="new Ray clusters after one that was lost whole (backoffLimit)")


class Place(Spec):
    """Where to run: storage root, processes, devices, image, services. Credentials come from the environment only."""

    root: str = Field(default="runs", description="folder or s3:// prefix that holds all artifacts")
    data_workers: int = Field(
        default=0,
        ge=0,
        description="processes of a data stage (Ray Data tasks of a CPU each); 0: its own",
    )
    train_workers: int = Field(default=1, ge=1, description="processes of a training stage (Ray Train workers)")
    ranks: Literal["ray", "local"] = Field(
        default="ray",
        description="who starts them: Ray Train, anywhere; local: the stage itself, beside it, without Ray",
    )
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
    runner: Literal["process", "container"] = Field(
        default="process",
        description="what `run` makes of a task: a process, or a container of `image` (docker, or podman's socket)",
    )
    mounts: tuple[str, ...] = Field(
        default=(), description="absolute paths that containers read besides the root and the files a recipe names"
    )
    image: str = Field(
        default="clipworks:0.1.0",
        description="container image of every component on a cluster, and of `runner: container`",
    )
    rayjob: RayJob | None = Field(
        default=None,
        description="KubeRay RayJobs for the stages that need Ray; None: a Ray in their process",
    )
    code: str | None = Field(
        default=None, description="URI of an archive of our packages to use in place of the image's (`submit --code`)"
    )
    wandb_mode: str = Field(default="offline", pattern="^(offline|online|disabled)$")
    wandb_project: str = "clipworks"
