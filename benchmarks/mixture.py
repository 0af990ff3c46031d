"""A mixture's block against the dense block, and against computing all experts: time for what it computes.

    python -m benchmarks.mixture                  # widths 512 and 768, 12,800 tokens, 4 experts of which 2 are active
    python -m benchmarks.mixture --tokens 1600    # smaller
    python -m benchmarks.mixture --device cuda --autocast

A residual block of open_clip, forward alone and forward with backward. Contenders take turns in one process and
ratios are taken turn by turn. On a CPU a turn's time is the process's own, over all its threads, so that other
processes on the machine count for little; on a GPU it is the clock's. Beside a ratio stands that of the FLOPs.
"""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

from benchmarks.ratios import print_result, ratios, spread, take_turns

DENSE, ROUTED, ALL = "dense", "chosen experts", "all experts"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="*", default=[512, 768])
    parser.add_argument("--tokens", type=int, default=12_800, help="of a batch, in pictures of 50")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true", help="in bfloat16")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(chosen.threads)
    for width in chosen.width:
        compare(width, chosen)


def compare(width: int, chosen: argparse.Namespace) -> None:
    """Forward, and forward with backward, of one width."""
    import torch

    made, bar = blocks(width, chosen.experts, chosen.top_k), flops(width, 50, chosen.experts, chosen.top_k)
    x = torch.randn(chosen.tokens // 50, 50, width, generator=torch.Generator().manual_seed(0)).to(chosen.device)
    for block in made.values():
        block.to(chosen.device)
    for is_training in (False, True):
        turns = {name: one_pass(block, x, is_training, chosen) for name, block in made.items()}
        found = take_turns(turns, chosen.rounds)
        print(f"\nwidth {width}, {chosen.tokens:,} tokens, {'forward and backward' if is_training else 'forward'}")
        print_result(found, ROUTED, DENSE, "s", f"FLOPs {bar[ROUTED] / bar[DENSE]:.2f}")
        print(f"  {ROUTED} / {ALL}: {spread(ratios(found[ROUTED], found[ALL]))}   FLOPs {bar[ROUTED] / bar[ALL]:.2f}")


def blocks(width: int, experts: int, top_k: int) -> dict[str, Any]:
    """The dense block, and the same with a mixture that computes the chosen experts or all of them."""
    import torch
    from open_clip.transformer import ResidualAttentionBlock

    from training.surgeries.experts import ExpertMLP

    class Naive(ExpertMLP):
        """Every expert on every token; what was not chosen has weight 0."""

        def _mixed(self, x_NW: torch.Tensor, kept_NK: torch.Tensor, chosen_NK: torch.Tensor) -> torch.Tensor:
            weight_NE = x_NW.new_zeros(len(x_NW), len(self.experts)).scatter(1, chosen_NK, kept_NK.to(x_NW.dtype))
            parts = [expert(x_NW) * weight_NE[:, n, None] for n, expert in enumerate(self.experts)]
            return torch.stack(parts).sum(dim=0)

    torch.manual_seed(0)
    dense = ResidualAttentionBlock(width, width // 64)
    made = {DENSE: dense, ROUTED: copy.deepcopy(dense), ALL: copy.deepcopy(dense)}
    for name, kind in ((ROUTED, ExpertMLP), (ALL, Naive)):
        ffns = [copy.deepcopy(dense.mlp) for _ in range(experts)]
        made[name].mlp = kind(ffns, width, top_k, torch.Generator().manual_seed(0))
    return made


def one_pass(block: Any, x: Any, is_training: bool, chosen: argparse.Namespace) -> Callable[[], float]:
    """A function that runs a block once and says how long that took."""
    import torch

    is_cuda = chosen.device.startswith("cuda")
    clock = time.perf_counter if is_cuda else time.process_time

    def run() -> float:
        before = clock()
        autocast = torch.autocast(chosen.device, dtype=torch.bfloat16, enabled=chosen.autocast)
        with torch.set_grad_enabled(is_training), autocast:
            result = block(x)
        if is_training:
            block.zero_grad()
            result.float().square().mean().backward()
        if is_cuda:
            torch.cuda.synchronize()
        return clock() - before

    return run


def flops(width: int, tokens: int, experts: int, top_k: int) -> dict[str, int]:
    """Forward FLOPs of a picture in each block."""
    from training.tower_sizes import Blocks

    plain = Blocks(width, 1, width // 64, 4 * width)
    mixed = {
        name: Blocks(width, 1, width // 64, 4 * width, mixed=1, num_experts=experts, top_k=k)
        for name, k in ((ROUTED, top_k), (ALL, experts))
    }
    return {name: block.flops(tokens) for name, block in {DENSE: plain, **mixed}.items()}


if __name__ == "__main__":
    main()
