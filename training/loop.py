"""The one loop. Every method of training runs on it: what differs is in the phase it is given."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.loading import Batch, DataView, ahead
from training.objectives import Context, Loss, WeightedSum
from training.specs import AdamW, CosineSchedule, Phase
from training.teachers import Teacher
from training.towers import Towers
from training.weights import parameter_groups

_RNG_STREAM = 0x5EED


def _report_nothing(_step: int, _values: dict[str, float]) -> None:
    """Do nothing: the default of `PhaseRun.after_step`."""


@dataclass
class PhaseRun:
    """Everything one phase needs, built; `start_step` is above 0 after a resume."""

    phase: Phase
    towers: Towers
    view: DataView
    teachers: dict[str, Teacher]
    optimizer: torch.optim.Optimizer
    seed: int
    autocast: torch.dtype | None = None
    start_step: int = 0
    after_step: Callable[[int, dict[str, float]], None] = _report_nothing
    objective: WeightedSum = field(init=False)
    model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.objective = WeightedSum(self.phase.objectives)
        distributed = self.view.world_size > 1
        self.model = DistributedDataParallel(self.towers) if distributed else self.towers


def train(run: PhaseRun) -> None:
    """Run a phase from `start_step` to its end; the weights of `run.towers` are the result."""
    run.model.train()
    for step, batch in enumerate(ahead(run.view.batch, range(run.start_step, run.phase.steps)), start=run.start_step):
        set_learning_rate(run, step)
        run.optimizer.zero_grad(set_to_none=True)
        loss = forward_backward(run, batch.to(run.towers.device), step)
        norm = clip_gradients(run)
        run.optimizer.step()
        clamp_logit_scale(run)
        run.after_step(step + 1, {**loss, "grad_norm": norm, "lr": run.optimizer.param_groups[0]["lr"]})


def forward_backward(run: PhaseRun, batch: Batch, step: int) -> dict[str, float]:
    """Gradients of the whole batch's loss, in chunks of `chunk_pairs`.

    One chunk: plain forward and backward. Several: features without gradient first, then the loss over all of them,
    then each chunk again with its share of the features' gradient (gradient caching, arXiv 2101.06983): exact, unlike
    averaged losses.
    """
    chunks = list(batch.chunks(run.phase.chunk_pairs))
    if len(chunks) == 1:
        loss = compute_loss(run, forward(run, batch), batch, step)
        loss.value.backward()  # type: ignore[no-untyped-call]
        return readings(loss, run)
    with torch.no_grad():
        outputs = [forward(run, chunk) for chunk in chunks]
    leaves = {name: joined([out[name] for out in outputs], len(chunks[0])) for name in outputs[0]}
    loss = compute_loss(run, leaves, batch, step)
    loss.value.backward()  # type: ignore[no-untyped-call]
    at = 0
    for number, chunk in enumerate(chunks):
        last = number == len(chunks) - 1
        with synchronised(run.model, last):
            backward_chunk(forward(run, chunk), leaves, at, len(chunk), last)
        at += len(chunk)
    return readings(loss, run)


def forward(run: PhaseRun, batch: Batch) -> dict[str, Tensor]:
    """The model's named outputs, in float32."""
    enabled = run.autocast is not None
    with torch.autocast(run.towers.device.type, dtype=run.autocast, enabled=enabled):
        outputs = run.model(batch.image, batch.text)
    return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}


def compute_loss(run: PhaseRun, outputs: dict[str, Tensor], batch: Batch, step: int) -> Loss:
    """The weighted objectives over outputs, batch and teachers' targets.

    The first step verifies that all names are there.
    """
    names = {**outputs, "text_id": batch.text_id}
    for label, teacher in run.teachers.items():
        names |= {f"{label}.{name}": value for name, value in teacher.targets(batch).items()}
    if step == run.start_step:
        run.objective.verify(names)
    generator = torch.Generator().manual_seed((run.seed * 1_000_003 + step) ^ _RNG_STREAM)
    return run.objective(names, Context(step / max(1, run.phase.steps), run.view.rank, run.view.world_size, generator))


def joined(parts: list[Tensor], chunk: int) -> Tensor:
    """One leaf of all chunks' outputs: concatenated where rows are pairs, the value itself where it is shared."""
    shared = parts[0].ndim == 0 or len(parts[0]) != chunk
    value = parts[0] if shared else torch.cat(parts)
    return value.detach().requires_grad_(value.is_floating_point())


def backward_chunk(outputs: dict[str, Tensor], leaves: dict[str, Tensor], at: int, pairs: int, last: bool) -> None:
    """Send the leaves' gradients into one chunk's graph; shared values get theirs once, with the last chunk."""
    tensors, gradients = [], []
    for name, output in outputs.items():
        gradient = leaves[name].grad
        shared = output.shape == leaves[name].shape and (output.ndim == 0 or len(output) != pairs)
        if gradient is None or not output.requires_grad or (shared and not last):
            continue
        tensors.append(output)
        gradients.append(gradient if shared else gradient[at : at + pairs])
    torch.autograd.backward(tensors, gradients)


def synchronised(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Let DistributedDataParallel average gradients only with the last chunk."""
    return nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync()


def readings(loss: Loss, run: PhaseRun) -> dict[str, float]:
    """Loss and parts as numbers, averaged over ranks."""
    names = ["loss", *loss.parts]
    values = torch.stack([loss.value.detach(), *loss.parts.values()]).float()
    if run.view.world_size > 1:
        dist.all_reduce(values)
        values /= run.view.world_size
    scale = float(run.towers.model.logit_scale.detach().exp())  # type: ignore[operator]
    return {**dict(zip(names, values.tolist(), strict=True)), "logit_scale": scale}


def make_optimizer(towers: Towers, spec: AdamW) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, fused."""
    return torch.optim.AdamW(parameter_groups(towers, spec), lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


def learning_rate(spec: AdamW, schedule: CosineSchedule, samples: float, total: int) -> float:
    """Linear warm-up, then cosine from the peak to its final fraction."""
    if samples < schedule.warmup_samples:
        return spec.lr * samples / schedule.warmup_samples
    progress = (samples - schedule.warmup_samples) / max(1, total - schedule.warmup_samples)
    low = schedule.final_lr_fraction
    return spec.lr * (low + (1 - low) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def set_learning_rate(run: PhaseRun, step: int) -> None:
    """Give every group the rate of the middle of this step, so that neither the first nor the last step is at 0."""
    samples = (step + 0.5) * run.phase.global_batch_size
    rate = learning_rate(run.phase.optimizer, run.phase.schedule, samples, run.phase.samples_seen)
    for group in run.optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(run: PhaseRun) -> float:
    """Clip the gradient's norm if the phase asks for it; return the norm before."""
    limit = run.phase.optimizer.clip_grad_norm
    parameters = [p for p in run.towers.parameters() if p.grad is not None]
    return float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))


@torch.no_grad()
def clamp_logit_scale(run: PhaseRun) -> None:
    """Keep the temperature in [0, ln max], as CLIP does."""
    run.towers.model.logit_scale.clamp_(0, math.log(run.phase.logit_scale_max))  # type: ignore[operator]
