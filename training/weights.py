"""Which weights train: rules by name, decay groups, and hashes that prove what stayed frozen."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from data.errors import ModelError
from training.names import matches
from training.parallel import local
from training.specs import AdamW


def set_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let exactly the parameters train whose names the patterns mean; return the names of the frozen ones.

    Raises:
        ModelError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in names):
            raise ModelError(f"trainable {pattern!r}: matches none of the {len(names)} parameters, e.g. {names[0]!r}")
    frozen = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(matches(name, patterns))
        frozen += [] if parameter.requires_grad else [name]
    return frozen


def weights_digest(weights: Mapping[str, Tensor], names: Iterable[str] | None = None) -> str:
    """SHA-256 over the named weights' bytes (all by default); of sharded weights, over this rank's part."""
    state = hashlib.sha256()
    for name in sorted(weights if names is None else names):
        value = local(weights[name].detach()).cpu().contiguous()
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.view(-1).numpy().tobytes())
    return state.hexdigest()


def decays(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix that weight decay shrinks."""
    return parameter.ndim >= 2 and not name.endswith("positional_embedding")


def parameter_groups(model: nn.Module, spec: AdamW) -> list[dict[str, Any]]:
    """Matrices with weight decay; norms, biases and other vectors without; scalars apart, since nothing shards them."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decays(name, p)]
    vectors = [p for name, p in named if p.ndim and not decays(name, p)]
    scalars = [p for _, p in named if p.ndim == 0]
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}]
    groups += [{"params": rest, "weight_decay": 0.0} for rest in (vectors, scalars)]
    return [group for group in groups if group["params"]]
