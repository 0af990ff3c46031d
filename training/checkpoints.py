"""Restart state of a stage: finished phases, and the current phase's weights, optimiser and position.

Below the stage's state folder: `<phase>/` (checkpoint folder of a finished phase), `<phase>.step-<n>/` (torch
distributed checkpoint), `<phase>.log.jsonl`, and `position.json`, written last, which says what of this counts. All
randomness is a function of the position (training/order.py), so position and torch's generator state are all that a
resume needs.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from data import storage
from training.loop import PhaseRun
from training.towers import Towers, load_towers, save_towers

_POSITION = "position.json"
LogLine = dict[str, float | str]


class PhaseResults(Mapping[str, Mapping[str, Tensor]]):
    """Weights of `init` and of finished phases, read when they are asked for."""

    def __init__(self, init_uri: str, state_uri: str) -> None:
        self.init_uri, self.state_uri = init_uri, state_uri
        self.finished: list[str] = []

    def towers(self, name: str) -> Towers:
        """A fresh copy of a phase's result."""
        return load_towers(self.init_uri if name == "init" else storage.join(self.state_uri, name))

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        weights: Mapping[str, Tensor] = self.towers(name).model.state_dict()
        return weights

    def __iter__(self) -> Iterator[str]:
        return iter(["init", *self.finished])

    def __len__(self) -> int:
        return 1 + len(self.finished)


class Ledger:
    """What is done and where the current phase stands. Every rank reads; rank 0 writes the small files."""

    def __init__(self, init_uri: str, state_uri: str, rank: int) -> None:
        self.state_uri, self.rank = state_uri, rank
        self.results = PhaseResults(init_uri, state_uri)
        position = storage.join(state_uri, _POSITION)
        self.position: dict[str, Any] = storage.read_json(position) if storage.exists(position) else {"finished": []}
        self.results.finished = list(self.position["finished"])

    def log(self, phase: str) -> list[LogLine]:
        """Log lines of a phase up to the position that counts."""
        uri = storage.join(self.state_uri, f"{phase}.log.jsonl")
        if not storage.exists(uri):
            return []
        lines = [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
        last = self.position.get("step", 0) if phase == self.position.get("phase") else None
        return (
            lines
            if phase in self.results.finished
            else [line for line in lines if last is not None and line["step"] <= last]
        )

    def restore(self, phase: str, run: PhaseRun) -> None:
        """Bring weights, optimiser, generator and position of `run` to this phase's last checkpoint, if any."""
        if self.position.get("phase") != phase:
            return
        state = _state(run)
        _load(state, storage.join(self.state_uri, f"{phase}.step-{self.position['step']}"))
        set_state_dict(
            run.towers, run.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )  # fmt: skip
        torch.set_rng_state(state["rng"])
        run.start_step = int(self.position["step"])

    def checkpoint(self, phase: str, step: int, run: PhaseRun, log: list[LogLine]) -> None:
        """Write the state after `step` steps; the position moves to it only when it is whole."""
        name = f"{phase}.step-{step}"
        _save(_state(run), storage.join(self.state_uri, name))
        old = dict(self.position)
        self._write_log(phase, log)
        self._move({"finished": self.results.finished, "phase": phase, "step": step})
        if self.rank == 0 and old.get("phase"):
            previous = f"{old['phase']}.step-{old['step']}"
            if previous != name:
                storage.remove(storage.join(self.state_uri, previous))

    def finish(self, phase: str, towers: Towers, log: list[LogLine]) -> None:
        """Keep a phase's result."""
        if self.rank == 0:
            save_towers(towers, storage.join(self.state_uri, phase))
        self._write_log(phase, log)
        self.results.finished.append(phase)
        self._move({"finished": self.results.finished})

    def _write_log(self, phase: str, log: list[LogLine]) -> None:
        if self.rank == 0:
            text = "".join(json.dumps(line) + "\n" for line in log)
            storage.write_bytes(storage.join(self.state_uri, f"{phase}.log.jsonl"), text.encode())

    def _move(self, position: dict[str, Any]) -> None:
        if dist.is_initialized():
            dist.barrier()
        if self.rank == 0:
            storage.write_json(storage.join(self.state_uri, _POSITION), position)
        self.position = position
        if dist.is_initialized():
            dist.barrier()


def _state(run: PhaseRun) -> dict[str, Any]:
    model, optimizer = get_state_dict(run.towers, run.optimizer)
    return {"model": model, "optimizer": optimizer, "rng": torch.get_rng_state()}


@contextmanager
def _single_process_is_meant() -> Iterator[None]:
    """Silence torch's guess about `no_dist`: a run of one rank never initialises torch.distributed."""
    with warnings.catch_warnings():
        guess = r".*assuming the intent is to (save|load) in a single process"
        warnings.filterwarnings("ignore", message=guess, category=UserWarning)
        yield


def _save(state: dict[str, Any], uri: str) -> None:
    storage.remove(uri)  # a torn earlier attempt at the same step
    if storage.is_local(uri):
        with _single_process_is_meant():
            save(state, checkpoint_id=uri, no_dist=not dist.is_initialized())
        return
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    with _single_process_is_meant():
        save(state, storage_writer=FsspecWriter(uri), no_dist=not dist.is_initialized())


def _load(state: dict[str, Any], uri: str) -> None:
    if storage.is_local(uri):
        with _single_process_is_meant():
            load(state, checkpoint_id=uri, no_dist=not dist.is_initialized())
        return
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    with _single_process_is_meant():
        load(state, storage_reader=FsspecReader(uri), no_dist=not dist.is_initialized())
