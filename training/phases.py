"""A stage's phases in one process of a training run: build each from its spec, run the loop, keep what must survive."""

import json
from dataclasses import dataclass
from typing import Any

import torch

from data import storage
from data.artifacts import Artifact, open_artifact
from data.events import Events
from data.place import Place
from training import surgeries
from training.checkpoints import Ledger, LogLine
from training.clusters import cluster_order
from training.loading import DataView, PairStore, open_pairs
from training.loop import PhaseRun, make_optimizer, train
from training.order import ClusterOrder, UniformOrder
from training.specs import ClusterSampler, Phase, TrainSpec
from training.teachers import build_teacher
from training.towers import Towers, checkpoint_outcome, save_towers
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

    def __init__(self, job: Job, rank: int, world_size: int, device: torch.device) -> None:
        self.spec, self.place = TrainSpec.model_validate(job.spec), Place.model_validate(job.place)
        self.parents: dict[str, Artifact] = {role: open_artifact(uri) for role, uri in job.parents.items()}
        self.out_uri, self.events = job.out_uri, job.events if rank == 0 else Events(None, "")
        self.rank, self.world_size, self.device = rank, world_size, device
        self.ledger = Ledger(self.parents["init"].uri, job.state_uri, rank)
        self.store = self._open_pairs()
        self.total = sum(phase.steps * phase.global_batch_size for phase in self.spec.phases.values())
        self.before = 0  # samples of the phases that are behind
        self.checks: dict[str, float] = {}

    def _open_pairs(self) -> PairStore:
        layers = [a for role, a in self.parents.items() if role.startswith("caption_layers.")]
        return open_pairs(self.parents["pairs"], self.parents["selection"], layers)

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
        teachers = {
            label: build_teacher(spec, self.parents, f"phases.{name}.teachers.{label}")
            for label, spec in phase.teachers.items()
        }
        digests = [
            weights_digest(towers.model.state_dict(), frozen),
            *(teacher.digest() for teacher in teachers.values()),
        ]
        run = PhaseRun(
            phase, towers, self.view(name, phase, towers), teachers, make_optimizer(towers, phase.optimizer),
            self.spec.seed, self.autocast(),
        )  # fmt: skip
        self.ledger.restore(name, run)
        log = self.ledger.log(name)
        run.after_step = lambda step, values: self.after_step(name, run, step, values, log)
        train(run)
        after = [
            weights_digest(towers.model.state_dict(), frozen),
            *(teacher.digest() for teacher in teachers.values()),
        ]
        assert after == digests, f"phase {name}: a frozen weight or a teacher changed"
        self.ledger.finish(name, towers, log)

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

    def after_step(self, name: str, run: PhaseRun, step: int, values: dict[str, float], log: list[LogLine]) -> None:
        """Log, report progress and keep a checkpoint when it is time."""
        samples = step * run.phase.global_batch_size
        self.events.progress(self.before + samples, self.total, "pairs", f"{name}: loss {values['loss']:.3f}")
        if step % self.spec.log_every_steps == 0 or step == run.phase.steps:
            log.append({"phase": name, "step": step, "samples_seen": samples, **values})
            self.events.metrics(self.before + samples, {f"{name}/{key}": value for key, value in values.items()})
        every = max(1, self.spec.checkpoint_every_samples // run.phase.global_batch_size)
        if step % every == 0 and step < run.phase.steps:
            self.ledger.checkpoint(name, step, run, log)

    def write_result(self) -> None:
        """Write the last phase's weights, the loss curves and what the record says."""
        last = list(self.spec.phases)[-1]
        towers = self.ledger.results.towers(last)
        save_towers(towers, self.out_uri)
        lines = [line for name in self.spec.phases for line in self.ledger.log(name)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        storage.write_bytes(storage.join(self.out_uri, "metrics.jsonl"), text.encode())
        final = {key: value for key, value in lines[-1].items() if key != "phase"} if lines else {}
        counts, metrics, _ = checkpoint_outcome(towers, checks=self.checks, final=final)
        counts |= {"pairs": len(self.store), "samples_seen": self.total}
        storage.write_json(storage.join(self.ledger.state_uri, "outcome.json"), {"counts": counts, "metrics": metrics})
