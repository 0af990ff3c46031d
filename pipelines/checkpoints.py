"""Which checkpoint a word on the command line names: looked at without torch, its weights never read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data import storage
from data.artifacts import find_fingerprint
from data.errors import ModelError
from training.checkpoint_folder import open_folder
from training.sizes import model_config
from training.specs import ModelSpec

WAYS = "a checkpoint's folder, ARCH:TAG (ViT-B-32:laion2b_s34b_b79k) or ARCH:FILE.safetensors"
_REMOTE_WEIGHTS = re.compile(r"[^:/]+:[a-z0-9]+://")  # ARCH:s3://bucket/weights.safetensors
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint(NamedTuple):
    """A checkpoint that was named: its own name, the stage that takes it, and the open_clip config of its towers.

    The config is empty where it is known only when the stage runs.
    """

    name: str
    spec: ModelSpec
    config: Mapping[str, Any]


def names_remote_weights(text: str) -> bool:
    """Whether this is ARCH:URL and no folder, local or remote."""
    return bool(_REMOTE_WEIGHTS.match(text))


def read_checkpoint(text: str, root: str, may_be_random: bool = False) -> Checkpoint:
    """A folder, `ARCH:TAG`, `ARCH:FILE.safetensors`, the fingerprint of a finished one; else `ARCH` of random weights.

    `root`: what lies below it is taken as it is; a folder from elsewhere is copied.

    Raises:
        UserError: it is none of these, an architecture that is not known, or a pickle.
    """
    if _FINGERPRINT.fullmatch(text):
        return _read_fingerprint(text, root)
    if text.endswith(_PICKLES):
        raise ModelError(f"{text}: is a pickle, which is never loaded; save the weights as safetensors")
    architecture, colon, weights = text.partition(":")
    if names_remote_weights(text):
        return _read_architecture(architecture, weights)
    is_there = storage.exists(storage.normalise(text))
    if colon and not is_there and "//" not in text:
        return _read_architecture(architecture, weights)
    if text.endswith(".safetensors"):
        raise ModelError(f"{text}: weights alone; say of what architecture they are: ARCH:{text}")
    if not is_there and "/" not in text:
        return _read_word(text, may_be_random)
    return _read_folder(text, root)


def _read_word(text: str, may_be_random: bool) -> Checkpoint:
    if not may_be_random:
        raise ModelError(f"{text}: no such folder; give {WAYS}")
    try:
        return Checkpoint(text, ModelSpec(architecture=text), model_config(text))
    except ModelError as error:
        raise ModelError(f"{error}, and no folder; give {WAYS}, or ARCH for random weights") from error


def _read_folder(text: str, root: str) -> Checkpoint:
    folder = open_folder(text)
    name, config = storage.name_of(folder.uri), folder.config["model_cfg"]
    if folder.artifact is None:
        return Checkpoint(name, ModelSpec(folder=folder.uri), config)
    fingerprint = folder.artifact.fingerprint
    name = name.removesuffix(f"-{fingerprint[:12]}")
    if find_fingerprint(storage.normalise(root), fingerprint) is not None:
        return Checkpoint(name, ModelSpec(artifact=fingerprint), config)
    return Checkpoint(name, ModelSpec(folder=folder.uri), config)


def _read_fingerprint(fingerprint: str, root: str) -> Checkpoint:
    found = find_fingerprint(storage.normalise(root), fingerprint)
    if found is None:  # the stage says so where it runs: a recipe may be looked at away from its root
        return Checkpoint(fingerprint[:12], ModelSpec(artifact=fingerprint), {})
    return _read_folder(found.uri, root)


def _read_architecture(architecture: str, weights: str) -> Checkpoint:
    config = model_config(architecture)
    if not weights:
        raise ModelError(f"{architecture}: no weights; give ARCH:TAG or ARCH:FILE.safetensors")
    if weights.endswith(".safetensors"):
        if not storage.exists(weights) or storage.is_folder(weights):
            raise ModelError(f"{architecture}:{weights}: no such file; check the path")
        name, weights = Path(weights).stem, storage.normalise(weights)
    else:
        name = f"{architecture}-{weights}"
    return Checkpoint(name, ModelSpec(architecture=architecture, pretrained=weights), config)
