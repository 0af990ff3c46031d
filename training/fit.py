"""Training on Ray Train: one fit a stage, any number of workers; a lost worker resumes from the last checkpoint."""

import os
import socket
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data import errors, storage
from data.errors import ModelError, UserError, facts_of, located, with_output
from data.output import clean, output_files, redacted, tail_lines
from data.place import Place
from data.ray import connect
from data.stage import Outcome, Work
from training import preflight
from training.loading import LostWorker
from training.phases import Job, StageRun
from training.specs import TrainSpec
from training.workload import models_of, training_flops

_STALLED = 75  # exit code of a rank that its watchdog ended: a failure that may pass

_KINDS = ("user", "defect", "stall", "lost")  # of failures, those first that explain the others


def run(spec: TrainSpec, work: Work) -> Outcome:
    """Stage function of `train`.

    A lost or stalled worker restarts the stage from its last checkpoint, with fewer workers where the place allows
    that; restarts count from the last one that got further.

    Raises:
        UserError: as raised by a worker; RuntimeError with the worker's traceback for a defect.
    """
    for message in preflight.check(spec, work.place, work.parents):
        work.events.message(message)
    job = Job(
        spec.model_dump(mode="json"), {role: a.uri for role, a in work.parents.items()}, work.out.uri,
        work.out.state_uri, work.events, work.place.model_dump(mode="json"),
    )  # fmt: skip
    with _told_by_ranks(job):
        _until_done(job, work)
    outcome: dict[str, Any] = storage.read_json(storage.join(job.state_uri, "outcome.json"))
    measured = {**outcome.get("measured", {}), "flops": training_flops(spec, models_of(work.parents))}
    return Outcome(outcome["counts"], outcome["metrics"], measured=measured)


def _until_done(job: Job, work: Work) -> None:
    """Fit, and again from the last checkpoint where that may help."""
    restarts, before = 0, position(job)
    while True:
        forget_failures(job)
        try:
            start(job)
            break
        except UserError:
            raise
        except Exception as error:
            failure = first_failure(job)
            raise_if_final(failure)
            restarts, before = (restarts + 1, before) if position(job) == before else (1, position(job))
            why = failure["message"] if failure else f"a worker was lost ({type(error).__name__})"
            if restarts > work.place.max_restarts:
                raise
            work.events.message(f"{why}; resuming from the last checkpoint")


def position(job: Job) -> Any:
    """Where the stage stands: what of its restart state counts."""
    uri = storage.join(job.state_uri, "position.json")
    return storage.read_json(uri) if storage.exists(uri) else None


def workers_that_fit(spec: TrainSpec, place: Place, cpus: float, gpus: float) -> int:
    """The most workers, at most `train_workers`, for which Ray has CPUs and GPUs and that divide every batch.

    Raises:
        ModelError: fewer than `min_train_workers` (by default all) fit.
    """
    least = place.min_train_workers or place.train_workers
    have = int(cpus // place.cpus_per_worker)
    if place.gpus_per_worker:
        have = min(have, int(gpus // place.gpus_per_worker))
    sizes = [phase.global_batch_size for phase in spec.phases.values()]
    for workers in range(min(have, place.train_workers), least - 1, -1):
        if all(size % workers == 0 for size in sizes):
            return workers
    needed = f"{place.train_workers} workers x {place.cpus_per_worker} CPUs"
    if place.gpus_per_worker:
        needed += f" and {place.gpus_per_worker} GPUs"
    raise ModelError(
        f"{needed}: Ray has {cpus:g} CPUs and {gpus:g} GPUs; "
        "lower train_workers or cpus_per_worker, or set min_train_workers"
    )


def start(job: Job) -> None:
    """Run the job's ranks where the place has them, and wait."""
    if job.place["ranks"] == "local":
        from training.local_ranks import fit_here

        fit_here(job)
    else:
        fit(job)


def fit(job: Job) -> None:
    """Run the job on Ray Train's workers and wait."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    place = Place.model_validate(job.place)
    connect()
    resources = ray.cluster_resources()
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    scaling = ScalingConfig(
        num_workers=workers_that_fit(TrainSpec.model_validate(job.spec), place, cpus, gpus),
        use_gpu=place.gpus_per_worker > 0,
        resources_per_worker={"CPU": place.cpus_per_worker, "GPU": place.gpus_per_worker},
    )
    config = RunConfig(
        name=f"fit-{uuid.uuid4().hex[:8]}", storage_path=os.environ.get("CLIPWORKS_RAY_STORAGE", "/tmp/clipworks-ray"),  # noqa: S108
        failure_config=FailureConfig(max_failures=0),
    )  # fmt: skip
    backend = TorchConfig(timeout_s=int(place.stall_seconds * 2) + 60)  # the watchdog speaks first
    TorchTrainer(
        train_worker, train_loop_config={"job": job}, scaling_config=scaling, run_config=config, torch_config=backend
    ).fit()


def train_worker(config: dict[str, Any]) -> None:
    """What each Ray worker does."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    run_rank(config["job"], context.get_world_rank(), context.get_world_size(), get_device())


def run_rank(job: Job, rank: int, world_size: int, device: Any) -> None:
    """One rank of the stage in this process; what ends it is noted for the driver."""
    import torch

    def stalled(message: str) -> None:
        note_failure(job, rank, "stall", message, facts={"doing": stage.watchdog.said} if stage else {})
        os._exit(_STALLED)  # the loop's thread hangs in a call that nothing can interrupt

    torch.set_num_threads(job.place["cpus_per_worker"])
    _register(job, rank)
    stage: StageRun | None = None
    try:
        stage = StageRun(job, rank, world_size, device, stalled)
        stage.run()
    except Exception as error:
        kind = "user" if isinstance(error, UserError) else "lost" if is_loss_of_another(error) else "defect"
        doing = {"doing": stage.watchdog.said} if stage else {}
        note_failure(job, rank, kind, str(error), type(error).__name__, {**doing, **facts_of(error)})
        raise
    finally:
        job.events.flush()


def is_loss_of_another(error: Exception) -> bool:
    """True for what a rank raises because another process went away: a peer in a collective, a loader worker."""
    import torch.distributed as dist

    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "connectFullMesh")
    return isinstance(error, LostWorker | dist.DistError) or any(word in str(error) for word in gone)


def _register(job: Job, rank: int) -> None:
    """Write down which process a rank is: what one that is killed wrote is found by it."""
    where = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname(), "output": list(map(str, output_files()))}
    storage.write_json(storage.join(job.state_uri, f"rank-{rank}.json"), where)


def note_failure(
    job: Job, rank: int, kind: str, message: str, error: str = "RuntimeError", facts: Mapping[str, str] | None = None
) -> None:
    """Write down what ended a rank: the driver reads it, Ray only says that a process is gone."""
    lines = [line for path in output_files() for line in tail_lines(path)]
    note = {
        "kind": kind, "rank": rank, "type": error, "message": redacted(message), "time": time.time(),
        "traceback": redacted(traceback.format_exc()), "facts": dict(facts or {}), "lines": lines,
    }  # fmt: skip
    storage.write_json(storage.join(job.state_uri, f"error-{rank}.json"), note)


def _notes(job: Job, pattern: str) -> list[str]:
    names = [name for name, _ in storage.list_files(job.state_uri)]
    return [storage.join(job.state_uri, name) for name in names if fnmatchcase(name, pattern)]


def forget_failures(job: Job) -> None:
    """Remove the notes of an attempt that is over."""
    for uri in [*_notes(job, "error-*.json"), *_notes(job, "rank-*.json")]:
        storage.remove(uri)


def last_lines(job: Job) -> dict[str, list[str]]:
    """What every rank of the last attempt wrote last: as it noted, or from its files where they are on this machine."""
    ranks = {note["rank"]: note for note in map(storage.read_json, _notes(job, "rank-*.json"))}
    ends = {note["rank"]: note for note in map(storage.read_json, _notes(job, "error-*.json"))}
    told = {}
    for rank in sorted({*ranks, *ends}):
        lines = ends.get(rank, {}).get("lines") or _found_output(ranks.get(rank))
        told[f"rank {rank}"] = [_ending(ends.get(rank)), *lines]
    return told


def _ending(note: dict[str, Any] | None) -> str:
    if note is None:
        return "(left no word: killed, or ended because another rank failed)"
    first = clean(note["message"].splitlines() or [""], most=1)
    return f"({note['kind']}: {note['type']}: {first[0] if first else ''})"


def _found_output(rank: dict[str, Any] | None) -> list[str]:
    if rank is None or rank["host"] != socket.gethostname():
        return []
    return [line for path in rank["output"] for line in tail_lines(Path(path))]


@contextmanager
def _told_by_ranks(job: Job) -> Iterator[None]:
    """Say of an error of the block which rank it came from, and attach what all of them wrote last."""
    try:
        yield
    except Exception as error:
        failure = first_failure(job)
        if failure is not None:
            located(error, **{"rank": failure["rank"], **failure["facts"]})
        with_output(error, last_lines(job))
        raise


def first_failure(job: Job) -> dict[str, Any] | None:
    """The note that explains the others: a user's mistake, a defect, a stall, a loss; the earliest of its kind."""
    notes = [storage.read_json(uri) for uri in _notes(job, "error-*.json")]
    return min(notes, key=lambda note: (_KINDS.index(note["kind"]), note["time"]), default=None)


def raise_if_final(failure: dict[str, Any] | None) -> None:
    """Raise what another attempt would meet again; a worker that just disappeared leaves nothing to raise."""
    if failure is None or failure["kind"] in ("stall", "lost"):
        return
    if failure["kind"] == "user":
        raise getattr(errors, failure["type"], UserError)(failure["message"]) from None
    raise RuntimeError(f"rank {failure['rank']} failed:\n{failure['traceback']}") from None
