"""What the driver makes of how workers end: a user's mistake, a defect, a lost worker. tests/e2e runs Ray itself."""

import pytest

from data import storage
from data.errors import ShardError
from training import fit
from training.specs import AdamW, InfoNCE, Phase, Term, TrainSpec

OUTCOME = {"counts": {"pairs": 3}, "metrics": {"logit_scale": 10.0}}


@pytest.fixture
def start(world, tmp_path, monkeypatch):
    """Run the stage function with `ends` in place of Ray: each is called with the job, one an attempt."""

    def run(*ends):
        attempts = iter(ends)
        monkeypatch.setattr(fit, "fit", lambda job: next(attempts)(job))
        phase = Phase(
            objectives={"c": Term(loss=InfoNCE())}, optimizer=AdamW(lr=1e-3), samples_seen=8, global_batch_size=4
        )
        spec = TrainSpec(init="init", pairs="pairs", selection="selection", phases={"a": phase})
        made = fit.run(spec, world.work(tmp_path, "stage", {}))
        return made, list(attempts)

    return run


def succeeds(job):
    storage.write_json(storage.join(job.state_uri, "outcome.json"), OUTCOME)


def disappears(job):
    raise ConnectionError("the worker's process is gone")


def fails(user, kind="ShardError", message="shard 00003 is torn"):
    def end(job):
        note = {"type": kind, "message": message, "user": user, "rank": 1, "traceback": "Traceback: line 7"}
        storage.write_json(storage.join(job.state_uri, "error.json"), note)
        raise RuntimeError("Ray wraps what a worker raises")

    return end


def test_the_workers_outcome_becomes_the_stages(start):
    made, left = start(succeeds, fails(True))
    assert made.counts == OUTCOME["counts"]
    assert len(left) == 1


def test_a_lost_worker_is_tried_again_and_said(start, tmp_path):
    made, _ = start(disappears, disappears, succeeds)
    assert made.metrics == OUTCOME["metrics"]
    said = "".join(path.read_text() for path in tmp_path.glob(".events/*"))
    assert said.count("a worker was lost (ConnectionError); resuming from the last checkpoint") == 2


def test_workers_that_keep_disappearing_end_the_stage(start):
    with pytest.raises(ConnectionError, match="process is gone"):
        start(disappears, disappears, disappears, succeeds)


def test_a_users_mistake_comes_back_as_itself_and_is_not_tried_again(start):
    with pytest.raises(ShardError, match=r"^shard 00003 is torn$"):
        start(fails(True), succeeds)


def test_a_defect_names_the_rank_and_keeps_the_traceback(start):
    with pytest.raises(RuntimeError, match=r"rank 1 failed:\nTraceback: line 7"):
        start(fails(False), succeeds)
