"""What this machine has, read without torch: memory, disk, GPUs; and whether training would run on it at all."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from data import storage
from data.errors import StorageError

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """Bytes of memory that new processes can have: what is available, or what a container's limit leaves of it.

    None where the system does not say (no /proc).
    """
    found = [value for value in (_mem_available(proc), *_left_in_cgroups(proc, cgroup)) if value is not None]
    return min(found, default=None)


def _mem_available(proc: Path) -> int | None:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_cgroups(proc: Path, cgroup: Path) -> Iterator[int]:
    """What each limit above this process leaves; reclaimable file cache counts as free."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        is_v2 = not controllers
        base = cgroup if is_v2 else cgroup / "memory"
        folder = base / path.strip("/")
        # inside a container the path is often that of the host, and the limit lies at the mount itself
        for level in dict.fromkeys([folder, *(up for up in folder.parents if up.is_relative_to(base)), base]):
            limit = _number(level / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
            used = _number(level / ("memory.current" if is_v2 else "memory.usage_in_bytes"))
            if limit is not None and used is not None:
                yield max(0, limit - used + _inactive_file(level / "memory.stat"))


def _inactive_file(path: Path) -> int:
    values = dict(line.split() for line in _lines(path) if len(line.split()) == 2)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    """The number in a small file; None for `max` and for a file that is not there."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def nearest_folder(root: str) -> str:
    """The folder of a local root, or the nearest one above it that is there already."""
    path = Path(storage.normalise(root))
    return str(next(folder for folder in (path, *path.parents) if folder.exists()))


def free_disk(root: str) -> int | None:
    """Free bytes where a local root is or will be; None for object storage."""
    return shutil.disk_usage(nearest_folder(root)).free if storage.is_local(root) else None


def why_not_writable(root: str) -> str | None:
    """None if an object can be put below the root and removed again, else what storage says of it, in one line.

    A local root that is not there yet is not made: the nearest folder above it is tried.
    """
    folder = nearest_folder(root) if storage.is_local(root) else root
    probe = storage.join(folder, f".preflight-{os.getpid()}")
    try:
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except StorageError as error:
        return str(error)
    return None


def visible_gpus(proc: Path = _PROC, dev: Path = Path("/dev")) -> list[str] | None:
    """Model names of the NVIDIA GPUs that CUDA may use, "" for one whose name is not told; None where it is not known.

    The driver's folder says which there are, CUDA_VISIBLE_DEVICES how many of them this process may use.
    """
    folder = proc / "driver" / "nvidia" / "gpus"
    names = [_model(path) for path in sorted(folder.glob("*/information"))] if folder.is_dir() else []
    names = names or [""] * len([path for path in dev.glob("nvidia*") if path.name[6:].isdigit()])
    if not names and (dev / "kfd").exists():
        return None  # AMD's: present, and not described here
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return names
    wanted = [entry.strip() for entry in chosen.split(",") if entry.strip()]
    allowed = wanted[: wanted.index("-1")] if "-1" in wanted else wanted  # CUDA stops reading at the first bad one
    return [names[int(entry)] if entry.isdigit() else names[0] for entry in allowed if _is_there(entry, names)]


def _is_there(entry: str, names: list[str]) -> bool:
    return int(entry) < len(names) if entry.isdigit() else bool(names)


def _model(path: Path) -> str:
    return next((line.partition(":")[2].strip() for line in _lines(path) if line.startswith("Model:")), "")


def has_bf16_cpu(proc: Path = _PROC) -> bool:
    """True where the processor multiplies bf16 by itself."""
    flags = next((line for line in _lines(proc / "cpuinfo") if line.startswith(("flags", "Features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def has_compiler() -> bool:
    """True where a C++ compiler can be called."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def trains_elsewhere() -> str | None:
    """The address of the Ray cluster that would train, if that is another machine; its resources are not seen here."""
    address = os.environ.get("RAY_ADDRESS", "")
    if "CLIPWORKS_IN_RAYJOB" in os.environ:  # this is the head, which only leads: its workers are other pods
        return address or "auto"
    if not address or address in ("local", "auto"):
        return None
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))  # only an address of this machine can be bound
    except OSError:
        return address
    return None
