"""A stage's phases in one process of a training run: build each from its spec, run the loop, keep what must survive."""

import json
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data import storage
from data.artifacts import Artifact, open_artifact
from data.errors import ModelError
from data.events import Events
from data.measurement import cpu_model
from data.place import Place
from training import surgeries
from training.checkpoints import Ledger, LogLine, best_step
from training.clusters import cluster_order
from training.gradients import check_rules, frozen_parts
from training.loading import Batch, DataView, batches, open_pairs
from training.loop import PhaseRun, make_optimizer, train
from training.meter import Meter, Profile
from training.order import ClusterOrder, UniformOrder
from training.parallel import parallelise, whole_weights
from training.sizes import flops_per_pair
from training.specs import ClusterSampler, Phase, TrainSpec
from training.teachers import Teacher, build_teacher
from training.towers import Towers, checkpoint_outcome, save_towers
from training.validation import Validation, open_held_out
from training.watchdog import Watchdog
from training.weights import set_trainable, weights_digest


@dataclass(frozen=True)
class Job:
    """What every process of a training stage is told. Plain values: it travels to Ray's workers."""

    spec: dict[str, Any]
    parents: dict[str, str]  # role -> URI
    out_uri: str
    state_uri: str
    events: Events
    place: dict[str, Any]


class StageRun:
    """One rank of a training stage."""

    def __init__(
        self, job: Job, rank: int, world_size: int, device: torch.device, on_stall: Callable[[str], None]
    ) -> None:
        """`on_stall` gets the watchdog's message and ends the process."""
        self.spec, self.place = TrainSpec.model_validate(job.spec), Place.model_validate(job.place)
        self.parents: dict[str, Artifact] = {role: open_artifact(uri) for role, uri in job.parents.items()}
        self.out_uri, self.events = job.out_uri, job.events if rank == 0 else Events(None, "")
        self.rank, self.world_size, self.device = rank, world_size, device
        self.ledger = Ledger(self.parents["init"].uri, job.state_uri, rank, self.place.keep_checkpoints)
        self.watchdog = Watchdog(rank, world_size, self.place.stall_seconds, on_stall)
        layers = [a for role, a in self.parents.items() if role.startswith("caption_layers.")]
        self.store = open_pairs(self.parents["pairs"], self.parents["selection"], layers)
        chosen = self.spec.validation
        self.held_out = None if chosen is None else open_held_out(chosen, self.parents, layers, self.store)
        self.validation: Validation | None = None  # of the current phase
        self.total = sum(phase.steps * phase.global_batch_size for phase in self.spec.phases.values())
        self.before = 0  # samples of the phases that are behind
        self.checks: dict[str, float] = {}

    def run(self) -> None:
        """Run what is left of every phase; rank 0 writes the checkpoint."""
        for name, phase in self.spec.phases.items():
            if name not in self.ledger.results.finished:
                self.run_phase(name, phase)
            self.before += phase.steps * phase.global_batch_size
        if self.rank == 0:
            self.write_result()

    def run_phase(self, name: str, phase: Phase) -> None:
        """Build one phase, bring it to where it stood, run the loop, prove that what is frozen stayed so."""
        towers = self.changed_towers(name, phase).to(self.device)
        frozen = set_trainable(towers.model, phase.trainable)
        check_rules(phase, towers.model)
        teachers = {
            label: build_teacher(spec, self.parents, f"phases.{name}.teachers.{label}")
            for label, spec in phase.teachers.items()
        }
        run = self.phase_run(name, phase, towers, teachers)
        self.validation = self.make_validation(towers)
        before = self.digests(phase, towers, frozen, teachers)
        self.ledger.restore(name, run)
        log = self.ledger.log(name)
        traces = storage.join(self.place.root, ".profiles", storage.name_of(self.out_uri), name)
        with Profile(self.place.profile_steps, traces, self.rank, self.events.message) as profile:
            run.after_step = partial(self.after_step, name, run, log, profile)
            train(run)
        assert self.digests(phase, towers, frozen, teachers) == before, (
            f"phase {name}: a frozen weight or a teacher changed"
        )
        weights = self.ledger.best(name, log) if phase.result == "best" else whole_weights(towers)
        self.ledger.finish(name, towers, weights, log)

    def phase_run(self, name: str, phase: Phase, towers: Towers, teachers: dict[str, Teacher]) -> PhaseRun:
        """All that the loop needs for one phase."""
        module = parallelise(towers, self.place, self.autocast())
        view = self.view(name, phase, towers)
        return PhaseRun(
            phase, towers, module, view, partial(self.batches, view), teachers, make_optimizer(towers, phase.optimizer),
            self.spec.seed, self.meter(towers), self.watchdog, lambda _step, _values: None, self.autocast(),
        )  # fmt: skip

    def make_validation(self, towers: Towers) -> Validation | None:
        """What validates a phase, if the recipe asks for it."""
        if self.spec.validation is None or self.held_out is None:
            return None
        return Validation(self.spec.validation, self.held_out, towers, self.rank, self.world_size)

    def batches(self, view: DataView, steps: range) -> Generator[Batch]:
        """The rank's batches of these steps, made by the place's loader workers."""
        place = self.place
        return batches(view, steps, place.loader_workers, place.stall_seconds, pin_memory=self.device.type == "cuda")

    def meter(self, towers: Towers) -> Meter:
        """Counts and times the steps of a phase."""
        flops = flops_per_pair(towers.config["model_cfg"], towers.layout)
        return Meter(flops, self.device, self.world_size, self.autocast())

    def digests(self, phase: Phase, towers: Towers, frozen: list[str], teachers: dict[str, Teacher]) -> list[str]:
        """Hashes of all that must not change in a phase."""
        return [
            weights_digest(towers.model.state_dict(), frozen),
            weights_digest(frozen_parts(phase.gradients, towers.model)),
            *(teacher.digest() for teacher in teachers.values()),
        ]

    def changed_towers(self, name: str, phase: Phase) -> Towers:
        """The phase's start after its surgeries; a broken invariant ends the run."""
        towers = self.ledger.results.towers(phase.start)
        for spec in phase.surgeries:
            towers, checks = surgeries.apply(spec, towers, self.ledger.results)
            for check in checks:
                self.events.message(
                    f"{name}: {spec.surgery}: {check.name}: {check.value:.2g} (limit {check.limit:.0e})"
                )
                assert check.holds, f"{spec.surgery}: {check.name}: {check.value} is above {check.limit}"
                self.checks[f"{name}/{check.name}"] = check.value
        return towers

    def view(self, name: str, phase: Phase, towers: Towers) -> DataView:
        """The phase's batches for this rank."""
        seed, size = self.spec.seed, phase.global_batch_size
        order: UniformOrder | ClusterOrder = UniformOrder(len(self.store), seed)
        if isinstance(phase.view.sampler, ClusterSampler):
            self.events.message(f"{name}: clustering by the features of {', '.join(phase.view.sampler.phases)}")
            source = next(iter(phase.view.caption_weights))
            order = cluster_order(phase.view.sampler, self.ledger.results, self.store, size, seed, source, self.rank)
        return DataView(self.store, towers, phase.view, order, seed, size, self.rank, self.world_size)

    def autocast(self) -> torch.dtype | None:
        """bf16 where the place asks for it, or on CUDA."""
        wanted = self.place.precision
        return torch.bfloat16 if wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda") else None

    def after_step(
        self, name: str, run: PhaseRun, log: list[LogLine], profile: Profile, step: int, values: dict[str, Tensor]
    ) -> None:
        """Log, report progress and keep a checkpoint when it is time."""
        profile.step()
        samples = step * run.phase.global_batch_size
        if self.validation is not None and self.validation.is_due(step, run.phase):
            self.watchdog.now(f"step {step}, validation")
            values = values | {"validation_loss": self.validation.loss(run)}
        if step % self.spec.log_every_steps == 0 or step == run.phase.steps or "validation_loss" in values:
            self.log_step(name, run, log, step, values)
        if run.phase.result == "best" and best_step(log) == step:
            self.ledger.keep_best(name, step, run.towers, whole_weights(run.towers))
        loss = f"{name}: loss {log[-1]['loss']:.3f}" if log else name
        self.events.progress(self.before + samples, self.total, "pairs", loss)
        every = max(1, self.spec.checkpoint_every_samples // run.phase.global_batch_size)
        if step % every == 0 and step < run.phase.steps:
            self.ledger.checkpoint(name, step, run, log)
        self.ledger.poll()

    def log_step(self, name: str, run: PhaseRun, log: list[LogLine], step: int, values: dict[str, Tensor]) -> None:
        """Read the step's numbers, averaged over ranks; what depends on the machine goes to the events only.

        Raises:
            ModelError: the loss is not finite.
        """
        samples = step * run.phase.global_batch_size
        numbers = self.averaged(values) | {"lr": float(run.optimizer.param_groups[0]["lr"])}
        if not math.isfinite(numbers["loss"] + numbers["grad_norm"]):
            raise ModelError(
                f"phase {name!r}: loss {numbers['loss']:g}, grad_norm {numbers['grad_norm']:g} at step {step}; "
                "lower optimizer.lr, lengthen schedule.warmup_samples, or look at the pairs of the steps before"
            )
        log.append({"phase": name, "step": step, "samples_seen": samples, **numbers})
        speed = run.meter.reading(run.phase.global_batch_size // self.world_size)
        both = numbers | speed
        self.events.metrics(self.before + samples, {f"{name}/{key}": value for key, value in both.items()})

    def averaged(self, values: dict[str, Tensor]) -> dict[str, float]:
        """One step's readings as numbers; the only place where the loop's device is waited for."""
        numbers = torch.stack([value.float().to(self.device) for value in values.values()])
        if self.world_size > 1:
            dist.all_reduce(numbers)
            numbers /= self.world_size
        return dict(zip(values, numbers.tolist(), strict=True))

    def write_result(self) -> None:
        """Write the last phase's weights, the loss curves and what the record says."""
        last = list(self.spec.phases)[-1]
        towers = self.ledger.results.towers(last)
        save_towers(towers, self.out_uri)
        lines = [line for name in self.spec.phases for line in self.ledger.log(name)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        storage.write_bytes(storage.join(self.out_uri, "metrics.jsonl"), text.encode())
        final = {key: value for key, value in lines[-1].items() if key != "phase"} if lines else {}
        made = checkpoint_outcome(towers, checks=self.checks, final=final)
        counts = made.counts | {"pairs": len(self.store), "samples_seen": self.total}
        outcome = {"counts": counts, "metrics": made.metrics, "measured": self.measured()}
        storage.write_json(storage.join(self.ledger.state_uri, "outcome.json"), outcome)

    def measured(self) -> dict[str, Any]:
        """What the ranks had, for estimates."""
        is_gpu, place = self.device.type == "cuda", self.place
        return {
            "workers": self.world_size,
            "cpus": float(self.world_size * place.cpus_per_worker),
            "gpus": self.world_size * place.gpus_per_worker if is_gpu else 0,
            "device": torch.cuda.get_device_name(self.device) if is_gpu else cpu_model(),
        }
