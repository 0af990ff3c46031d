"""Towers over ranks: replicated (DDP) or sharded (FSDP2), with activation checkpointing and compiled blocks.

All of it says where a step is computed, never what: the same global batch gives the same weights up to the order of
sums. Nothing wraps or renames a parameter, so state dicts read the same whatever the place.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from data.errors import ModelError
from data.place import Place
from training.towers import Towers


def parallelise(towers: Towers, place: Place, autocast: torch.dtype | None) -> nn.Module:
    """What the loop calls for `towers`, on the device they are on; call it before the optimiser is made.

    Raises:
        ModelError: activation checkpointing is asked for and these towers have none.
    """
    if place.activation_checkpointing:
        checkpoint_activations(towers)
    if place.compile:
        for block in repeated_blocks(towers.model):
            block.compile()  # in place: names stay
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return towers
    for value in chain(towers.parameters(), towers.buffers()):
        dist.broadcast(value.detach(), 0)  # a surgery may have drawn random weights
    scalars = {name: parameter for name, parameter in towers.named_parameters() if parameter.ndim == 0}
    for parameter in scalars.values():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average)  # type: ignore[no-untyped-call]
    if place.parallel == "fsdp":
        return shard(towers, set(scalars.values()), autocast)
    return replicate(towers, list(scalars))


def checkpoint_activations(towers: Towers) -> None:
    """Keep one activation a block and compute the others again in the backward pass.

    Raises:
        ModelError: a tower cannot; some of open_clip's only pretend to.
    """
    model: Any = towers.model
    image = set(model.visual.modules())
    try:
        model.set_grad_checkpointing(True)
        switched = [any(map(_recomputes, part)) for part in (image, set(model.modules()) - image)]
    except (AttributeError, AssertionError, NotImplementedError):
        switched = [False]
    if not all(switched):
        raise ModelError(
            "activation_checkpointing: a tower of this model cannot recompute its blocks; set it to false in the place"
        )
    for module in model.modules():
        if hasattr(module, "exposed"):
            module.exposed = _FirstExposed(module.exposed)


def _recomputes(module: nn.Module) -> bool:
    return bool(getattr(module, "grad_checkpointing", False) or getattr(module, "gradient_checkpointing", False))


class _FirstExposed(dict[str, Tensor]):
    """What a module exposes in the forward pass, without what it says again when a block is recomputed.

    That would be taken for the next forward pass's, and keep a block's activations until then.
    """

    def __setitem__(self, name: str, value: Tensor) -> None:
        if torch._C._current_graph_task_id() < 0:  # not inside a backward pass; torch.utils.checkpoint asks so too
            super().__setitem__(name, value)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of each tower: children of containers that hold only one class, outermost first, never nested."""
    containers = [
        module for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(child) for child in module}) == 1
        and any(True for _ in module.parameters())
    ]  # fmt: skip
    blocks = [child for container in containers for child in container]
    nested = {id(inner) for block in blocks for inner in block.modules() if inner is not block}
    return [block for block in blocks if id(block) not in nested]


def replicate(towers: Towers, scalars: list[str]) -> nn.Module:
    """DDP over all but the scalars: it would wait for the gradient of a temperature that no objective reads.

    Left alone, DDP puts its buckets into another order after its first step. Sums of three ranks and more depend on
    where in a bucket a gradient lies, so a resumed run would part from an undisturbed one in the last bit. It keeps
    them where it looks for unused parameters: 0.5 ms a step for a ViT-B-32, and a line in the log.
    """
    if not any(parameter.requires_grad and parameter.ndim for parameter in towers.parameters()):
        return towers
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(towers, scalars)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(
        towers, gradient_as_bucket_view=True, forward_sync_buffers=False, init_sync=False, find_unused_parameters=True
    )


def shard(towers: Towers, scalars: set[nn.Parameter], autocast: torch.dtype | None) -> nn.Module:
    """FSDP2: every block a unit, the rest one more; scalars stay whole on each rank, for nothing splits them.

    Autocast decides what is computed in bf16, here as without FSDP: what it would cast anyway, a block's matrices,
    travels in bf16, gradients and all else in float32.
    """
    mesh = init_device_mesh(towers.device.type, (dist.get_world_size(),))
    matrices = MixedPrecisionPolicy(autocast, param_dtype_override_fn=_own_unless_matrix, cast_forward_inputs=False)
    for block in repeated_blocks(towers.model):
        fully_shard(block, mesh=mesh, mp_policy=matrices, ignored_params=scalars)
    fully_shard(towers, mesh=mesh, ignored_params=scalars)
    return towers


def _own_unless_matrix(parameter: nn.Parameter) -> torch.dtype | None:
    return None if parameter.ndim >= 2 else parameter.dtype


def _average(parameter: Tensor) -> None:
    """Average a scalar's gradient, which neither DDP nor FSDP sees; again after each chunk changes nothing before."""
    if parameter.grad is None:
        return  # a chunk's backward pass came through without one, on all ranks alike
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


@contextmanager
def _without_sync(module: FSDPModule) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def synchronised(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Let gradients go between ranks only with the last chunk of a batch."""
    if now or not isinstance(module, DistributedDataParallel | FSDPModule):
        return nullcontext()
    return module.no_sync() if isinstance(module, DistributedDataParallel) else _without_sync(module)


def share_buffers(towers: nn.Module) -> None:
    """Give every rank the first one's buffers: running statistics are each rank's own, the result has the first's."""
    if dist.is_initialized():
        for buffer in towers.buffers():
            dist.broadcast(buffer, 0)


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient, and training mode afterwards, sharded as it was."""
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train()
        if isinstance(module, FSDPModule):
            module.reshard()  # the root waits for a backward pass with that


def local(value: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """All of a sharded tensor (a collective), or the tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(towers: Towers) -> dict[str, Tensor]:
    """The model's weights by name, whole on every rank (a collective)."""
    return {name: whole(value) for name, value in towers.model.state_dict().items()}


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients down to the norm `limit`; return the norm before, over all ranks' shards; nan: no gradients."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.tensor(math.nan)
    sharded = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    plain = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = torch.nn.utils.get_total_norm(plain)
    if sharded:
        squared = torch.nn.utils.get_total_norm(sharded).square()
        dist.all_reduce(squared)
        norm = (squared + norm.square().to(squared.device)).sqrt()
    if limit is not None:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(chain(sharded, plain)), scale)
    return norm
