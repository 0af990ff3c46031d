"""Ranks beside the stage, without Ray: the same training as on one rank, stopped as one, and none is left behind."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from components.runtime import needs_ray
from data.events import Events
from data.place import Place
from training.local_ranks import fit_here
from training.phases import Job
from training.specs import AdamW, InfoNCE, Phase, Term, TrainSpec, Validation


def _ranks():
    spec = importlib.util.spec_from_file_location("clipworks_tests_ranks", Path(__file__).with_name("ranks.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SPEC = TrainSpec(
    init="init", pairs="pairs", selection="selection", checkpoint_every_samples=32,
    validation=Validation(split="split", name="test", every_samples=32, pairs=8),
    phases={"p": Phase(objectives={"contrast": Term(loss=InfoNCE())}, optimizer=AdamW(lr=1e-3), samples_seen=64,
                       global_batch_size=16)},
)  # fmt: skip


class Stopping(Events):
    """Ends the stage at its first validation, as a scheduler does."""

    def metrics(self, step, values):
        if "p/validation_loss" in values:
            raise KeyboardInterrupt


def losses(job: Job) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(job.out_uri, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def jobs(world, tmp_path_factory):
    return _ranks().jobs(world, tmp_path_factory.mktemp("root"))


def test_two_ranks_beside_the_stage_train_as_one(jobs) -> None:
    one, two = (jobs(f"ranks-{ranks}", SPEC, ranks="local", train_workers=ranks) for ranks in (1, 2))
    for job in (one, two):
        fit_here(job)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert losses(two) != losses(one), "sums of two ranks come in another order: both really took part"
    assert not dist.is_initialized()


def test_such_a_stage_needs_no_ray() -> None:
    assert needs_ray("train", Place())
    assert not needs_ray("train", Place(ranks="local"))


def test_a_stop_ends_every_rank(jobs) -> None:
    import multiprocessing

    job = jobs("stopped", SPEC, ranks="local", train_workers=2)
    job = Job(job.spec, job.parents, job.out_uri, job.state_uri, Stopping(None, "stage"), job.place)
    with pytest.raises(KeyboardInterrupt):
        fit_here(job)
    assert multiprocessing.active_children() == []
    assert not dist.is_initialized()
