"""Interleaved measurement: contenders take turns in one process or in fresh ones, and ratios are taken turn by turn."""

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Call every contender once a round, in order; return what each returned (a rate or a time), warm-up left out."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, rounds):
        for name, run in contenders.items():
            value = run()
            if number >= 0:
                found[name].append(value)
    return found


def spread(values: Sequence[float]) -> str:
    """Median with minimum and maximum."""
    return f"{statistics.median(values):,.3g} ({min(values):,.3g} to {max(values):,.3g})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """ours / theirs, turn by turn: drift of the machine's speed cancels."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def print_result(found: Mapping[str, Sequence[float]], ours: str, theirs: str, unit: str, bar: str) -> None:
    """Print what each contender reached and the ratio ours / theirs beside the bar that it is held to."""
    processor, cpus = platform.processor() or platform.machine(), len(os.sched_getaffinity(0))
    print(f"{processor}, {cpus} CPUs, {len(found[ours])} turns")
    for name, values in found.items():
        print(f"  {name:<28} {spread(values)} {unit}")
    print(f"  {ours} / {theirs}: {spread(ratios(found[ours], found[theirs]))}   bar: {bar}")
