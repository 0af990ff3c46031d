"""What a device can reach at best, from its maker's data sheet, or measured where no table knows it.

FLOP/s are dense (without structured sparsity). The table needs no torch.
"""

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_TERA = 1e12
_GB = 10**9
_MEASURE_SECONDS = 0.2


class Device(NamedTuple):
    """One kind of GPU. Dense FLOP/s of matrix products; 0 where it has no such unit."""

    pattern: str  # of the name that the driver gives, lower case
    bf16: float
    tf32: float
    float32: float
    memory_bytes: int
    source: str


def _device(pattern: str, bf16: float, tf32: float, float32: float, memory_gb: int, source: str) -> Device:
    return Device(pattern, bf16 * _TERA, tf32 * _TERA, float32 * _TERA, memory_gb * _GB, source)


# The first pattern that is found in the name counts. bf16 with float32 accumulation, which is what torch asks for.
DEVICES = (
    _device(r"gb200", 2500, 1250, 80, 186, "NVIDIA GB200 data sheet"),
    _device(r"b200", 2250, 1100, 75, 180, "NVIDIA HGX B200 data sheet"),
    _device(r"gh200", 990, 494, 67, 96, "NVIDIA GH200 data sheet"),
    _device(r"h200 nvl", 835, 417, 60, 141, "NVIDIA H200 data sheet"),
    _device(r"h200", 989, 494, 67, 141, "NVIDIA H200 data sheet"),
    _device(r"h100 nvl", 835, 417, 60, 94, "NVIDIA H100 data sheet"),
    _device(r"h100 pcie", 756, 378, 51, 80, "NVIDIA H100 data sheet"),
    _device(r"h100", 989, 494, 67, 80, "NVIDIA H100 data sheet"),
    _device(r"a100.*80gb|a800.*80gb", 312, 156, 19.5, 80, "NVIDIA A100 data sheet"),
    _device(r"a100|a800", 312, 156, 19.5, 40, "NVIDIA A100 data sheet"),
    _device(r"l40s", 362, 183, 91.6, 48, "NVIDIA L40S data sheet"),
    _device(r"l40", 181, 90.5, 90.5, 48, "NVIDIA L40 data sheet"),
    _device(r"l4\b", 121, 60, 30.3, 24, "NVIDIA L4 data sheet"),
    _device(r"a10g", 70, 35, 31.5, 24, "NVIDIA A10G data sheet"),
    _device(r"a10\b", 125, 62.5, 31.2, 24, "NVIDIA A10 data sheet"),
    _device(r"a30\b", 165, 82, 10.3, 24, "NVIDIA A30 data sheet"),
    _device(r"a40\b", 149.7, 74.8, 37.4, 48, "NVIDIA A40 data sheet"),
    _device(r"\bt4\b", 0, 0, 8.1, 16, "NVIDIA T4 data sheet"),
    _device(r"v100.*32gb", 0, 0, 15.7, 32, "NVIDIA V100 data sheet"),
    _device(r"v100", 0, 0, 15.7, 16, "NVIDIA V100 data sheet"),
    _device(r"rtx 6000 ada", 364, 182, 91.1, 48, "NVIDIA RTX 6000 Ada data sheet"),
    _device(r"rtx a6000", 154.8, 77.4, 38.7, 48, "NVIDIA RTX A6000 data sheet"),
    _device(r"rtx 5090", 209.5, 104.8, 104.8, 32, "NVIDIA RTX Blackwell architecture paper"),
    _device(r"rtx 4090", 165.2, 82.6, 82.6, 24, "NVIDIA Ada architecture paper"),
    _device(r"rtx 3090", 71, 35.6, 35.6, 24, "NVIDIA Ampere GA102 architecture paper"),
    _device(r"mi300x", 1307, 654, 163.4, 192, "AMD Instinct MI300X data sheet"),
    # one of the two dies of a module, which is what torch calls a device
    _device(r"mi250x", 191.5, 0, 47.9, 64, "AMD Instinct MI250X data sheet"),
    _device(r"mi250", 181, 0, 45.3, 64, "AMD Instinct MI250 data sheet"),
)


class Peak(NamedTuple):
    """The most a device can do, and how that is known: a data sheet, or "measured"."""

    flops_per_second: float
    source: str


def find_device(name: str) -> Device | None:
    """The table's row for a device's name, e.g. "NVIDIA H100 80GB HBM3"."""
    return next((device for device in DEVICES if re.search(device.pattern, name.lower())), None)


def peak(device: "torch.device", dtype: "torch.dtype") -> Peak:
    """Best FLOP/s of matrix products in `dtype` on a device: the table's, or those of a short product (under 0.3 s)."""
    import torch

    if device.type == "cuda":
        row, exact = find_device(torch.cuda.get_device_name(device)), torch.get_float32_matmul_precision() == "highest"
        column = {torch.bfloat16: "bf16", torch.float32: "float32" if exact else "tf32"}.get(dtype)
        if row and column and getattr(row, column):
            return Peak(getattr(row, column), f"{row.source}, dense {column}")
    return Peak(_measured(str(device), dtype, torch.get_num_threads()), "measured")


@lru_cache
def _measured(device: str, dtype: "torch.dtype", threads: int) -> float:
    """The best of as many products as fit into the time; `threads` is only part of the cache's key."""
    import torch

    del threads
    side, best, started = 4096 if device.startswith("cuda") else 768, 0.0, time.perf_counter()
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    matrix @ matrix  # the first one sets the library up
    while time.perf_counter() - started < _MEASURE_SECONDS or not best:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        before = time.perf_counter()
        matrix @ matrix
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - before))
    return best
