"""How long a stage will take, from how long such stages took: an estimate that says what it rests on, or nothing.

Linear: what comes after a stage's start-up grows with its pairs (with its FLOPs, where they are counted) and shrinks
with its workers. From one kind of device to another nothing follows.
"""

import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from data import storage
from data.artifacts import SHORT
from data.measurement import SUFFIX, Measurement, read_measurement
from data.spec import digest
from pipelines.planning.plan import StagePlan
from training.devices import find_device

_READS = 16  # each waits for the network, not for a core
_FAR = 10  # times more or fewer pairs, beyond which an estimate is called rough
_COMPUTES = {"train": "init", "embed": "checkpoint"}  # kind -> role of the model whose FLOPs its time goes with
_TERA = 1e12


class Measured(NamedTuple):
    """One measurement, and the artifact whose making it was."""

    artifact: str
    took: Measurement

    @property
    def stage(self) -> str:
        """The stage's name then."""
        return re.sub(rf"-[0-9a-f]{{{SHORT}}}$", "", self.artifact)


class Target(NamedTuple):
    """What a stage will have. `device` is the GPU's name, or the CPU's; None: not known."""

    workers: int
    cpus: float
    gpus: int
    device: str | None
    utilisation: float | None = None
    peak_flops: float | None = None  # of one GPU
    is_here: bool = True


class Time(NamedTuple):
    """Seconds, or None, and what that rests on. `is_rough`: something was assumed that may well be wrong."""

    seconds: float | None
    basis: str
    is_rough: bool = False
    bytes_written: int | None = None


class Work(NamedTuple):
    """A planned stage with what its time depends on."""

    plan: StagePlan
    pairs: int | None
    flops: float | None
    parents: dict[str, str]


def read_measurements(roots: Sequence[str]) -> list[Measured]:
    """All measurements below these roots, newest first."""
    found = []
    for root in dict.fromkeys(map(storage.normalise, roots)):
        folder = storage.join(root, ".events")
        names = [name for name, _ in storage.list_files(folder) if name.endswith(SUFFIX)]
        with ThreadPoolExecutor(1 if storage.is_local(root) else _READS) as reads:
            took = list(reads.map(read_measurement, [storage.join(folder, name) for name in names]))
        found += [Measured(n.removesuffix(SUFFIX), one) for n, one in zip(names, took, strict=True) if one]
    return sorted(found, key=lambda one: -one.took.ended)


def estimate_time(work: Work, target: Target, measured: Sequence[Measured]) -> Time:
    """The time a stage will take by the measurement that is most like it; else by its FLOPs; else unknown, with why."""
    candidates = sorted(_alike(work, measured), key=lambda pair: pair[0])
    best: tuple[float, Time] | None = None
    reasons: list[str] = []
    for rank, one in candidates:
        scaled = _scaled(work, target, one)
        if isinstance(scaled, str):
            reasons.append(scaled)
            continue
        far, time = scaled
        if best is None or rank + far < best[0]:
            best = rank + far, time
    if best is not None:
        return best[1]
    by_sheet = _by_data_sheet(work, target, [one for _, one in candidates])
    if isinstance(by_sheet, Time):
        return by_sheet
    return Time(None, "; ".join(filter(None, [reasons[0] if reasons else _never(work), by_sheet])))


def _never(work: Work) -> str:
    if work.plan.fingerprint is None and work.plan.problem:
        return "its source cannot be read"
    return "no such stage was measured in the roots given (--measured ROOT names more)"


def _alike(work: Work, measured: Sequence[Measured]) -> Iterator[tuple[int, Measured]]:
    """Measurements of the same kind of stage, each with how unlike its stage is: 0 is the very same."""
    plan = work.plan
    config = digest(plan.spec.resolved()) if plan.fingerprint else None
    for one in measured:
        if one.artifact == plan.artifact_name or (plan.fingerprint and one.took.fingerprint == plan.fingerprint):
            yield 0, one
        elif one.took.kind is None:
            if one.stage == plan.name:
                yield 40, one
        elif one.took.kind == plan.kind:
            rank = 10 if one.took.config == config else 20
            yield rank + (0 if one.stage == plan.name else 5), one


def _scaled(work: Work, target: Target, one: Measured) -> tuple[float, Time] | str:
    """(how far it is from what was measured, the time), or why nothing follows from this measurement."""
    took = one.took
    if not took.is_whole:
        return f"{one.artifact} was continued after an interruption, so its time is not that of all its pairs"
    if took.kind is None:
        return _as_it_was(work, target, one)
    device = _device_note(took, target)
    if device is None:
        return f"measured on {_devices(took)} only ({one.artifact}), and other devices say nothing of {_what(target)}"
    ratio = _work_ratio(work, took)
    if isinstance(ratio, str):
        return f"{ratio} ({one.artifact})"
    units = _units(work.plan.kind, target.gpus, target.cpus, target.workers)
    speed_up = units / _units(work.plan.kind, took.gpus, took.cpus or 1.0, took.workers)
    start = min(took.start_seconds or 0.0, took.seconds)
    seconds = start + (took.seconds - start) * ratio / speed_up
    far = abs(math.log10(ratio)) + abs(math.log10(speed_up)) if ratio > 0 else 0.0
    settings = work.plan.fingerprint != took.fingerprint and took.config is not None and _settings_differ(work, took)
    notes = [
        f"x{ratio:.3g} the work" if abs(ratio - 1) > 0.005 else "",
        f"on {_amount(work.plan.kind, target)}, taken as linear" if abs(speed_up - 1) > 0.005 else "",
        "other settings" if settings else "",
        device,
    ]
    is_rough = settings or bool(device) or max(ratio, 1 / ratio if ratio else 1) > _FAR or abs(speed_up - 1) > 0.005
    basis = ", ".join([f"measured {_rate(one)}", *filter(None, notes)])
    written = None if took.bytes_written is None else round(took.bytes_written * _size_ratio(work, took))
    return min(far, 4.0), Time(seconds, basis, is_rough, written)


def _as_it_was(work: Work, target: Target, one: Measured) -> tuple[float, Time] | str:
    """A measurement of an earlier version: only the seconds, so good for the same stage here only."""
    if not target.is_here:
        return f"{one.artifact} was measured by an earlier version, which did not say on what"
    same = one.artifact == work.plan.artifact_name
    note = "" if same else ", pairs and settings of then"
    return 0.0, Time(one.took.seconds, f"{one.artifact} took {one.took.seconds:g} s here{note}", not same)


def _device_note(took: Measurement, target: Target) -> str | None:
    """What is assumed of the device, "" for nothing; None where it is of another kind."""
    if bool(took.gpus) != bool(target.gpus):
        return None
    if took.device and target.device:
        if took.device == target.device:
            return ""
        if took.gpus:
            return None
        return f"a CPU here taken for one of {took.device}" if target.is_here else "one CPU taken for another"
    return (
        "one CPU taken for another"
        if not took.gpus
        else f"its GPUs taken for {took.device or target.device or 'the same'}"
    )


def _work_ratio(work: Work, took: Measurement) -> float | str:
    """Planned work over measured work, or why they cannot be compared."""
    if work.plan.fingerprint is not None and work.plan.fingerprint == took.fingerprint:
        return 1.0
    role = _COMPUTES.get(work.plan.kind)
    if role is not None:
        if work.flops and took.flops:
            return work.flops / took.flops
        if took.parents.get(role) != work.parents.get(role):
            return "its model is another one, and the FLOPs of one of the two are not counted"
    if work.pairs == 0 or took.pairs == 0:
        return 1.0
    if work.pairs is None:
        return "how many pairs it goes through is not known before its parents have run"
    if took.pairs is None:
        return "how many pairs it went through was not noted"
    return work.pairs / took.pairs


def _size_ratio(work: Work, took: Measurement) -> float:
    """What it writes grows with pairs; a checkpoint and a report do not."""
    if work.plan.kind in ("train", "model", "report") or not work.pairs or not took.pairs:
        return 1.0
    return work.pairs / took.pairs


def _settings_differ(work: Work, took: Measurement) -> bool:
    return work.plan.fingerprint is None or digest(work.plan.spec.resolved()) != took.config


def _units(kind: str, gpus: int, cpus: float, workers: int) -> float:
    """What the speed is proportional to: GPUs, else threads of towers, else processes."""
    return float(gpus) if gpus else cpus if kind in _COMPUTES else float(workers)


def _amount(kind: str, target: Target) -> str:
    if target.gpus:
        return _count(target.gpus, "GPU")
    return f"{target.cpus:g} CPUs" if kind in _COMPUTES else _count(target.workers, "worker")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _devices(took: Measurement) -> str:
    return f"{took.gpus} x {took.device or 'GPU'}" if took.gpus else f"{took.cpus or took.workers:g} CPUs"


def _what(target: Target) -> str:
    if not target.gpus:
        return "CPUs"
    return target.device or "GPUs that the cluster file does not name (hardware.gpu)"


def _rate(one: Measured) -> str:
    """`1,234 pairs/s on 2 CPUs in pretrain-0123456789ab`."""
    took, busy = one.took, one.took.seconds - (one.took.start_seconds or 0.0)
    if not took.pairs or busy <= 0:
        return f"{took.seconds:.3g} s on {_devices(took)} in {one.artifact}"
    rate = took.pairs / busy
    return (
        f"{rate:,.0f} pairs/s on {_devices(took)} in {one.artifact}"
        if rate >= 10
        else (f"{rate:.2g} pairs/s on {_devices(took)} in {one.artifact}")
    )


def _by_data_sheet(work: Work, target: Target, alike: Sequence[Measured]) -> Time | str:
    """FLOPs over what the GPUs reach by their data sheet and the cluster file's utilisation; else what lacks for it.

    Start-up is imports and processes that find each other, so that of one like it on any device is taken.
    """
    if work.plan.kind not in _COMPUTES or not target.gpus:
        return ""
    if not work.flops:
        return "and its FLOPs are not counted"
    if target.device is None or target.utilisation is None:
        return "say hardware.gpu and hardware.utilisation in the cluster file for an estimate by FLOPs"
    if target.peak_flops is None:
        return f"hardware.gpu {target.device!r} is in no data sheet known here"
    seconds = work.flops / (target.gpus * target.peak_flops * target.utilisation)
    reach = f"{target.utilisation:.0%} of {target.peak_flops / _TERA:,.0f} TFLOP/s (the cluster file's hardware)"
    first = next((one for one in alike if one.took.start_seconds is not None), None)
    start = first.took.start_seconds or 0.0 if first else 0.0
    told = f"{start:.3g} s of start-up as in {first.artifact}" if first else "without start-up"
    basis = f"{work.flops:.2e} FLOPs on {target.gpus} x {target.device} at {reach}, {told}"
    return Time(seconds + start, basis, True)


def peak_of(gpu: str | None, is_bf16: bool) -> float | None:
    """FLOP/s of one GPU by its data sheet; None for one that is in none."""
    row = find_device(gpu) if gpu else None
    return None if row is None else (row.bf16 if is_bf16 and row.bf16 else row.tf32 or row.float32)
