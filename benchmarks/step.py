"""Training steps per second: clipworks' loop against open_clip's own `train_one_epoch`.

    python -m benchmarks.step [--architecture ViT-B-32] [--pairs 32] [--precision float32|bf16] [--full-text]

Same towers, initial weights, pairs, batch, optimiser settings, gradient clipping and threads; batches are prepared, so
that loaders do not count (benchmarks/loader.py is about those). Turns are interleaved, and both losses are printed:
they are the same mathematics. `--full-text` gives captions that fill the context, where trimming them wins nothing.
"""

import argparse
import copy
import logging
import time
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip_train.train import train_one_epoch

from benchmarks.ratios import print_result, take_turns
from data.place import Place
from training.loading import Batch
from training.loop import PhaseRun, make_optimizer, train
from training.meter import Meter
from training.parallel import parallelise
from training.sizes import flops_per_pair
from training.specs import AdamW, CosineSchedule, InfoNCE, Phase, Term
from training.towers import Towers, create_towers
from training.watchdog import Watchdog

_LR, _WORDS = 1e-5, (3, 20)


def make_batches(towers: Towers, pairs: int, steps: int, full_text: bool) -> list[Batch]:
    """Random pictures and captions of `_WORDS` words, or of so many that they fill the context."""
    from wordfreq import top_n_list

    words, random = top_n_list("en", 5000), np.random.default_rng(0)
    made = []
    for step in range(steps):
        side = towers.image_size
        image = torch.from_numpy(random.integers(0, 256, (pairs, 3, side, side), np.uint8))
        lengths = [90 if full_text else int(random.integers(*_WORDS)) for _ in range(pairs)]
        captions = [" ".join(random.choice(words, length)) for length in lengths]
        ids = torch.arange(step * pairs, (step + 1) * pairs)
        made.append(
            Batch(
                image, {"text": towers.tokenizer(captions)}, [str(n) for n in ids.tolist()], captions, {"text_id": ids}
            )
        )
    return made


class OpenClip:
    """open_clip's loop, as its command line sets it up."""

    def __init__(self, towers: Towers, batches: list[Batch], precision: str) -> None:
        self.model = copy.deepcopy(towers.model)
        self.model.output_dict = True  # as its command line asks of create_model
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias"))]
        rest = [p for _, p in named if all(p is not other for other in plain)]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
        self.optimizer = torch.optim.AdamW(groups, lr=_LR, betas=(0.9, 0.98), eps=1e-6)
        samples = [(towers.normalise(batch.image), batch.texts["text"]) for batch in batches]
        self.loader = Prepared(samples)
        self.args = SimpleNamespace(
            device="cpu", precision={"float32": "fp32", "bf16": "amp_bf16"}[precision], distill=False, accum_freq=1,
            skip_scheduler=True, horovod=False, grad_clip_norm=1.0, log_every_n_steps=1_000_000, world_size=1, rank=0,
            batch_size=len(batches[0]), local_rank=0, log_local=False, wandb=False,
        )  # fmt: skip
        self.loss = RememberedLoss()

    def __call__(self) -> float:
        """Pairs per second of one pass over the batches."""
        data = {"train": SimpleNamespace(dataloader=self.loader, set_epoch=lambda _epoch: None)}
        start = time.perf_counter()
        train_one_epoch(self.model, data, self.loss, 0, self.optimizer, None, None, None, self.args)
        return self.loader.num_samples / (time.perf_counter() - start)


class Prepared:
    """What open_clip asks of a data loader, over batches in memory."""

    def __init__(self, samples: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.samples, self.num_batches = samples, len(samples)
        self.num_samples = sum(len(image) for image, _ in samples)

    def __iter__(self) -> Any:
        return iter(self.samples)


class RememberedLoss(ClipLoss):  # type: ignore[misc]
    """open_clip's loss, which keeps its values."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The loss, remembered."""
        found = super().forward(*args, **kwargs)
        self.values = [*getattr(self, "values", []), float(found["contrastive_loss"].detach())]
        return found


class Ours:
    """clipworks' loop, as a training stage sets it up."""

    def __init__(self, towers: Towers, batches: list[Batch], precision: str) -> None:
        towers, size = copy.deepcopy(towers), len(batches[0])
        self.pairs, self.losses = size * len(batches), list[float]()
        optimizer = AdamW(lr=_LR)
        phase = Phase(
            objectives={"contrast": Term(loss=InfoNCE())}, optimizer=optimizer, samples_seen=self.pairs,
            global_batch_size=size, schedule=CosineSchedule(final_lr_fraction=1.0),
        )  # fmt: skip
        autocast = torch.bfloat16 if precision == "bf16" else None
        meter = Meter(flops_per_pair(towers.config["model_cfg"]), torch.device("cpu"), 1, autocast)

        def prepared(steps: range) -> Generator[Batch]:
            yield from (batches[step] for step in steps)

        self.run = PhaseRun(
            phase, towers, parallelise(towers, Place(), autocast), SimpleNamespace(rank=0, world_size=1), prepared, {},  # type: ignore[arg-type]
            make_optimizer(towers, optimizer), 0, meter, Watchdog(0, 1, 600, print),
            lambda _step, values: self.losses.append(float(values["loss"])), autocast,
        )  # fmt: skip

    def __call__(self) -> float:
        """Pairs per second of one pass over the batches."""
        start = time.perf_counter()
        train(self.run)
        return self.pairs / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--pairs", type=int, default=32, help="pairs per step")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--full-text", action="store_true", help="captions that fill the context")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(options.threads)
    towers = create_towers(options.architecture)
    batches = make_batches(towers, options.pairs, options.steps, options.full_text)
    theirs, ours = (kind(towers, batches, options.precision) for kind in (OpenClip, Ours))
    found = take_turns({"open_clip": theirs, "clipworks": ours}, options.turns)
    text = "captions fill the context" if options.full_text else f"captions of {_WORDS[0]} to {_WORDS[1] - 1} words"
    print(
        f"{options.architecture}, {options.pairs} pairs a step, {options.precision}, {options.threads} threads, {text}"
    )
    print_result(found, "clipworks", "open_clip", "pairs/s", ">= 1.1")
    steps = [0, len(batches) - 1, len(ours.losses) - 1]
    for step in steps:
        print(f"  loss at step {step + 1}: open_clip {theirs.loss.values[step]:.6f}, clipworks {ours.losses[step]:.6f}")


if __name__ == "__main__":
    main()
