"""A rank that stands still becomes a message that says where, doing what, and for whom it waits."""

import os
import runpy
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from training import watchdog
from training.watchdog import Watchdog

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "watchdog"]


def hang(event):
    event.wait(30)


def test_a_loop_that_hangs_is_told_with_its_step_pairs_and_line():
    said, event = [], threading.Event()

    def on_stall(message):
        said.append(message)
        event.set()

    with Watchdog(3, 1, 0.3, on_stall) as dog:
        dog.now("step 7", "18 pairs, uid 'a' to 'r'")
        dog.now("step 7, forward")
        hang(event)
    assert len(said) == 1
    assert said[0].startswith("rank 3 stands still for ")
    assert "s: step 7, forward (18 pairs, uid 'a' to 'r'), in wait (threading.py:" in said[0]
    assert "\n" not in said[0]


def test_it_is_quiet_while_beats_come_and_speaks_when_they_stop(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    said, event = [], threading.Event()

    def on_stall(message):
        said.append(message)
        event.set()

    with Watchdog(0, 1, 0.1, on_stall) as dog:
        for step in range(40):
            clock[0] += 0.09
            time.sleep(0.02)  # it looks every 0.01 s
            dog.now(f"step {step}")
        assert said == []
        clock[0] += 0.11
        event.wait(30)
    assert "step 39" in said[0]


def test_it_ends_when_it_is_left_and_starts_anew(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    dog = Watchdog(0, 1, 0.1, said.append)
    for _ in range(2):
        with dog:
            assert len(watchers()) == 1
        assert watchers() == []
        clock[0] += 100  # nobody looks, and the time outside is not counted
    assert said == []


def test_it_ends_with_an_error_of_the_loop():
    with pytest.raises(KeyboardInterrupt), Watchdog(0, 1, 60, print):
        raise KeyboardInterrupt
    assert watchers() == []


STOPS = {
    "sleep": lambda: time.sleep(60),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "store": lambda: dist.distributed_c10d._get_default_store().wait(["never"]),  # as NCCL's first collective may
}


def rank_of_a_job(rank, _world_size, folder, sleeper, how):
    """The sleeper stops in its second step, the others wait for it in a collective."""

    def on_stall(message):
        (folder / f"{rank}.txt.part").write_text(message)
        (folder / f"{rank}.txt.part").rename(folder / f"{rank}.txt")
        time.sleep(60)  # the test ends all

    with Watchdog(rank, 3, 1.5, on_stall) as dog:
        for step in (1, 2):
            dog.now(f"step {step}, data", f"pairs of rank {rank}")
            if rank == sleeper and step == 2:
                time.sleep(0.5)  # its last sign goes out
                STOPS[how]()
            dog.now(f"step {step}, forward")
            dist.barrier()


@pytest.fixture
def told(tmp_path):
    """What the ranks of a job say when one of them stops."""
    made = []

    def run(sleeper, how, speakers):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        store = f"tcp://127.0.0.1:{port}"  # as Ray's: a server in rank 0
        made.append(ranks.started(rank_of_a_job, 3, store, tmp_path, sleeper, how))
        files = {rank: tmp_path / f"{rank}.txt" for rank in speakers}
        while not all(file.exists() for file in files.values()):  # pytest's time limit ends what never comes
            time.sleep(0.05)
        return {rank: file.read_text() for rank, file in files.items()}

    yield run
    for context in made:
        for process in context.processes:
            process.kill()
        for process in context.processes:
            process.join()


@pytest.mark.timeout(60)
def test_those_who_wait_in_a_collective_name_the_one_that_sleeps(told):
    said = told(1, "sleep", (0, 1, 2))
    for rank in (0, 2):
        assert said[rank].startswith(f"rank {rank} stands still for ")
        assert f"step 2, forward (pairs of rank {rank}), in barrier (" in said[rank]
        assert "; it waits for rank 1: step 2, data (pairs of rank 1), in <lambda> (" in said[rank]
        assert f"rank {2 - rank}:" not in said[rank]
    assert "step 2, data (pairs of rank 1), in <lambda> (test_watchdog.py:" in said[1]
    assert said[1].endswith("; the others wait for it")


@pytest.mark.timeout(60)
def test_a_rank_that_waits_in_the_store_can_speak_too(told):
    said = told(1, "store", (0, 1))
    assert "it waits for rank 1: step 2, data (pairs of rank 1)" in said[0]
    assert "step 2, data (pairs of rank 1), in <lambda> (test_watchdog.py:" in said[1]
    assert said[1].endswith("; the others wait for it")  # which it asks of the store over a connection of its own


@pytest.mark.timeout(60)
def test_a_stopped_process_is_named_by_the_others(told):
    said = told(2, "stop", (0, 1))
    for rank in (0, 1):
        assert "; it waits for rank 2: step 2, data (pairs of rank 2), in " in said[rank]


@pytest.mark.timeout(60)
def test_a_stopped_process_that_holds_the_store_is_named_too(told):
    said = told(0, "stop", (1, 2))
    for rank in (1, 2):
        assert said[rank].endswith("the ranks' store does not answer: the process of rank 0 stands still or is gone")
