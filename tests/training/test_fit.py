"""What the driver makes of how workers end: a user's mistake, a defect, a lost worker. tests/e2e runs Ray itself."""

from contextlib import suppress

import pytest

from data import storage
from data.errors import ModelError, ShardError
from data.place import Place
from training import fit, preflight
from training.specs import AdamW, InfoNCE, Phase, Term, TrainSpec

OUTCOME = {"counts": {"pairs": 3}, "metrics": {"logit_scale": 10.0}}
SPEC = TrainSpec(
    init="init", pairs="pairs", selection="selection",
    phases={"a": Phase(
        objectives={"c": Term(loss=InfoNCE())}, optimizer=AdamW(lr=1e-3), samples_seen=24, global_batch_size=12
    )},
)  # fmt: skip


@pytest.fixture
def start(world, tmp_path, monkeypatch):
    """Run the stage function with `ends` in place of Ray: each is called with the job, one an attempt."""

    def run(*ends, **place):
        attempts = iter(ends)
        monkeypatch.setattr(fit, "fit", lambda job: next(attempts)(job))
        monkeypatch.setattr(preflight, "check", lambda *_: ["all fits"])
        work = world.work(tmp_path, "stage", {})
        work = work._replace(place=work.place.model_copy(update=place))
        made = fit.run(SPEC, work)
        return made, list(attempts)

    return run


def said(folder):
    return "".join(path.read_text() for path in folder.glob(".events/*"))


def succeeds(job):
    storage.write_json(storage.join(job.state_uri, "outcome.json"), OUTCOME)


def disappears(job):
    raise ConnectionError("the worker's process is gone")


def fails(kind, error="ShardError", message="shard 00003 is torn", rank=1):
    def end(job):
        try:
            raise ValueError("line 7")
        except ValueError:
            fit.note_failure(job, rank, kind, message, error)
        raise RuntimeError("Ray wraps what a worker raises")

    return end


def advances(step, then):
    def end(job):
        storage.write_json(
            storage.join(job.state_uri, "position.json"), {"finished": [], "phase": "a", "steps": [step]}
        )
        then(job)

    return end


def both(*ends):
    def end(job):
        for one in ends:
            with suppress(RuntimeError):
                one(job)
        raise RuntimeError("Ray wraps what a worker raises")

    return end


def test_the_workers_outcome_becomes_the_stages(start):
    made, left = start(succeeds, fails("user"))
    assert made.counts == OUTCOME["counts"]
    assert len(left) == 1


def test_a_lost_worker_is_tried_again_and_said(start, tmp_path):
    made, _ = start(disappears, disappears, succeeds)
    assert made.metrics == OUTCOME["metrics"]
    assert said(tmp_path).count("a worker was lost (ConnectionError); resuming from the last checkpoint") == 2


def test_workers_that_keep_disappearing_end_the_stage(start):
    with pytest.raises(ConnectionError, match="process is gone"):
        start(disappears, disappears, disappears, succeeds, max_restarts=2)


def test_restarts_count_from_the_last_one_that_got_further(start):
    ends = [advances(step, disappears) for step in range(1, 7)]
    made, left = start(*ends, succeeds, max_restarts=1)
    assert made.counts == OUTCOME["counts"]
    assert not left


def test_a_stalled_rank_is_named_and_tried_again(start, tmp_path):
    start(fails("stall", message="rank 1 stands still for 600 s: step 3, backward"), succeeds)
    assert "rank 1 stands still for 600 s: step 3, backward; resuming from the last checkpoint" in said(tmp_path)


def test_what_a_killed_rank_does_to_the_others_is_a_loss_too(start):
    made, _ = start(fails("lost", "RuntimeError", "Connection closed by peer", 0), succeeds)
    assert made.counts == OUTCOME["counts"]


def test_a_users_mistake_comes_back_as_itself_and_is_not_tried_again(start):
    with pytest.raises(ShardError, match=r"^shard 00003 is torn$"):
        start(fails("user"), succeeds)


def test_the_cause_is_told_and_not_what_followed_from_it(start):
    followed = fails("lost", "RuntimeError", "Connection closed by peer", 0)
    with pytest.raises(ShardError, match=r"^shard 00003 is torn$"):
        start(both(followed, fails("user")), succeeds)


def test_a_defect_names_the_rank_and_keeps_the_traceback(start):
    with pytest.raises(RuntimeError, match=r"rank 1 failed:\n(.|\n)*ValueError: line 7"):
        start(fails("defect"), succeeds)


@pytest.mark.parametrize(
    ("cpus", "gpus", "place", "workers"),
    [
        (8, 0, {"train_workers": 4, "cpus_per_worker": 2}, 4),
        (9, 0, {"train_workers": 4, "cpus_per_worker": 1}, 4),
        (6, 0, {"train_workers": 4, "cpus_per_worker": 2, "min_train_workers": 1}, 3),
        (5, 0, {"train_workers": 5, "cpus_per_worker": 1, "min_train_workers": 2}, 4),  # 5 does not divide 12
        (64, 2, {"train_workers": 4, "cpus_per_worker": 2, "gpus_per_worker": 1, "min_train_workers": 1}, 2),
    ],
)
def test_as_many_workers_as_there_are_and_the_batch_divides_by(cpus, gpus, place, workers):
    assert fit.workers_that_fit(SPEC, Place(**place), cpus, gpus) == workers


def test_too_few_workers_are_said_with_the_fix():
    place = Place(train_workers=4, cpus_per_worker=2)
    with pytest.raises(ModelError, match=r"4 workers x 2 CPUs: Ray has 6 CPUs and 0 GPUs; .*set min_train_workers"):
        fit.workers_that_fit(SPEC, place, 6, 0)
