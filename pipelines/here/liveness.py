"""Whether the process that runs a run still lives: for a record that says `running` and may say so for ever.

A process is named by the machine's boot, its process namespace, its id and the moment it started, so that neither a
reused id nor another machine's or container's process is taken for it. The name holds no host name.
"""

import os
from pathlib import Path

_START = 19  # of the fields behind the command in /proc/PID/stat: start time in ticks since boot


def this_process() -> str | None:
    """Name of this process; None where there is no /proc."""
    start = _started(os.getpid())
    return None if start is None else f"{_here()}/{os.getpid()}/{start}"


def is_alive(process: str | None) -> bool | None:
    """Whether a process lives; None where that cannot be known from here (another machine, a container, a reboot)."""
    place, _, rest = (process or "").rpartition("/")
    place, _, number = place.rpartition("/")
    if not number.isdigit() or place != _here():
        return None
    return _started(int(number)) == rest


def _here() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _started(number: int) -> str | None:
    """When a process started; None where there is none, or only what its parent has not yet buried."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[_START]
