"""Contrastive losses in tiles against the formulas written out, ours of before and open_clip's: time and peak memory.

    python -m benchmarks.loss                 # 8,192 to 24,576 pairs against both, then 65,536 in tiles alone
    python -m benchmarks.loss --quick         # small sizes, a minute
    python -m benchmarks.loss --loss siglip --pairs 16384 --alone

Every measurement is one forward and backward pass in a fresh process, whose memory peak (VmHWM of Linux) counts from
what the process holds before the pass: features are not counted, their gradients are. Contenders take turns. The
written-out formulas do not fit in 24 GiB at 65,536 pairs: what is printed for them there is called an extrapolation.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.ratios import print_result, ratios, spread

CONTENDERS = ("tiled", "plain", "open_clip")
BAR_SECONDS, BAR_BYTES = "time at most 1.10", "memory at most 1/50 at 65,536 pairs"
WARM_UP_PAIRS = 1024  # libraries start their threads and kernels before anything is measured
MIB = 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[8192, 16384, 24576], help="measured with all three")
    parser.add_argument("--alone", type=int, nargs="*", default=[65536], help="measured in tiles only")
    parser.add_argument("--width", type=int, default=512, help="embed_dim")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loss", choices=("info_nce", "siglip"), nargs="*", default=["info_nce", "siglip"])
    parser.add_argument("--quick", action="store_true", help="128 to 2,048 pairs, and 8,192 in tiles")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen.loss[0], chosen.child, chosen.pairs[0], chosen.width, chosen.threads)))
        return
    if chosen.quick:
        chosen.pairs, chosen.alone = [128, 1024, 2048], [8192]
    for loss in chosen.loss:
        compare(loss, chosen)


def compare(loss: str, chosen: argparse.Namespace) -> None:
    """All sizes of one loss, then what tiles reach where the others cannot follow."""
    plain_bytes: dict[int, float] = {}
    for pairs in chosen.pairs:
        turns = [{name: in_child(loss, name, pairs, chosen) for name in CONTENDERS} for _ in range(chosen.rounds)]
        print(f"\n{loss}, {pairs:,} pairs, width {chosen.width}, float32")
        measures = [("seconds", "s", BAR_SECONDS), ("mib", "MiB at peak", BAR_BYTES)]
        # a pass no larger than the one that warmed up finds its memory there already
        for key, unit, bar in measures if pairs > WARM_UP_PAIRS else measures[:1]:
            found = {name: [turn[name][key] for turn in turns] for name in CONTENDERS}
            print_result(found, "tiled", "plain", unit, bar)
            print(f"  tiled / open_clip: {spread(ratios(found['tiled'], found['open_clip']))}")
        plain_bytes[pairs] = min(turn["plain"]["mib"] for turn in turns)
    for pairs in chosen.alone:
        turn = in_child(loss, "tiled", pairs, chosen)
        print(f"\n{loss}, {pairs:,} pairs, in tiles: {turn['seconds']:,.1f} s, {turn['mib']:,.0f} MiB at peak")
        if plain_bytes:
            largest = max(plain_bytes)
            guess = plain_bytes[largest] * (pairs / largest) ** 2
            print(
                f"  plain, not measured: {guess:,.0f} MiB by quadratic extrapolation from {largest:,} pairs, "
                f"{guess / turn['mib']:,.0f} times the tiles'   bar: {BAR_BYTES}"
            )


def in_child(loss: str, contender: str, pairs: int, chosen: argparse.Namespace) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [
        sys.executable, "-m", "benchmarks.loss", "--child", contender, "--loss", loss, "--pairs", str(pairs),
        "--width", str(chosen.width), "--threads", str(chosen.threads),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(loss: str, contender: str, pairs: int, width: int, threads: int) -> dict[str, float]:
    """Seconds of a forward and backward pass, and MiB that it needed at most beyond what was there."""
    import torch

    torch.set_num_threads(threads)
    run = losses()[loss, contender]
    for repeats, size in ((2, min(pairs, WARM_UP_PAIRS)), (1, pairs)):
        names = features(size, width)
        before = memory_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
        times = []
        for _ in range(max(repeats, 20 if pairs <= WARM_UP_PAIRS else 1)):
            for value in names.values():
                value.grad = None
            start = time.perf_counter()
            run(names).backward()
            times.append(time.perf_counter() - start)
    return {"seconds": min(times), "mib": memory_mib("VmHWM") - before}


def memory_mib(key: str) -> float:
    """A line of this process's status, in MiB."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / MIB


def features(pairs: int, width: int) -> dict:
    """Normalised random features of pairs that are alike, as after some training; scale and bias as they start."""
    import torch
    import torch.nn.functional as F

    random = torch.Generator().manual_seed(0)
    image = torch.randn(pairs, width, generator=random)
    text = image + torch.randn(pairs, width, generator=random)
    named = {"image_features": F.normalize(image, dim=1), "text_features": F.normalize(text, dim=1)}
    named |= {"logit_scale": torch.tensor(14.3), "logit_bias": torch.tensor(-10.0)}
    return {name: value.requires_grad_() for name, value in named.items()}


def losses() -> dict[tuple[str, str], Callable]:
    """(loss, contender) -> names -> scalar."""
    import torch
    import torch.nn.functional as F
    from open_clip.loss import ClipLoss, SigLipLoss

    from training import specs
    from training.objectives import Context, build_objective

    context = Context(0.0, 0, 1, torch.Generator())
    info_nce, siglip = build_objective(specs.InfoNCE()), build_objective(specs.SigLIP())
    clip_loss, siglip_loss = ClipLoss(), SigLipLoss()

    def logits(names: dict) -> tuple:
        image, text, scale = names["image_features"], names["text_features"], names["logit_scale"]
        return scale * image @ text.T, scale * text @ image.T

    def plain_info_nce(names: dict) -> torch.Tensor:
        rows = torch.arange(len(names["image_features"]))
        target = F.one_hot(rows, len(rows)).float()
        target = target / target.sum(dim=1, keepdim=True)
        i2t, t2i = logits(names)
        return (F.cross_entropy(i2t, target) + F.cross_entropy(t2i, target)) / 2

    def plain_siglip(names: dict) -> torch.Tensor:
        i2t, _ = logits(names)
        label = 2 * F.one_hot(torch.arange(len(i2t)), len(i2t)).float() - 1
        return -F.logsigmoid(label * (i2t + names["logit_bias"])).sum() / len(i2t)

    return {
        ("info_nce", "tiled"): lambda names: info_nce(names, context).value,
        ("info_nce", "plain"): plain_info_nce,
        ("info_nce", "open_clip"): lambda n: clip_loss(n["image_features"], n["text_features"], n["logit_scale"]),
        ("siglip", "tiled"): lambda names: siglip(names, context).value,
        ("siglip", "plain"): plain_siglip,
        ("siglip", "open_clip"): lambda names: siglip_loss(**names),
    }


if __name__ == "__main__":
    main()
