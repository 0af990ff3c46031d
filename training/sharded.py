"""Weights and optimiser of all ranks as one torch distributed checkpoint: saved in the background, read by any number.

The layout of ranks is no part of a checkpoint: what two DDP ranks wrote, one rank or four FSDP ranks read back.
"""

import warnings
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from data import storage
from training.parallel import share_buffers


def writers() -> dist.ProcessGroup | None:
    """A process group for saving, apart from the training's; None where there is one rank. Every rank calls it."""
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def begin_save(
    towers: nn.Module, optimizer: torch.optim.Optimizer, uri: str, group: dist.ProcessGroup | None
) -> Future[Any]:
    """Copy the state and write it in a thread; what is done to the towers from here on is not in it."""
    share_buffers(towers)
    state = _state(towers, optimizer)
    _do_not_guess()
    begun = async_save(state, storage_writer=_writer(uri), process_group=group, no_dist=group is None)
    return begun.upload_completion if isinstance(begun, AsyncSaveResponse) else begun


def result_of(saving: Future[Any]) -> None:
    """Wait for the end of a save; raise what went wrong, on whichever rank, as it was raised."""
    try:
        saving.result()
    except CheckpointException as error:
        raise next(cause for cause, _ in error.failures.values()) from error


def read_back(towers: nn.Module, optimizer: torch.optim.Optimizer, uri: str) -> None:
    """Bring weights and optimiser to a saved state; each rank reads its own part."""
    state = _state(towers, optimizer)
    _do_not_guess()
    load(state, storage_reader=_reader(uri), no_dist=not dist.is_initialized())
    set_state_dict(towers, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _state(towers: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    _begin_averages(optimizer)
    model, averages = get_state_dict(towers, optimizer)
    return {"model": model, "optimizer": averages}


def _begin_averages(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW's state to parameters that had no gradient yet, as their first one would: all states have all names.

    torch would do it with a step of zero gradients, and only where no parameter has a state.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": step, **averages}


def _writer(uri: str) -> StorageWriter:
    if storage.is_local(uri):
        return FileSystemWriter(uri)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    return FsspecWriter(uri, sync_files=False)  # an object store has nothing to sync


def _reader(uri: str) -> StorageReader:
    if storage.is_local(uri):
        return FileSystemReader(uri)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    return FsspecReader(uri)


def _do_not_guess() -> None:
    """Silence torch's word on `no_dist`, also in the thread that saves: a run of one rank never initialises ranks."""
    guess = r".*assuming the intent is to (save|load) in a single process"
    warnings.filterwarnings("ignore", message=guess, category=UserWarning)
