"""Says before anything starts what of a training stage does not fit where it shall run, and what would. No torch."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from data import storage
from data.artifacts import Artifact
from data.errors import ModelError
from data.place import Place, usable_cpus
from training import machine
from training.findings import Finding, Level
from training.resources import (
    Models,
    compiler_findings,
    cpu_finding,
    disk_finding,
    gpu_findings,
    memory_finding,
    memory_of_a_rank,
)
from training.sizes import ModelSizes, count
from training.specs import ClusterSampler, TrainSpec


class Pairs(NamedTuple):
    """What a stage reads. None: not known before its parents have run."""

    shards: int | None = None
    pairs: int | None = None
    selected: int | None = None


def check(spec: TrainSpec, place: Place, parents: Mapping[str, Artifact]) -> list[str]:
    """Look at everything before a stage starts; return what is worth saying, warnings first.

    Raises:
        ModelError: the first thing that does not fit, with the fix.
    """
    pairs, models = (
        pairs_of(parents),
        {role: sizes_of(a) for role, a in parents.items() if a.record.kind == "checkpoint"},
    )
    findings = [*place_findings(place), *stage_findings(spec, place, pairs, models)]
    for finding in findings:
        if finding.level == "unfit":
            raise ModelError(finding.line())
    return [f.line() for f in findings if f.level == "warning"] + [f.line() for f in findings if f.what == "shards"]


def pairs_of(parents: Mapping[str, Artifact]) -> Pairs:
    """The counts in the parents' records; None for a parent that is not there."""
    pairs = parents["pairs"].record.counts if "pairs" in parents else {}
    selection = parents["selection"].record.counts if "selection" in parents else {}
    return Pairs(pairs.get("shards"), pairs.get("pairs"), selection.get("kept"))


def sizes_of(checkpoint: Artifact) -> ModelSizes:
    """Sizes of a checkpoint folder's model."""
    config, layout = storage.read_json(checkpoint.at("open_clip_config.json")), checkpoint.at("clipworks.json")
    return count(config["model_cfg"], storage.read_json(layout)["surgeries"] if storage.exists(layout) else ())


def phase_sizes(spec: TrainSpec, init: ModelSizes | None) -> dict[str, ModelSizes | None]:
    """Sizes of every phase's model, by name; the last is the stage's result.

    Raises:
        ModelError: a surgery names an architecture that open_clip does not have.
    """
    found = {"init": init}
    for name, phase in spec.phases.items():
        sizes = found.get(phase.start)
        for surgery in phase.surgeries:
            sizes = surgery.sizes(sizes)
        found[name] = sizes
    return {name: found[name] for name in spec.phases}


def check_sizes(spec: TrainSpec, workers: int) -> None:
    """Refuse batch sizes that do not divide by the workers.

    Raises:
        ModelError: names the phase, the size and one that fits.
    """
    for finding in size_findings(spec, workers):
        if finding.level == "unfit":
            raise ModelError(finding.line())


def place_findings(place: Place) -> list[Finding]:
    """What holds for every training stage of a place: root, CPUs, GPUs, precision, compiler."""
    reason = machine.why_not_writable(place.root)
    root = (
        Finding("unfit", "root", reason)
        if reason
        else Finding("ok", "root", f"{storage.normalise(place.root)} can be written")
    )
    elsewhere = machine.trains_elsewhere()
    if elsewhere:
        said = f"training runs on the Ray cluster at {elsewhere}: its CPUs, GPUs and memory are not checked from here"
        return [root, Finding("ok", "machine", said)]
    return [
        root,
        cpu_finding(place, usable_cpus()),
        *gpu_findings(place, machine.visible_gpus()),
        *compiler_findings(place),
    ]


def stage_findings(spec: TrainSpec, place: Place, pairs: Pairs, models: Models) -> list[Finding]:
    """What holds for one training stage: shards, batches, memory, disk."""
    sizes = phase_sizes(spec, models.get("init"))
    return [
        *pair_findings(spec, place, pairs),
        *worker_findings(spec, place),
        *_chunk_findings(spec, place),
        memory_finding(spec, place, sizes, models, memory_of_a_rank(place)),
        disk_finding(spec, place, sizes),
    ]


def pair_findings(spec: TrainSpec, place: Place, pairs: Pairs) -> Iterator[Finding]:
    """How pairs come to ranks. They are dealt by index, so shards need not divide by anything."""
    ranks, values = place.train_workers, pairs._asdict()
    if pairs.pairs is None:
        yield Finding("ok", "shards", "shards and pairs: not known before ingest has run", values=values)
        return
    epoch = pairs.pairs if pairs.selected is None else pairs.selected
    selected = "" if pairs.selected is None else f" of which {pairs.selected:,} are selected"
    shards = "" if pairs.shards is None else f"{pairs.shards:,} shard{'s' if pairs.shards > 1 else ''}, "
    readers = f"{ranks} rank{'s' if ranks > 1 else ''} x {place.loader_workers} loader workers"
    said = f"{shards}{pairs.pairs:,} pairs{selected}: {readers}; {epoch / ranks:,.0f} pairs a rank and epoch"
    yield Finding("ok", "shards", f"{said}; no shard is repeated or dropped", values=values)
    if not epoch:
        yield Finding("unfit", "pairs", "the selection keeps no pair", "loosen it or give other pairs", values)
        return
    for name, phase in spec.phases.items():
        if phase.samples_seen and epoch < phase.global_batch_size:
            said = f"phase {name!r}: an epoch has {epoch:,} pairs, a global batch {phase.global_batch_size:,}"
            fix = f"a pair meets itself in a batch: lower global_batch_size to {_fitting(epoch, ranks)}"
            yield Finding("warning", "pairs", said, fix, values)
        if isinstance(phase.view.sampler, ClusterSampler):
            yield Finding(
                "ok", "pairs", f"phase {name!r}: each cluster's remainder below a batch waits for another epoch"
            )


def _fitting(size: int, ranks: int) -> int:
    """The largest batch up to `size` that divides by the ranks."""
    return size // ranks * ranks or ranks


def size_findings(spec: TrainSpec, workers: int) -> list[Finding]:
    """Whether batches divide by so many workers and phases are at least one batch long."""
    found = []
    for name, phase in spec.phases.items():
        size, seen = phase.global_batch_size, phase.samples_seen
        if size % workers:
            said = f"phase {name!r}: global_batch_size {size} does not divide by {workers} workers"
            found.append(Finding("unfit", "batch", said, f"use {_fitting(size, workers)}, or other train_workers"))
        if 0 < seen < size:
            said = f"phase {name!r}: samples_seen {seen} is below one global batch of {size}"
            found.append(Finding("unfit", "batch", said, f"raise it to {size}, or lower global_batch_size"))
    if found:
        return found
    each = ", ".join(f"{name} {p.steps:,} x {p.global_batch_size // workers:,}" for name, p in spec.phases.items())
    return [Finding("ok", "batch", f"steps x pairs of each of {workers} rank{'s' if workers > 1 else ''}: {each}")]


def worker_findings(spec: TrainSpec, place: Place) -> list[Finding]:
    """Batches for every number of workers that the place allows: with `min_train_workers` it need not be all."""
    least, most = place.min_train_workers, place.train_workers
    if least is None:
        return size_findings(spec, most)
    if least > most:
        said = f"min_train_workers {least} is above train_workers {most}"
        return [Finding("unfit", "workers", said, f"use {most} or fewer")]
    able = [n for n in range(least, most + 1) if all(p.global_batch_size % n == 0 for p in spec.phases.values())]
    if not able:
        said = f"no number of workers from {least} to {most} divides every global_batch_size"
        return [Finding("unfit", "workers", said, "lower min_train_workers or change global_batch_size")]
    level: Level = "ok" if most in able and least in able else "warning"
    said = f"{least} to {most} workers: batches divide by {', '.join(map(str, able))}"
    fix = "" if least in able else f"with fewer than {able[0]} it ends"
    fix = f"trains with {able[-1]} at most" if most not in able else fix
    return [Finding(level, "workers", said, fix, {"workers": able}), *size_findings(spec, able[-1])]


def _chunk_findings(spec: TrainSpec, place: Place) -> Iterator[Finding]:
    for name, phase in spec.phases.items():
        pairs, chunk = phase.global_batch_size // place.train_workers, phase.chunk_pairs
        if chunk is None:
            continue
        pieces = -(-pairs // chunk)
        if pieces <= 1:
            said = (
                f"phase {name!r}: chunk_pairs {chunk} is not below a rank's batch of {pairs}: one piece, nothing saved"
            )
            yield Finding("ok", "chunks", said)
        else:
            said = f"phase {name!r}: {pieces} pieces of {chunk} pairs a rank and step, with a third more computing"
            yield Finding("ok", "chunks", said)
