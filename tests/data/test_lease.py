"""Two runs on one bucket: one makes, the other is told; a killed one lets go; the first record counts."""

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from data import lease as lease_module
from data import storage
from data.artifacts import Output, Record, find_fingerprint, open_artifact
from data.errors import ArtifactError, BusyError
from data.lease import lease

PRINT = "0" * 64
_HOLD = """
import signal, sys
from data import lease
from data.artifacts import Output
lease.BEAT_SECONDS = 0.1
with Output(sys.argv[1], "ingest", "0" * 64).lock():
    print("locked", flush=True)
    signal.pause()
"""


@pytest.fixture
def root(seaweed: Any) -> str:
    return f"s3://{seaweed.bucket}/{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "WATCHES", 3)
    monkeypatch.setattr(lease_module, "_SETTLE_SECONDS", 0.1)


@pytest.fixture
def holder(root: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", _HOLD, root], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def record_of(**fields: Any) -> Record:
    return Record(kind="shard_set", stage="ingest", revision=1, fingerprint=PRINT, config={}, **fields)


def held(root: str, **change: str) -> str:
    """A lease that somebody left, changed so that it is not from this machine."""
    uri = storage.join(root, "x.lock")
    storage.write_json(uri, {"owner": "somebody", "process": "another-machine pid:[1] 7 7", "beat": 3, **change})
    return uri


def test_a_second_process_is_told_and_a_killed_one_lets_go(root: str, holder: subprocess.Popen[str]) -> None:
    out = Output(root, "ingest", PRINT)
    with pytest.raises(BusyError, match="another run is making this artifact; wait for it or end it"), out.lock():
        pytest.fail("two processes hold one lease")
    with Output(root, "ingest", "1" * 64).lock():
        pass  # another artifact of the same stage is free
    holder.kill()
    holder.wait(10)
    with out.lock():  # at once: its process is of this machine and gone
        storage.write_bytes(out.at("x"), b"x")
    assert storage.list_files(storage.join(root, ".partial"), recursive=True) == []


def test_a_holder_on_another_machine_that_shows_no_life_has_lost_it(root: str) -> None:
    uri = held(root)
    with lease(uri, "x"):
        assert storage.read_json(uri)["owner"] != "somebody"
    assert not storage.exists(uri)


def test_a_holder_on_another_machine_that_shows_life_keeps_it(root: str) -> None:
    uri, ended = held(root), threading.Event()

    def live() -> None:
        beat = 4
        while not ended.wait(0.1):
            held(root, beat=str(beat))
            beat += 1

    other = threading.Thread(target=live)
    other.start()
    with pytest.raises(BusyError), lease(uri, "x"):
        pytest.fail("taken from somebody who is alive")
    ended.set()
    other.join()
    assert storage.read_json(uri)["owner"] == "somebody"


def test_a_damaged_lease_is_no_holder(root: str) -> None:
    uri = storage.join(root, "x.lock")
    storage.write_bytes(uri, b"{")
    with lease(uri, "x"):
        pass
    assert not storage.exists(uri)


def test_who_lost_the_lease_does_not_take_the_new_holder_s_away(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.05)
    uri = storage.join(root, "x.lock")
    with lease(uri, "x"):
        for _ in range(20):
            held(root)
            time.sleep(0.3)
            if storage.read_json(uri)["owner"] == "somebody":
                break  # no beat was under way that came after it
    assert storage.read_json(uri)["owner"] == "somebody"


def test_the_second_to_commit_uses_what_the_first_made(root: str) -> None:
    outs = [Output(root, name, PRINT) for name in ("pairs", "pairs")]  # both lost their leases, or never had one
    for out in outs:
        storage.write_bytes(out.at("x"), b"same")
    first = outs[0].commit(record_of(counts={"pairs": 1}))
    second = outs[1].commit(record_of(counts={"pairs": 2}))
    assert second.record == first.record == open_artifact(first.uri).record


def test_two_that_made_different_bytes_are_not_mixed_in_silence(root: str) -> None:
    outs = [Output(root, "pairs", PRINT), Output(root, "pairs", PRINT)]
    storage.write_bytes(outs[0].at("x"), b"one")
    outs[0].commit(record_of())
    storage.write_bytes(outs[1].at("x"), b"two")
    with pytest.raises(ArtifactError, match="another run finished this artifact meanwhile, with other bytes"):
        outs[1].commit(record_of())


def test_state_of_a_run_that_was_killed_right_behind_its_commit_goes(root: str) -> None:
    out = Output(root, "pairs", PRINT)
    storage.write_bytes(out.at("x"), b"x")
    out.commit(record_of())
    storage.write_bytes(storage.join(out.state_uri, "position"), b"1")
    out.discard()
    assert storage.list_files(out.state_uri, recursive=True) == []
    assert find_fingerprint(root, PRINT) is not None
