"""What is seen of a run's processes from outside: how a step ended, how much memory they had, who was killed for it.

A step that is killed says nothing itself, so whoever started it must have looked.
"""

import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from components.resources import oom_kills, process_table

_LOOK_SECONDS = 2.0
_MOST_PROCESSES = 6
_CONTAINER_SIGNAL = 128  # a shell and a container add it to the number of the signal
ENDING_FILE = "ending.json"

Run = Callable[[list[str], dict[str, str] | None], int]


class Process(NamedTuple):
    """One process at one moment."""

    name: str
    pid: int
    resident_bytes: int


class Ending(NamedTuple):
    """What was seen of a run's processes. `exit_code` is that of the step that failed; below 0: minus its signal."""

    exit_code: int | None = None
    killed: dict[str, int] = {}  # noqa: RUF012 - counter -> processes killed for memory while the run lasted
    most: tuple[Process, ...] = ()  # those with most memory when all together had most
    most_bytes: int = 0


def noted(run: Run, folder: Path) -> Run:
    """Start steps as `run` does, and write down the exit code of one that fails."""

    def start(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        code = run(full_command, env_vars)
        if code:
            (folder / ENDING_FILE).write_text(json.dumps({"exit": code, "time": time.time()}))
        return code

    return start


class Watch:
    """Looks at the memory of a process and all below it from time to time."""

    def __init__(self, pid: int) -> None:
        self._pid, self._before, self._next = pid, oom_kills(), 0.0
        self._most: tuple[Process, ...] = ()
        self._most_bytes = 0

    def look(self) -> None:
        """Look, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK_SECONDS
        found = sorted(_below(self._pid, process_table()), key=lambda one: -one.resident_bytes)
        total = sum(one.resident_bytes for one in found)
        if total > self._most_bytes:
            named = (one._replace(name=_label(one)) for one in found[:_MOST_PROCESSES])
            self._most, self._most_bytes = tuple(named), total

    def ending(self, logs: Path) -> Ending:
        """What was seen, with the exit code that was written down below `logs`."""
        path = logs / ENDING_FILE
        code = int(json.loads(path.read_text())["exit"]) if path.exists() else None
        after = oom_kills()
        killed = {name: count - self._before.get(name, 0) for name, count in after.items()}
        return Ending(code, {name: n for name, n in killed.items() if n > 0}, self._most, self._most_bytes)


def _label(one: Process, proc: Path = Path("/proc")) -> str:
    """What a process runs: the module where Python runs one, else the name that the kernel has."""
    try:
        words = (proc / str(one.pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:  # ended meanwhile
        return one.name
    return words[words.index("-m") + 1] if "-m" in words[:-1] else one.name


def _below(pid: int, table: Mapping[int, tuple[int, int, int, str]]) -> list[Process]:
    """A process, its descendants, and what else is in its group (whose parents may be gone)."""
    found = []
    for one, (_, group, resident, name) in table.items():
        if group == pid or _descends(one, pid, table):
            found.append(Process(name, one, resident))
    return found


def _descends(pid: int, ancestor: int, table: Mapping[int, tuple[int, int, int, str]]) -> bool:
    seen: set[int] = set()
    while pid in table and pid not in seen:
        if pid == ancestor:
            return True
        seen.add(pid)
        pid = table[pid][0]
    return False


def signal_of(exit_code: int | None) -> str | None:
    """The name of the signal that ended a process, None where none did."""
    if exit_code is None:
        return None
    number = -exit_code if exit_code < 0 else exit_code - _CONTAINER_SIGNAL
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def verdict(ending: Ending) -> tuple[str, list[str]]:
    """How a step ended that left no word of its own: one line, and what speaks for it."""
    name = signal_of(ending.exit_code)
    told = [
        f"{count} process{'es were' if count > 1 else ' was'} killed for memory during the run ({where})"
        for where, count in ending.killed.items()
    ]
    if name == "SIGKILL":
        if told:
            return "killed by SIGKILL: out of memory", told
        none = (
            "the kernel's counters of processes killed for memory did not move: somebody or something sent the signal"
        )
        return "killed by SIGKILL", [none]
    if name is not None:
        means = {"SIGSEGV": "a crash in native code", "SIGBUS": "a crash; often /dev/shm or the disk is full"}
        return f"ended by {name}" + (f": {means[name]}" if name in means else ""), told
    code = "without a word" if ending.exit_code is None else f"with exit code {ending.exit_code}, without a word"
    return f"ended {code}", told
