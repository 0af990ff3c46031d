"""Training on Ray Train: one fit a stage, any number of workers; a lost worker resumes from the last checkpoint."""

import os
import traceback
import uuid
from typing import Any

from data import errors, storage
from data.errors import ModelError, UserError
from data.stage import Outcome, Work
from training.phases import Job, StageRun
from training.specs import TrainSpec

_LOST_WORKER_RETRIES = 2


def run(spec: TrainSpec, work: Work) -> Outcome:
    """Stage function of `train`.

    Raises:
        UserError: as raised by a worker; RuntimeError with the worker's traceback for a defect.
    """
    check_sizes(spec, work.place.train_workers)
    job = Job(
        spec.model_dump(mode="json"), {role: a.uri for role, a in work.parents.items()}, work.out.uri,
        work.out.state_uri, work.events, work.place.model_dump(mode="json"),
    )  # fmt: skip
    for attempt in range(_LOST_WORKER_RETRIES + 1):
        storage.remove(storage.join(job.state_uri, "error.json"))
        try:
            fit(job)
            break
        except Exception as error:
            raise_what_failed(job)
            if attempt == _LOST_WORKER_RETRIES:
                raise
            work.events.message(f"a worker was lost ({type(error).__name__}); resuming from the last checkpoint")
    outcome: dict[str, Any] = storage.read_json(storage.join(job.state_uri, "outcome.json"))
    return Outcome(outcome["counts"], outcome["metrics"])


def check_sizes(spec: TrainSpec, workers: int) -> None:
    """Refuse batch sizes that do not divide by the workers, before anything starts."""
    for name, phase in spec.phases.items():
        if phase.global_batch_size % workers:
            raise ModelError(
                f"phase {name!r}: global_batch_size {phase.global_batch_size} does not divide by {workers} workers; "
                f"use {phase.global_batch_size // workers * workers or workers}, or other train_workers"
            )
        if 0 < phase.samples_seen < phase.global_batch_size:
            raise ModelError(
                f"phase {name!r}: samples_seen {phase.samples_seen} is below one global batch of "
                f"{phase.global_batch_size}"
            )


def fit(job: Job) -> None:
    """Run the job on Ray Train's workers and wait."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    place = job.place
    connect()
    scaling = ScalingConfig(
        num_workers=place["train_workers"],
        use_gpu=place["gpus_per_worker"] > 0,
        resources_per_worker={"CPU": place["cpus_per_worker"], "GPU": place["gpus_per_worker"]},
    )
    needed = place["train_workers"] * place["cpus_per_worker"]
    have = int(ray.cluster_resources().get("CPU", 0))
    if needed > have:
        raise ModelError(
            f"{place['train_workers']} workers x {place['cpus_per_worker']} CPUs need {needed}; Ray has {have}; "
            "lower train_workers or cpus_per_worker"
        )
    config = RunConfig(
        name=f"fit-{uuid.uuid4().hex[:8]}", storage_path=os.environ.get("CLIPWORKS_RAY_STORAGE", "/tmp/clipworks-ray"),  # noqa: S108
        failure_config=FailureConfig(max_failures=0),
    )  # fmt: skip
    TorchTrainer(train_worker, train_loop_config={"job": job}, scaling_config=scaling, run_config=config).fit()


def connect() -> None:
    """Join the run's Ray (RAY_ADDRESS), or start one for this process."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False,
            configure_logging=False,
        )  # fmt: skip


def train_worker(config: dict[str, Any]) -> None:
    """What each Ray worker does."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    job: Job = config["job"]
    torch.set_num_threads(job.place["cpus_per_worker"])
    context = ray.train.get_context()
    try:
        StageRun(job, context.get_world_rank(), context.get_world_size(), get_device()).run()
    except Exception as error:
        note = {
            "type": type(error).__name__,
            "message": str(error),
            "user": isinstance(error, UserError),
            "rank": context.get_world_rank(),
        }
        storage.write_json(storage.join(job.state_uri, "error.json"), {**note, "traceback": traceback.format_exc()})
        raise
    finally:
        job.events.flush()


def raise_what_failed(job: Job) -> None:
    """Raise what a worker raised, if one did; a worker that just disappeared leaves nothing."""
    uri = storage.join(job.state_uri, "error.json")
    if not storage.exists(uri):
        return
    note = storage.read_json(uri)
    if note["user"]:
        raise getattr(errors, note["type"], UserError)(note["message"]) from None
    raise RuntimeError(f"rank {note['rank']} failed:\n{note['traceback']}") from None
