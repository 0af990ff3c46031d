"""Whether a training stage fits its machine: CPUs, GPUs, precision, memory, disk. No torch.

Memory is an estimate: it is found unfit only when it exceeds what there is by a fifth, and is worth a warning from nine
tenths on.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from data import storage
from data.place import Place
from training import machine
from training.devices import find_device
from training.findings import Finding, Level, gigabytes
from training.memory import Step, checkpoint_bytes, largest_chunk, needed_bytes
from training.sizes import ModelSizes
from training.specs import FrozenModel, Phase, TrainSpec

Models = Mapping[str, ModelSizes | None]  # role (`init`, `phases.x.teachers.y.checkpoint`) -> sizes, None: not known
_UNFIT_FRACTION, _WARNING_FRACTION = 1.2, 0.9
_SPARE_CHECKPOINTS = 2  # the one being written, and the stage's result
_UNCOUNTED = "not checked: these towers' sizes are not counted (timm, Hugging Face), or not known yet"


def cpu_finding(place: Place, cpus: int) -> Finding:
    """Threads and loader processes of all ranks against the CPUs there are.

    A rank that computes on its CPUs has time for one loader, whose work is small beside it; one on a GPU has not.
    """
    ranks, rides_along = place.train_workers, 0 if place.gpus_per_worker else 1
    loaders = max(0, place.loader_workers - rides_along)
    each = place.cpus_per_worker + loaders
    asked = (
        f"{ranks} rank{'s' if ranks > 1 else ''} x ({place.cpus_per_worker} threads + {place.loader_workers} loaders)"
    )
    values = {"asked": ranks * each, "cpus": cpus}
    said = f"{asked} need {ranks * each} of {cpus} CPU{'s' if cpus > 1 else ''}"
    if ranks * each <= cpus:
        return Finding("ok", "cpus", said, values=values)
    if cpus // ranks - loaders >= 1:
        fix = f"cpus_per_worker {cpus // ranks - loaders} fits"
    elif cpus >= ranks:
        fix = f"cpus_per_worker {cpus // ranks} with loader_workers {rides_along} fits"
    else:
        fix = f"train_workers {cpus} with cpus_per_worker 1 and loader_workers {rides_along} fits"
    return Finding("warning", "cpus", said, fix, values)


def gpu_findings(place: Place, gpus: list[str] | None) -> Iterator[Finding]:
    """GPUs asked for against the names of those that CUDA sees, and whether they have the precision."""
    asked = place.train_workers * place.gpus_per_worker
    values = {"asked": asked, "gpus": None if gpus is None else len(gpus)}
    if asked and gpus is None:
        yield Finding("ok", "gpus", f"{asked} GPUs asked for: not checked, these are not NVIDIA's", values=values)
    elif asked > len(gpus or ()):
        have = len(gpus or ())
        fix = f"train_workers {have // place.gpus_per_worker}" if have >= place.gpus_per_worker else "gpus_per_worker 0"
        said = f"{asked} GPUs asked for, CUDA sees {have}"
        yield Finding("unfit", "gpus", said, f"{fix} fits; or look at CUDA_VISIBLE_DEVICES", values)
    elif asked:
        names = ", ".join(sorted({name or "unnamed" for name in gpus or ()}))
        yield Finding("ok", "gpus", f"{asked} of {len(gpus or ())} GPUs ({names})", values=values)
    if place.gpus_per_worker > 1:
        said = f"gpus_per_worker {place.gpus_per_worker}: a rank computes on one GPU"
        fix = f"use train_workers {asked} with gpus_per_worker 1"
        yield Finding("warning", "gpus", said, fix, values)
    yield from _precision_findings(place, gpus or [])


def _precision_findings(place: Place, gpus: Iterable[str]) -> Iterator[Finding]:
    if not uses_bf16(place):
        return
    without = [name for name in gpus if (row := find_device(name)) and not row.bf16]
    if place.gpus_per_worker and without:
        yield Finding("warning", "precision", f"{without[0]} has no bf16", "set precision float32")
    if not place.gpus_per_worker and not machine.has_bf16_cpu():
        yield Finding("warning", "precision", "this CPU has no bf16: emulated, and slow", "set precision float32")


def compiler_findings(place: Place) -> Iterator[Finding]:
    """torch.compile writes C++, on a GPU C for its launcher, and needs a compiler for it."""
    if place.compile and not machine.has_compiler():
        yield Finding(
            "unfit", "compile", "compile: no C++ compiler is on the PATH", "install g++, or set compile false"
        )


def uses_bf16(place: Place) -> bool:
    """True where the place trains in bf16."""
    return place.precision == "bf16" or (place.precision == "auto" and place.gpus_per_worker > 0)


def memory_finding(spec: TrainSpec, place: Place, sizes: Models, models: Models, budget: int | None) -> Finding:
    """The phase that needs most memory against `budget`, the bytes that each rank may have."""
    steps = {name: step_of(name, phase, place, sizes[name], models) for name, phase in spec.phases.items()}
    needs = {name: None if step is None else needed_bytes(step) for name, step in steps.items()}
    known = {name: need for name, need in needs.items() if need is not None}
    if len(known) < len(needs):
        return Finding("ok", "memory", f"memory: {_UNCOUNTED}")
    worst = max(known, key=lambda name: sum(known[name].values()))
    total, step = sum(known[worst].values()), steps[worst]
    assert step is not None
    parts = ", ".join(
        f"{name} {gigabytes(size)}" for name, size in sorted(known[worst].items(), key=lambda p: -p[1])[:3]
    )
    said = f"phase {worst!r}: about {gigabytes(total)} a rank with {step.chunk} pairs at a time ({parts})"
    values = {**known[worst], "available": budget}
    if budget is None:
        return Finding("ok", "memory", f"{said}; what a rank may have is not known here", values=values)
    said = f"{said}, {gigabytes(budget)} to be had"
    if total <= _WARNING_FRACTION * budget:
        return Finding("ok", "memory", said, _spared_chunks(step, budget), values)
    level: Level = "unfit" if total > _UNFIT_FRACTION * budget else "warning"
    return Finding(level, "memory", said, _memory_fix(step, place, budget), values)


def step_of(name: str, phase: Phase, place: Place, sizes: ModelSizes | None, models: Models) -> Step | None:
    """A phase's step as far as memory goes; None where a model's sizes are not known."""
    roles = [
        f"phases.{name}.teachers.{label}.checkpoint"
        for label, t in phase.teachers.items()
        if isinstance(t, FrozenModel)
    ]
    teachers = [models.get(role) for role in roles]
    trainable = None if sizes is None else sizes.trainable(phase.trainable)
    if sizes is None or trainable is None or None in teachers:
        return None
    return Step(
        sizes, trainable, phase.global_batch_size, place.train_workers, phase.chunk_pairs,
        is_sharded=place.parallel == "fsdp" and place.train_workers > 1, recomputes=place.activation_checkpointing,
        is_bf16=uses_bf16(place), is_gpu=place.gpus_per_worker > 0, loader_workers=place.loader_workers,
        teachers=tuple(teacher for teacher in teachers if teacher),
    )  # fmt: skip


def memory_of_a_rank(place: Place) -> int | None:
    """Bytes that each rank may have on this machine: its GPU's, or its part of what is available."""
    if machine.trains_elsewhere():
        return None
    if place.gpus_per_worker:
        row = find_device(next(iter(machine.visible_gpus() or [""])))
        return row and row.memory_bytes
    available = machine.available_memory()
    return None if available is None else available // place.train_workers


def _spared_chunks(step: Step, budget: int) -> str:
    if step.chunk == step.rank_batch_size or largest_chunk(step, _WARNING_FRACTION * budget) != step.rank_batch_size:
        return ""
    return "a rank's whole batch would fit: without chunk_pairs a step computes a quarter less"


def _memory_fix(step: Step, place: Place, budget: int) -> str:
    chunk = largest_chunk(step, _WARNING_FRACTION * budget)
    if chunk is not None:
        return f"chunk_pairs {chunk} fits"
    others = {
        "parallel fsdp": replace(step, is_sharded=True),
        "activation_checkpointing true": replace(step, recomputes=True),
    }
    for name, other in others.items():
        chunk = (
            largest_chunk(other, _WARNING_FRACTION * budget) if place.train_workers > 1 or "fsdp" not in name else None
        )
        if chunk is not None:
            return f"{name} with chunk_pairs {chunk} fits"
    return "no chunk_pairs fits; use fewer train_workers on this machine, a smaller batch or smaller towers"


def disk_finding(spec: TrainSpec, place: Place, sizes: Models) -> Finding:
    """Room for the restart states that are kept, the one being written and the result."""
    each = []
    for name, phase in spec.phases.items():
        model = sizes[name]
        trainable = None if model is None else model.trainable(phase.trainable)
        if model is None or model.parameters is None or trainable is None:
            return Finding("ok", "disk", f"disk: {_UNCOUNTED}")
        each.append(checkpoint_bytes(model.parameters, trainable))
    copies, free = place.keep_checkpoints + _SPARE_CHECKPOINTS, machine.free_disk(place.root)
    said = f"{copies} checkpoints of {gigabytes(max(each))}"
    values = {"needed": copies * max(each), "free": free}
    if free is None:
        return Finding("ok", "disk", f"{said}; the space of object storage is not checked", values=values)
    said = f"{said}, {gigabytes(free)} free in {storage.normalise(place.root)}"
    if copies * max(each) <= free:
        return Finding("ok", "disk", said, values=values)
    return Finding("unfit", "disk", said, "free some, lower keep_checkpoints or choose another --root", values)
