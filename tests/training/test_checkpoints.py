"""Restart states: written behind the training, read by any number of ranks, never torn, never silently missing."""

import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from data import storage
from data.errors import StorageError
from data.place import Place
from training.checkpoints import Ledger, best_step
from training.loop import train
from training.parallel import whole
from training.sharded import _state
from training.specs import RandomReference, Term
from training.towers import load_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
LAYOUTS = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "fsdp")]


def everything(run):
    """Whole weights and optimiser state by name, copied."""
    flat = {}

    def add(path, value):
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{path}/{name}", inner)
        elif isinstance(value, Tensor):
            flat[path] = whole(value).clone()

    add("", _state(run.towers, run.optimizer))
    return flat


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def built(world, rank=0, world_size=1, parallel="ddp", **phase):
    return ranks.built(rank, world_size, world.TINY, False, phase, Place(parallel=parallel))[0]


def trained(world, steps, state, **more):
    """A run after so many steps, and a ledger that holds its checkpoints of every second one."""
    run = built(world, **more)
    ledger = Ledger("", str(state), more.get("rank", 0), keep=2)

    def after_step(step, _values):
        if step % 2 == 0 and step <= steps:
            ledger.checkpoint("a", step, run, [{"step": step, "loss": 1.0}])
        if step == steps:
            raise StopIteration

    run.after_step = after_step
    with pytest.raises(StopIteration):
        train(run)
    return run, ledger


def saves(rank, world_size, world, parallel, folder):
    run, ledger = trained(world, 2, folder / "state", rank=rank, world_size=world_size, parallel=parallel)
    ledger.settle()
    found = everything(run)
    if rank == 0:
        torch.save(found, folder / "saved.pt")


def restores(rank, world_size, world, parallel, folder):
    run = built(world, rank, world_size, parallel)
    Ledger("", str(folder / "state"), rank).restore("a", run)
    found = everything(run)
    train(run)
    weights = {name: whole(value) for name, value in run.towers.model.state_dict().items()}
    if rank == 0:
        torch.save((run.start_step, found, weights), folder / f"restored-{world_size}-{parallel}.pt")


def on_ranks(function, world_size, world, parallel, folder):
    if world_size == 1:
        function(0, 1, world, parallel, folder)
    else:
        names = len(list(folder.iterdir())) if folder.exists() else 0
        ranks.together(function, world_size, folder / f"store-{names}-{world_size}", world, parallel, folder)


@pytest.mark.parametrize(("world_size", "parallel"), LAYOUTS)
def test_any_layout_of_ranks_reads_what_another_wrote(world, tmp_path, world_size, parallel):
    on_ranks(saves, world_size, world, parallel, tmp_path)
    saved = torch.load(tmp_path / "saved.pt")
    undisturbed = built(world)
    train(undisturbed)
    for other_size, other in LAYOUTS:
        on_ranks(restores, other_size, world, other, tmp_path)
        step, restored, weights = torch.load(tmp_path / f"restored-{other_size}-{other}.pt")
        assert step == 2
        assert equal(restored, saved)
        torch.testing.assert_close(weights, dict(undisturbed.towers.model.state_dict()), atol=5e-5, rtol=5e-5)


def trains(rank, world_size, world, parallel, folder):
    run = built(world, rank, world_size, parallel)
    train(run)
    weights = {name: whole(value) for name, value in run.towers.model.state_dict().items()}
    if rank == 0:
        torch.save(weights, folder / "undisturbed.pt")


@pytest.mark.parametrize(("world_size", "parallel"), [*LAYOUTS, (4, "ddp")])
def test_the_same_layout_goes_on_to_the_same_bits(world, tmp_path, world_size, parallel):
    for function in (trains, saves, restores):
        on_ranks(function, world_size, world, parallel, tmp_path)
    undisturbed = torch.load(tmp_path / "undisturbed.pt")
    assert equal(torch.load(tmp_path / f"restored-{world_size}-{parallel}.pt")[2], undisturbed)


@pytest.fixture(params=["disk", "s3"])
def state(request, tmp_path):
    """A state folder on this machine's disk and on S3."""
    if request.param == "disk":
        return str(tmp_path / "state")
    return f"s3://{request.getfixturevalue('seaweed').bucket}/{tmp_path.name}/state"


def folders(state):
    """Folders that hold files: some object stores keep a name for a while."""
    return [name for name in storage.list_folders(state) if storage.list_files(storage.join(state, name))]


def test_a_checkpoint_is_of_its_moment_though_training_goes_on(world, state):
    run, ledger = trained(world, 2, state)
    then = everything(run)
    for tensor in (*run.towers.parameters(), *(t for s in run.optimizer.state.values() for t in s.values())):
        tensor.data.fill_(7)
    ledger.settle()
    restored = built(world)
    Ledger("", state, 0).restore("a", restored)
    assert restored.start_step == 2
    assert equal(everything(restored), then)


def test_the_last_so_many_are_kept_and_all_go_with_the_phase(world, state):
    run, ledger = trained(world, 2, state)
    for step in (4, 6, 8):
        ledger.checkpoint("a", step, run, [{"step": 2, "loss": 2.0}, {"step": step, "loss": 1.0}])
    ledger.settle()
    assert folders(state) == ["a.step-6", "a.step-8"]
    assert [line["step"] for line in Ledger("", state, 0, keep=2).log("a")] == [2, 8]
    ledger.finish("a", run.towers, run.towers.model.state_dict(), [{"step": 9, "loss": 0.5}])
    assert folders(state) == ["a"]
    again = Ledger("", state, 0)
    assert again.results.finished == ["a"]
    assert [line["step"] for line in again.log("a")] == [9]
    assert torch.equal(again.results["a"]["logit_scale"], run.towers.model.logit_scale)


def test_a_checkpoint_moves_the_position_by_itself(world, tmp_path):
    _, ledger = trained(world, 2, tmp_path)
    ledger._writing.done.result()
    assert not (tmp_path / "position.json").exists()
    ledger.poll()
    assert storage.read_json(str(tmp_path / "position.json")) == {"finished": [], "phase": "a", "steps": [2]}


def test_a_weight_without_gradient_is_restored_too(world, tmp_path):
    unread = {"objectives": {"reference": Term(loss=RandomReference())}}
    run, ledger = trained(world, 2, tmp_path, **unread)
    ledger.settle()
    restored = built(world, **unread)
    Ledger("", str(tmp_path), 0).restore("a", restored)
    assert equal(everything(restored), everything(run))
    assert float(restored.optimizer.state[restored.towers.model.logit_scale]["step"]) == 0


def dies_while_writing(state, run, count):
    """Write the next checkpoint in a child that is killed at its `count`-th change of a file; was it killed?"""
    child = os.fork()
    if child == 0:
        left = [count]

        def audit(event, arguments):
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (changes or writes) and str(arguments[0]).startswith(str(state)):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)

        sys.addaudithook(audit)
        ledger = Ledger("", str(state), 0, keep=1)
        ledger.checkpoint("a", 4, run, [*ledger.log("a"), {"step": 4, "loss": 0.5}])
        ledger.settle()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_kill_at_any_moment_of_writing_leaves_a_whole_state_and_no_litter(world, tmp_path):
    run, ledger = trained(world, 2, tmp_path / "before")
    ledger.settle()
    states = {2: everything(run)}
    with torch.no_grad():
        run.towers.model.logit_scale += 1
    states[4] = everything(run)
    found, count = [], 1
    while True:
        state = tmp_path / str(count)
        shutil.copytree(tmp_path / "before", state)
        if not dies_while_writing(state, run, count):
            break
        restored = built(world)
        after = Ledger("", str(state), 0, keep=1)
        after.restore("a", restored)
        assert equal(everything(restored), states[restored.start_step])
        assert [line["step"] for line in after.log("a")] == list(range(2, restored.start_step + 1, 2))
        assert storage.list_folders(str(state)) == [f"a.step-{restored.start_step}"]
        assert {name for name, _ in storage.list_files(str(state))} == {"a.log.jsonl", "position.json"}
        found.append(restored.start_step)
        count += 1
    assert found == sorted(found)
    assert set(found) == {2, 4}
    assert len(found) > 8


def full_disk(_rank, _world_size, world, _parallel, folder):
    rank = int(_rank)
    run = built(world, rank, int(_world_size))
    ledger = Ledger("", str(folder / "state"), rank)
    (folder / "state" / "a.step-2").mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    if rank == 1:
        (folder / "state" / "a.step-2" / "__1_0.distcp").symlink_to("/dev/full")
    torch.distributed.barrier()
    ledger.checkpoint("a", 2, run, [])
    with pytest.raises(StorageError, match="cannot write: no space left"):
        ledger.settle()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_on_one_rank_is_an_error_on_all(world, tmp_path):
    on_ranks(full_disk, 2, world, "ddp", tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_with_its_place(world, tmp_path):
    run, ledger = built(world), Ledger("", str(tmp_path), 0)
    (tmp_path / "a.step-2").write_text("a file where the checkpoint must be")
    ledger.checkpoint("a", 2, run, [])
    with pytest.raises(StorageError, match=r"a\.step-2: cannot write: a file is where a folder must be"):
        ledger.settle()
    ledger.settle()  # said once
    assert not (tmp_path / "position.json").exists()


def test_the_best_weights_are_those_of_the_log_up_to_the_position(world, state):
    run = built(world)
    ledger = Ledger("", state, 0, keep=1)
    log = []

    def validated(step, loss):
        with torch.no_grad():
            run.towers.model.logit_scale.fill_(step / 10)
        log.append({"step": step, "validation_loss": loss})
        if best_step(log) == step:
            ledger.keep_best("a", step, run.towers, run.towers.model.state_dict())

    def best():
        return sorted(name for name in folders(state) if "best" in name)

    validated(1, 3.0)
    validated(2, 2.0)
    ledger.checkpoint("a", 2, run, log)
    validated(3, 1.0)  # ahead of the position
    ledger.settle()
    assert best() == ["a.best-2", "a.best-3"]
    again = Ledger("", state, 0)
    assert best() == ["a.best-2"]
    assert float(again.best("a", again.log("a"))["logit_scale"]) == pytest.approx(0.2)
    ledger = again
    log = again.log("a")
    validated(3, 1.0)
    validated(4, 1.0)  # no improvement
    ledger.checkpoint("a", 4, run, log)
    ledger.settle()
    assert best() == ["a.best-3"]
    ledger.finish("a", run.towers, ledger.best("a", log), log)
    assert best() == []
    assert float(load_towers(storage.join(state, "a")).model.logit_scale.detach()) == pytest.approx(0.3)
