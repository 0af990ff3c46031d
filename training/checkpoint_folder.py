"""A checkpoint that exists, looked at without torch: a folder of ours, or any in open_clip's local-dir layout."""

from typing import Any, NamedTuple

from data import storage
from data.artifacts import RECORD_NAME, Artifact, open_artifact
from data.errors import ModelError, RecipeError
from data.spec import digest

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
OWN_WEIGHTS_NAME = "clipworks_model.safetensors"
OWN_CONFIG_NAME = "clipworks.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class CheckpointFolder(NamedTuple):
    """What a checkpoint folder holds; `artifact` is its record where it is one of ours."""

    uri: str
    config: dict[str, Any]
    layout: tuple[dict[str, Any], ...]
    weights: str
    artifact: Artifact | None

    def identity(self) -> dict[str, Any]:
        """Digests of its weights and config, and what it was made by; no path."""
        found: dict[str, Any] = {"config": digest(self.config), "weights": storage.sha256(self.weights)}
        if self.layout:
            found["layout"] = digest(list(self.layout))
        if self.artifact is not None:
            found["origin"] = self.artifact.fingerprint
        return found


def open_folder(uri: str) -> CheckpointFolder:
    """Look at a checkpoint folder.

    Raises:
        ModelError: there is none, it lacks its config or its weights, or they are a pickle.
        ArtifactError: it is an artifact of another kind, or its record cannot be read.
    """
    uri = storage.normalise(uri)
    if not storage.exists(uri):
        raise ModelError(f"{uri}: no such folder; give the folder of a checkpoint")
    artifact = open_artifact(uri, "checkpoint") if storage.exists(storage.join(uri, RECORD_NAME)) else None
    if not storage.exists(storage.join(uri, CONFIG_NAME)):
        raise ModelError(f"{uri}: no {CONFIG_NAME}; give a checkpoint folder")
    config = storage.read_json(storage.join(uri, CONFIG_NAME))
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise ModelError(f"{uri}: {CONFIG_NAME} has no model_cfg; give a folder in open_clip's local-dir layout")
    layout_uri = storage.join(uri, OWN_CONFIG_NAME)
    layout = tuple(storage.read_json(layout_uri)["surgeries"]) if storage.exists(layout_uri) else ()
    weights = storage.join(uri, OWN_WEIGHTS_NAME if layout else WEIGHTS_NAME)
    if not storage.exists(weights):
        raise ModelError(f"{uri}: no {storage.name_of(weights)}{_pickle_hint(uri)}")
    return CheckpointFolder(uri, config, layout, weights, artifact)


def _pickle_hint(uri: str) -> str:
    pickles = [name for name, _ in storage.list_files(uri) if name.endswith(_PICKLES)]
    if pickles:
        return f"; {pickles[0]} is a pickle, which is never loaded: save the weights as safetensors"
    return "; its weights are missing"


def weights_file_identity(path: str) -> str:
    """SHA-256 of a local weights file.

    Raises:
        RecipeError: there is no such file.
    """
    if not storage.exists(path) or storage.is_folder(path):
        raise RecipeError(f"pretrained: no file {path}; check the path")
    return storage.sha256(path)
