"""What a process had left of its machine when it failed: memory, its limits and who was killed for it, disk, GPUs."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from data import storage
from data.place import usable_cpus
from data.spec import Spec
from training.machine import available_memory, free_disk

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written


class Resources(Spec):
    """A look at a process and its machine. None or empty: the system does not say."""

    cpus: int
    memory_available_bytes: int | None = None
    memory_limit_bytes: int | None = Field(default=None, description="of the container or control group")
    memory_peak_bytes: int | None = Field(default=None, description="most that the control group ever had")
    process_peak_bytes: int | None = Field(default=None, description="most that this process had resident")
    children_peak_bytes: int | None = Field(default=None, description="most that one of its ended children had")
    oom_kills: dict[str, int] = Field(default_factory=dict, description="counters of processes killed for memory")
    free_disk_bytes: dict[str, int] = Field(default_factory=dict, description="folder -> free")
    gpus: tuple[str, ...] = Field(default=(), description="each with its memory")


def look(root: str, proc: Path = _PROC, cgroup: Path = _CGROUP) -> Resources:
    """Look at this process and its machine now; `root` is where artifacts go."""
    groups = list(_groups(proc, cgroup))
    limits = [value for folder in groups if (value := _first(folder, "memory.max", "memory.limit_in_bytes"))]
    peaks = [value for folder in groups[:1] if (value := _first(folder, "memory.peak", "memory.max_usage_in_bytes"))]
    return Resources(
        cpus=usable_cpus(),
        memory_available_bytes=available_memory(proc, cgroup),
        memory_limit_bytes=min((limit for limit in limits if limit < 1 << 60), default=None),  # v1 writes 2^63 for none
        memory_peak_bytes=peaks[0] if peaks else None,
        **_own_peaks(),
        oom_kills=oom_kills(proc, cgroup),
        free_disk_bytes=_disks(root),
        gpus=tuple(_gpus()),
    )


def oom_kills(proc: Path = _PROC, cgroup: Path = _CGROUP) -> dict[str, int]:
    """Processes killed for memory so far: by the kernel anywhere (`kernel`), in our control group (`control group`)."""
    found = {}
    own = next(iter(_groups(proc, cgroup)), None)
    for name, path in {
        "kernel": proc / "vmstat",
        **({} if own is None else {"control group": own / "memory.events"}),
        **({} if own is None else {"control group (v1)": own / "memory.oom_control"}),
    }.items():
        counts = dict(line.split()[:2] for line in _lines(path) if len(line.split()) >= 2)
        if counts.get("oom_kill", "").isdigit():
            found[name] = int(counts["oom_kill"])
    return found


def _groups(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Folders of the memory control groups of this process, its own first."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = cgroup if not controllers else cgroup / "memory"
        folder = base / path.strip("/")
        for level in (folder, *(up for up in folder.parents if up.is_relative_to(base))):
            if level.is_dir() and any(level.glob("memory.*")):
                yield level


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not every system has it
        return []


def _first(folder: Path, *names: str) -> int | None:
    texts = ("".join(_lines(folder / name)).strip() for name in names)
    return next((int(text) for text in texts if text.isdigit()), None)


def _own_peaks() -> dict[str, int]:
    try:
        import resource
    except ImportError:  # no POSIX system
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"process_peak_bytes": own.ru_maxrss * unit, "children_peak_bytes": children.ru_maxrss * unit}


def _disks(root: str) -> dict[str, int]:
    folders = {tempfile.gettempdir(): None, str(_SHM): None} if _SHM.is_dir() else {tempfile.gettempdir(): None}
    found = {folder: shutil.disk_usage(folder).free for folder in folders}
    free = free_disk(root)
    return found if free is None else {storage.normalise(root): free, **found}


def _gpus() -> Iterator[str]:
    """GPUs that this process computed on; one that never did is not woken up to be asked."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        most = torch.cuda.max_memory_allocated(number)
        name = torch.cuda.get_device_name(number)
        yield f"{name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free, tensors had {most / 1e9:.1f} GB at most"


def process_table(proc: Path = _PROC) -> dict[int, tuple[int, int, int, str]]:
    """Process id -> (parent, process group, resident bytes, name) of what runs here now; empty without /proc."""
    found, page = {}, os.sysconf("SC_PAGE_SIZE")
    for folder in proc.glob("[0-9]*"):
        text = "".join(_lines(folder / "stat"))
        head, _, rest = text.rpartition(")")
        fields = rest.split()
        if len(fields) > 21:
            name = head.partition("(")[2]
            found[int(folder.name)] = (int(fields[1]), int(fields[2]), int(fields[21]) * page, name)
    return found
