"""The right to make one thing on object storage, which has no locks: an object that shows signs of life.

The holder writes it again every few seconds; who finds it watches for a change. A holder of this machine whose process
is gone has lost it at once, one of another machine after WATCHES seconds without a sign. Should two hold it after all
(a network that was away for so long), the conditional write of the record still lets only one of them commit.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data import storage
from data.errors import BusyError, StorageError

BEAT_SECONDS = 10.0
WATCHES = 45  # looks, a second apart, without a sign of life: four beats and a half
_SETTLE_SECONDS = 2.0  # longer than between looking and writing, so that of two who take over only the last goes on


@contextmanager
def lease(uri: str, name: str) -> Iterator[None]:
    """Hold the object at `uri` while the block runs.

    Raises:
        BusyError: another process holds it and is alive.
    """
    mine = {"owner": uuid.uuid4().hex, "process": _process(os.getpid())}
    _take(uri, name, mine)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(uri, mine, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join(1.0)
        with suppress(StorageError):  # must not hide what went wrong first; what stays here shows no more life
            _let_go(uri, mine)


def _let_go(uri: str, mine: dict[str, str]) -> None:
    found = _read(uri)
    if found is not None and found.get("owner") == mine["owner"]:
        storage.remove(uri)


def _take(uri: str, name: str, mine: dict[str, str]) -> None:
    content = json.dumps({**mine, "beat": 0}).encode()
    while not storage.create_bytes(uri, content):
        found = _read(uri)
        if found is None:
            continue  # let go in this moment
        if not _is_gone(found) and _shows_life(uri, found):
            raise BusyError(f"{name}: another run is making this artifact; wait for it or end it")
        storage.write_bytes(uri, content)
        time.sleep(_SETTLE_SECONDS)
        taken = _read(uri)
        if taken is not None and taken.get("owner") == mine["owner"]:
            return


def _shows_life(uri: str, found: dict[str, str]) -> bool:
    """Whether the object changes, or goes, while we look; a look that fails is none."""
    for _ in range(WATCHES):
        time.sleep(1.0)
        now = _read(uri)
        if now != found:
            return now is not None
    return False


def _beat(uri: str, mine: dict[str, str], ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        try:
            found = _read(uri)
            if found is None or found.get("owner") != mine["owner"]:
                return  # taken over; the commit tells
            storage.write_bytes(uri, json.dumps({**mine, "beat": beat}).encode())
        except StorageError:
            continue  # the stage itself meets the same storage, and says so


def _read(uri: str) -> dict[str, str] | None:
    content = storage.read_if_there(uri)
    try:
        value = {} if content is None else json.loads(content)
    except ValueError:
        value = {}
    return None if content is None else value if isinstance(value, dict) else {}


def _process(pid: int) -> str:
    """Names a process as no other that ever runs here, or in another container of this machine; empty if it is gone."""
    try:
        space = Path("/proc/self/ns/pid").readlink()
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
    return f"{socket.gethostname()} {space} {pid} {started}"


def _is_gone(found: dict[str, str]) -> bool:
    """True for a process of this machine, as seen from here, that runs no more."""
    parts = str(found.get("process", "")).split()
    ours = _process(os.getpid()).split()
    if len(parts) != 4 or parts[:2] != ours[:2]:
        return False
    return _process(int(parts[2])).split() != parts
