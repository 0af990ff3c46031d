"""Processes that work beside a run's own, in its process group: its Ray, what follows its events for W&B."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from components.runtime import end_with_parent


def lead_group() -> None:
    """Be the leader of a run's processes: end as told, and end them all when the command that watches is gone."""
    signal.signal(signal.SIGHUP, _end_group)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end_with_parent(signal.SIGHUP)


def _end_group(*_: object) -> None:
    """The watching command is gone: leave no process behind."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


@contextmanager
def beside(module: str, *arguments: str, end_seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module while the block runs; then wait so long for its end, which the block has asked for, or end it."""
    process = subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        try:
            process.wait(end_seconds)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def followed_by(module: str, argument: str, end_seconds: float) -> Iterator[None]:
    """Run a module that follows the events of what the block does; it ends after its input is closed."""
    with beside(module, argument, end_seconds=end_seconds) as follower:
        try:
            yield
        finally:
            assert follower.stdin
            follower.stdin.close()
