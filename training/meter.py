"""Where a step's time goes, how fast pairs pass and what part of the device's peak that is; and a trace to look into.

A span costs about a microsecond on a CPU and two event records on a GPU; nothing waits for the device until a reading.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist

from data import storage
from training.devices import peak

DATA, FORWARD = "data", "forward"
_SKIPPED_STEPS = 2  # the first steps of a phase set up memory and kernels


class HostSpan:
    """Adds up the host's time inside."""

    def __init__(self) -> None:
        self.seconds, self.entered, self._began = 0.0, 0, 0.0

    def __enter__(self) -> None:
        self.entered += 1
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self.seconds, self.entered = self.seconds, 0.0, 0
        return seconds


class DeviceSpan:
    """Adds up the GPU's time between two events on the current stream."""

    def __init__(self) -> None:
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._begun: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        self._begun = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._begun.record()

    def __exit__(self, *_: object) -> None:
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended.record()
        assert self._begun is not None
        self._pairs.append((self._begun, ended))

    def take(self) -> float:
        """Seconds since the last call; waits until the GPU has passed the last event."""
        pairs, self._pairs = self._pairs, []
        if pairs:
            pairs[-1][1].synchronize()
        return float(sum(begun.elapsed_time(ended) for begun, ended in pairs)) / 1000


class Meter:
    """Times the parts of steps and counts what they compute.

    A step begins with the span `data`, which is the host's time whatever the device: the wait for a batch.
    """

    def __init__(
        self, flops_per_pair: Callable[..., int | None], device: torch.device, world_size: int,
        autocast: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """`flops_per_pair`: tokens of a pair's texts -> its model FLOPs in training, or None where not counted."""
        self.flops_per_pair, self.device, self.world_size = flops_per_pair, device, world_size
        self.peak = peak(device, autocast or torch.float32)
        self._data = HostSpan()
        self._spans: dict[str, HostSpan | DeviceSpan] = {DATA: self._data}
        self._flops: int | None = 0
        self._since: float | None = None

    def span(self, name: str) -> AbstractContextManager[None]:
        """A part of a step; parts of one name are added up."""
        if self._since is None:
            self._since = time.perf_counter()
        if name not in self._spans:
            self._spans[name] = DeviceSpan() if self.device.type == "cuda" else HostSpan()
        return self._spans[name]

    def saw(self, pairs: int, *text_tokens: int) -> None:
        """Count the computing of pairs whose texts came as so many tokens each; once, however often they pass."""
        flops = self.flops_per_pair(*text_tokens)
        self._flops = None if flops is None or self._flops is None else self._flops + flops * pairs

    def reading(self, pairs: int) -> dict[str, float]:
        """What was measured since the last reading; `pairs` are those of one step of this rank. Every rank calls it.

        `pairs_per_second` counts all ranks, `rank_pairs_per_second` this one, with `_min`, `_mean` and `_max` over
        ranks; `seconds_<span>` are per step; `data_wait_fraction` is the wait for batches in all time, on this rank;
        `memory_bytes` is the peak allocated (CUDA) or the resident set (CPU) of the rank that has most.
        `flops_per_second` and `mfu` are this rank's *model* FLOPs (three forward passes, nothing recomputed, captions
        as long as they came) and their part of the device's peak; absent where they are not counted.
        `slowest_rank` has most time in data and forward, before ranks first wait for each other, and is
        `slowest_rank_lag_seconds` a step behind their mean.
        """
        now, steps = time.perf_counter(), self._data.entered
        assert self._since is not None, "a reading before the first step"
        assert steps, "a reading without a step since the last one"
        elapsed, self._since = now - self._since, now
        seconds = {name: span.take() / steps for name, span in self._spans.items()}
        rate = pairs * steps / elapsed
        own = seconds[DATA] + seconds.get(FORWARD, 0.0)
        return {
            **over_ranks(self._gathered([rate, own, float(memory_bytes(self.device))])),
            "rank_pairs_per_second": rate,
            "data_wait_fraction": seconds[DATA] * steps / elapsed,
            **{f"seconds_{name}": value for name, value in seconds.items()},
            **self._computed(elapsed),
        }

    def _computed(self, elapsed: float) -> dict[str, float]:
        flops, self._flops = self._flops, 0
        rate = (flops or 0) / elapsed
        return {"flops_per_second": rate, "mfu": rate / self.peak.flops_per_second} if flops else {}

    def _gathered(self, values: list[float]) -> list[list[float]]:
        """The values of every rank, in order of ranks."""
        if self.world_size == 1:
            return [values]
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine)
        return [part.tolist() for part in parts]


def over_ranks(rows: list[list[float]]) -> dict[str, float]:
    """Readings of all ranks in one, from (pairs per second, own seconds of a step, memory in bytes) of each."""
    rates, own, memory = (list(column) for column in zip(*rows, strict=True))
    together = {"pairs_per_second": sum(rates), "memory_bytes": max(memory)}
    if len(rows) == 1:
        return together
    slowest = own.index(max(own))
    return together | {
        "rank_pairs_per_second_min": min(rates),
        "rank_pairs_per_second_mean": sum(rates) / len(rates),
        "rank_pairs_per_second_max": max(rates),
        "slowest_rank": float(slowest),
        "slowest_rank_lag_seconds": own[slowest] - sum(own) / len(own),
    }


def memory_bytes(device: torch.device) -> int:
    """Most bytes that tensors had on a GPU so far; on a CPU what the process has resident now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, and the most so far


class Profile:
    """Traces the first `steps` steps of a phase after two of warm-up: one Chrome trace a rank. 0 steps: nothing.

    Enter it around the steps and call `step` after each; `say` hears where the trace is (chrome://tracing or
    https://ui.perfetto.dev shows it), or why there is none.
    """

    def __init__(self, steps: int, folder_uri: str, rank: int, say: Callable[[str], None]) -> None:
        self.steps, self.say = steps, say
        self.uri = storage.join(folder_uri, f"rank-{rank}.trace.json.gz")
        self._seen = 0
        self._profiler = self._make() if steps else None

    def _make(self) -> torch.profiler.profile:
        plan = torch.profiler.schedule(wait=_SKIPPED_STEPS - 1, warmup=1, active=self.steps, repeat=1)
        return torch.profiler.profile(schedule=plan, on_trace_ready=self._write)

    def _write(self, profiler: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory(prefix="clipworks-") as folder:
            path = Path(folder, "trace.json.gz")
            profiler.export_chrome_trace(str(path))
            storage.write_bytes(self.uri, path.read_bytes())
        self.say(f"trace of {min(self.steps, self._seen - _SKIPPED_STEPS)} steps: {self.uri}")

    def step(self) -> None:
        """Say that a step has ended."""
        self._seen += 1
        if self._profiler is not None:
            self._profiler.step()

    def __enter__(self) -> Self:
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._profiler is None:
            return
        self._profiler.stop()  # writes what there is, where the phase was shorter than the trace
        if self._seen <= _SKIPPED_STEPS and kind is None:
            self.say(f"no trace: {self._seen} steps, and the first {_SKIPPED_STEPS} are not traced")
