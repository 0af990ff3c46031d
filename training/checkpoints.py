"""Restart state of a stage: finished phases, and the current phase's weights, optimiser and position.

Below the stage's state folder: `<phase>/` (checkpoint folder of a finished phase), `<phase>.step-<n>/` (torch
distributed checkpoint, which any number of ranks reads back), `<phase>.best-<n>/` (checkpoint folder of the lowest
validation loss), `<phase>.log.jsonl`, and `position.json`, written last, which says what of this counts. All
randomness is a function of the position (training/order.py, training/loop.py), so weights, optimiser and position are
all that a resume needs.

Checkpoints are written behind the training: staged to memory, then saved by a thread, over a process group of their
own (training/sharded.py); rank 0 moves the position when the whole is there. What a kill leaves half written is never
read, and removed by the next start.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from data import storage
from training.loop import PhaseRun
from training.sharded import begin_save, read_back, result_of, writers
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


@dataclass(frozen=True)
class Writing:
    """A checkpoint on its way."""

    phase: str
    step: int
    log: list[LogLine]
    done: Future[Any]


class Ledger:
    """What is done and where the current phase stands. Every rank reads; rank 0 writes the small files."""

    def __init__(self, init_uri: str, state_uri: str, rank: int, keep: int = 1) -> None:
        """Read where the stage stands. `keep`: so many of the running phase's checkpoints stay, the last ones."""
        self.state_uri, self.rank, self.keep = state_uri, rank, keep
        self.results = PhaseResults(init_uri, state_uri)
        position = storage.join(state_uri, _POSITION)
        self.position: dict[str, Any] = storage.read_json(position) if storage.exists(position) else {"finished": []}
        self.results.finished = list(self.position["finished"])
        self._writing: Writing | None = None
        self._writers = writers()  # also keeps rank 0 from moving what another rank has not read yet
        if rank == 0:
            self._remove_litter()

    def log(self, phase: str) -> list[LogLine]:
        """Log lines of a phase up to the position that counts."""
        uri = storage.join(self.state_uri, f"{phase}.log.jsonl")
        last = self._last_step(phase)
        if (last is None and phase not in self.results.finished) or not storage.exists(uri):
            return []
        lines = [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
        return lines if last is None else [line for line in lines if line["step"] <= last]

    def _last_step(self, phase: str) -> int | None:
        return int(self.position["steps"][-1]) if phase == self.position.get("phase") else None

    def restore(self, phase: str, run: PhaseRun) -> None:
        """Bring weights, optimiser and position of `run` to this phase's last checkpoint, if any."""
        step = self._last_step(phase)
        if step is not None:
            read_back(run.towers, run.optimizer, self._at(phase, step))
            run.start_step = step

    def checkpoint(self, phase: str, step: int, run: PhaseRun, log: list[LogLine]) -> None:
        """Begin to write the state after `step` steps; the position moves to it when it is whole.

        Raises:
            StorageError: the one before could not be written.
        """
        self.settle()
        done = begin_save(run.towers, run.optimizer, self._at(phase, step), self._writers)
        self._writing = Writing(phase, step, list(log), done)

    def poll(self) -> None:
        """Let the position move if a checkpoint has become whole meanwhile.

        Raises:
            StorageError: it could not be written.
        """
        if self._writing is not None and self._writing.done.done():
            self.settle()

    def settle(self) -> None:
        """Wait until nothing is on its way.

        Raises:
            StorageError: the checkpoint could not be written.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        with storage.explained(self._at(writing.phase, writing.step), "write"):
            result_of(writing.done)
        before = self.position["steps"] if writing.phase == self.position.get("phase") else []
        position = {"phase": writing.phase, "steps": [*before, writing.step][-self.keep :]}
        self._move(position, writing.phase, writing.log)

    def keep_best(self, phase: str, step: int, towers: Towers, weights: Mapping[str, Tensor]) -> None:
        """Keep `weights`, whole, of `towers` as the best so far; the position has yet to reach `step`."""
        if self.rank == 0:
            save_towers(towers, storage.join(self.state_uri, _best_name(phase, step)), weights)

    def best(self, phase: str, log: list[LogLine]) -> Mapping[str, Tensor]:
        """The weights that were kept at the lowest validation loss of `log`."""
        step = best_step(log)
        assert step is not None, f"phase {phase}: no validation in its log"
        weights: Mapping[str, Tensor] = load_towers(
            storage.join(self.state_uri, _best_name(phase, step))
        ).model.state_dict()
        return weights

    def finish(self, phase: str, towers: Towers, weights: Mapping[str, Tensor], log: list[LogLine]) -> None:
        """Keep a phase's result: `weights`, whole, of `towers`."""
        self.settle()
        if self.rank == 0:
            save_towers(towers, storage.join(self.state_uri, phase), weights)
        self.results.finished.append(phase)
        self._move({}, phase, log)
        if dist.is_initialized():
            dist.barrier()  # the next phase may start from this one's result, on every rank

    def _at(self, phase: str, step: int) -> str:
        return storage.join(self.state_uri, _name(phase, step))

    def _move(self, position: dict[str, Any], phase: str, log: list[LogLine]) -> None:
        self.position = {"finished": list(self.results.finished), **position}
        if self.rank == 0:
            text = "".join(json.dumps(line) + "\n" for line in log)
            storage.write_bytes(storage.join(self.state_uri, f"{phase}.log.jsonl"), text.encode())
            storage.write_json(storage.join(self.state_uri, _POSITION), self.position)
            self._remove_superseded()

    def _remove_superseded(self) -> None:
        """Remove what the position has moved past; what lies ahead of it stays: the training wrote it since."""
        reached = self._last_step(self.position.get("phase", ""))
        for folder, step in self._folders_that_do_not_count():
            if reached is None or step < reached:
                storage.remove(folder)

    def _remove_litter(self) -> None:
        """Remove all that does not count: this start makes it again."""
        for folder, _ in self._folders_that_do_not_count():
            storage.remove(folder)
        for name, _ in storage.list_files(self.state_uri):
            if storage.is_temporary(name):
                storage.remove(storage.join(self.state_uri, name))

    def _folders_that_do_not_count(self) -> Iterator[tuple[str, int]]:
        """(URI, step) of checkpoints and best weights that the position does not speak of."""
        phase = self.position.get("phase", "")
        kept = {_name(phase, step) for step in self.position.get("steps", [])}
        best = best_step(self.log(phase))
        kept |= set() if best is None else {_best_name(phase, best)}
        for name in storage.list_folders(self.state_uri):
            _, _, step = name.rpartition("-")
            if (".step-" in name or ".best-" in name) and name not in kept:
                yield storage.join(self.state_uri, name), int(step)


def best_step(log: list[LogLine]) -> int | None:
    """The step of the lowest validation loss, the first of equals; None where nothing was validated."""
    validated = [(line["validation_loss"], line["step"]) for line in log if "validation_loss" in line]
    return int(min(validated)[1]) if validated else None


def _name(phase: str, step: int) -> str:
    return f"{phase}.step-{step}"


def _best_name(phase: str, step: int) -> str:
    return f"{phase}.best-{step}"
