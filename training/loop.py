"""The one loop. Every method of training runs on it: what differs is in the phase it is given."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.gradients import apply_rules
from training.inputs import model_inputs
from training.loading import Batch, DataView
from training.meter import Meter
from training.objectives import Context, Loss, WeightedSum
from training.parallel import clip_gradients, synchronised
from training.specs import AdamW, CosineSchedule, Phase
from training.teachers import Teacher
from training.towers import Towers
from training.watchdog import Watchdog
from training.weights import parameter_groups

_LOSS_STREAM, _MODEL_STREAM = 0x5EED, 0xD20


@dataclass
class PhaseRun:
    """Everything one phase needs, built; `start_step` is above 0 after a resume."""

    phase: Phase
    towers: Towers
    module: nn.Module  # what is called in their place: the towers, or what keeps them equal over ranks
    view: DataView
    batches: Callable[[range], Generator[Batch]]
    teachers: dict[str, Teacher]
    optimizer: torch.optim.Optimizer
    seed: int
    meter: Meter
    watchdog: Watchdog
    after_step: Callable[[int, dict[str, Tensor]], None]
    autocast: torch.dtype | None = None
    start_step: int = 0
    objective: WeightedSum = field(init=False)

    def __post_init__(self) -> None:
        self.objective = WeightedSum(self.phase.objectives)

    @contextmanager
    def span(self, name: str, step: int) -> Iterator[None]:
        """A part of a step: timed, and watched."""
        self.watchdog.now(f"step {step + 1}, {name}")
        with self.meter.span(name):
            yield


def train(run: PhaseRun) -> None:
    """Run a phase from `start_step` to its end; the weights of `run.towers` are the result."""
    run.module.train()
    steps = range(run.start_step, run.phase.steps)
    with run.watchdog, closing(run.batches(steps)) as batches:
        for step in steps:
            with run.span("data", step):
                batch = next(batches).to(run.towers.device)
            run.watchdog.now(f"step {step + 1}", batch.describe())
            set_learning_rate(run, step)
            values = forward_backward(run, batch, step)
            with run.span("optimizer", step):
                apply_rules(run.phase.gradients, run.towers.model)
                values["grad_norm"] = clip_gradients(run.towers.parameters(), run.phase.optimizer.clip_grad_norm)
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
                clamp_logit_scale(run)
            with run.span("after", step):
                run.after_step(step + 1, values)


def forward_backward(run: PhaseRun, batch: Batch, step: int) -> dict[str, Tensor]:
    """Gradients of the whole batch's loss, in chunks of `chunk_pairs`; the loss and its parts.

    One chunk: plain forward and backward. Several: features without gradient first, then the loss over all of them,
    then each chunk again with its share of the features' gradient (gradient caching, arXiv 2101.06983): exact, unlike
    averaged losses. A chunk's second pass draws the same random numbers as its first.
    """
    chunks = list(batch.chunks(run.phase.chunk_pairs))
    if len(chunks) == 1:
        with run.span("forward", step):
            whole = forward(run, batch, step, 0)
        with run.span("loss", step):
            loss = compute_loss(run, whole, batch, step)
        with run.span("backward", step):
            loss.value.backward()  # type: ignore[no-untyped-call]
        return readings(loss, run)
    with run.span("forward", step), torch.no_grad():
        outputs = [forward(run, chunk, step, number) for number, chunk in enumerate(chunks)]
    with run.span("loss", step):
        shared = run.towers.shared_outputs
        leaves = {name: joined([out[name] for out in outputs], name in shared) for name in outputs[0]}
        loss = compute_loss(run, leaves, batch, step)
        loss.value.backward()  # type: ignore[no-untyped-call]
    at = 0
    for number, chunk in enumerate(chunks):
        last = number == len(chunks) - 1
        with run.span("backward", step), synchronised(run.module, last):
            backward_chunk(forward(run, chunk, step, number), leaves, slice(at, at + len(chunk)), shared, last)
        at += len(chunk)
    return readings(loss, run)


def forward(run: PhaseRun, batch: Batch, step: int, chunk: int) -> dict[str, Tensor]:
    """The model's named outputs, in float32; its random numbers are a function of (seed, step, chunk, rank)."""
    torch.manual_seed(hash((run.seed, step, chunk, run.view.rank, _MODEL_STREAM)))
    device = run.towers.device
    inputs = model_inputs(run.towers, batch, device)
    if torch.is_grad_enabled():
        run.meter.saw(len(batch), *(inputs[name].shape[1] for name in batch.texts))
    with torch.autocast(device.type, dtype=run.autocast, enabled=run.autocast is not None):
        outputs = run.module(inputs)
    return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}


def compute_loss(run: PhaseRun, outputs: dict[str, Tensor], batch: Batch, step: int) -> Loss:
    """The weighted objectives over outputs, batch and teachers' targets.

    The first step verifies that all names are there.
    """
    names = {**outputs, **batch.more}
    for label, teacher in run.teachers.items():
        names |= {f"{label}.{name}": value for name, value in teacher.targets(batch).items()}
    if step == run.start_step:
        run.objective.verify(names)
    generator = torch.Generator().manual_seed((run.seed * 1_000_003 + step) ^ _LOSS_STREAM)
    return run.objective(names, Context(step / max(1, run.phase.steps), run.view.rank, run.view.world_size, generator))


def joined(parts: list[Tensor], is_shared: bool) -> Tensor:
    """One leaf of all chunks' outputs: concatenated where rows are pairs, the value itself where it is shared."""
    value = parts[0] if is_shared else torch.cat(parts)
    return value.detach().requires_grad_(value.is_floating_point())


def backward_chunk(
    outputs: dict[str, Tensor], leaves: dict[str, Tensor], rows: slice, shared: frozenset[str], last: bool
) -> None:
    """Send the leaves' gradients into one chunk's graph; shared values get theirs once, with the last chunk."""
    tensors, gradients = [], []
    for name, output in outputs.items():
        gradient = leaves[name].grad
        if gradient is None or not output.requires_grad or (name in shared and not last):
            continue
        tensors.append(output)
        gradients.append(gradient if name in shared else gradient[rows])
    torch.autograd.backward(tensors, gradients)


def readings(loss: Loss, run: PhaseRun) -> dict[str, Tensor]:
    """Loss, parts and temperature of this rank, detached and still on the device: reading them would wait for it."""
    scale = run.towers.model.logit_scale.detach().exp()  # type: ignore[operator]
    return {"loss": loss.value.detach(), **loss.parts, "logit_scale": scale}


def make_optimizer(towers: Towers, spec: AdamW) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, fused."""
    return torch.optim.AdamW(parameter_groups(towers, spec), lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


def learning_rate(spec: AdamW, schedule: CosineSchedule, samples: float, total: int) -> float:
    """Linear warm-up, then cosine from the peak to its final fraction, as often as there are cycles."""
    if samples < schedule.warmup_samples:
        return spec.lr * samples / schedule.warmup_samples
    progress = (samples - schedule.warmup_samples) / max(1, total - schedule.warmup_samples)
    low, turns = schedule.final_lr_fraction, min(1.0, progress) * schedule.cycles
    part = turns - min(math.floor(turns), schedule.cycles - 1)
    return spec.lr * (low + (1 - low) * (1 + math.cos(math.pi * part)) / 2)


def set_learning_rate(run: PhaseRun, step: int) -> None:
    """Give every group the rate of the middle of this step, so that neither the first nor the last step is at 0."""
    samples = (step + 0.5) * run.phase.global_batch_size
    rate = learning_rate(run.phase.optimizer, run.phase.schedule, samples, run.phase.samples_seen)
    for group in run.optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def clamp_logit_scale(run: PhaseRun) -> None:
    """Keep a temperature that trains in [0, ln max], as CLIP does; OpenAI's own lies a hair above."""
    scale: Any = run.towers.model.logit_scale
    if scale.requires_grad:
        scale.clamp_(0, math.log(run.phase.logit_scale_max))
