"""Dual encoders: any open_clip architecture in, a checkpoint folder out that open_clip loads back where its layout can.

A checkpoint holds `open_clip_config.json` and either `open_clip_model.safetensors` (loads with
`open_clip.create_model_and_transforms("local-dir:FOLDER")`) or, when a surgery left open_clip's layout,
`clipworks_model.safetensors` and `clipworks.json`, which names the surgeries to apply before the weights fit.
Shapes: B pairs or texts, C channels, H height, W width, L tokens, D embed_dim.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from data import storage
from data.artifacts import require_fingerprint
from data.errors import ModelError, nearest
from data.features import Floats
from data.stage import Outcome, Work
from training.checkpoint_folder import CONFIG_NAME, OWN_CONFIG_NAME, OWN_WEIGHTS_NAME, WEIGHTS_NAME, open_folder
from training.names import of_slot
from training.pictures import Fit, Pixels
from training.sizes import count
from training.specs import ModelSpec

_WEIGHTS_FILES = (".safetensors", ".pt", ".pth", ".bin")


class Towers(nn.Module):
    """An open_clip model with its config, preprocessing and the surgeries that changed it."""

    def __init__(self, model: nn.Module, config: dict[str, Any], layout: tuple[dict[str, Any], ...] = ()) -> None:
        """`config` is open_clip's {"model_cfg", "preprocess_cfg"}.

        `layout` lists surgeries that open_clip cannot express.
        """
        super().__init__()
        self.model, self.config, self.layout = model, config, layout

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named outputs for named inputs (training/inputs.py): `image` (B, C, H, W), `text` and `text.<slot>` (B, L).

        `image_features`, `text_features` (B, D) of length 1 and `raw_image_features`, `raw_text_features` before that;
        of text slot S `text_features.S`; `logit_scale` (), `logit_bias` () if any. What a module exposes (`exposed`,
        set by its own forward) is `image_<name>` or `text_<name>`, stacked over layers in dimension 1. Aids add theirs.
        """
        seen: dict[str, Tensor] = {}
        outputs = self._image_outputs(inputs["image"], seen)
        for name, ids_BL in inputs.items():
            if name == "text" or name.startswith("text."):
                outputs |= self._text_outputs(ids_BL, name.partition(".")[2], seen)
        model: Any = self.model
        outputs["logit_scale"] = model.logit_scale.exp()
        if getattr(model, "logit_bias", None) is not None:
            outputs["logit_bias"] = model.logit_bias
        for aid in self.aids.values():
            outputs |= aid.outputs(self.model, inputs, outputs | seen)
        return outputs

    def _image_outputs(self, image_BCHW: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._reads_tokens:
            raw_BD, states_BPW = self._image_states(image_BCHW)
            seen |= {"image_states": states_BPW, "image_tokens": self._image_projection(states_BPW)}
        else:
            raw_BD = self.model.encode_image(image_BCHW)  # type: ignore[operator]
        features = {"image_features": nn.functional.normalize(raw_BD, dim=-1), "raw_image_features": raw_BD}
        return features | self._exposed("image_", "")

    def _text_outputs(self, text_BL: Tensor, slot: str, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of one text slot; tokens are those of the main captions."""
        if self._reads_tokens and not slot:
            states_BLW = self.text_states(text_BL)
            raw_BD = self.text_projection(self.at_end(states_BLW, text_BL))
            last = text_BL.argmax(dim=-1, keepdim=True)
            place = torch.arange(text_BL.shape[1], device=text_BL.device)
            mask_BL = (place > 0) & (place < last)
            seen |= {"text_tokens": self.text_projection(states_BLW), "text_mask": mask_BL}
        else:
            raw_BD = self._raw_text(text_BL)
        features = {"text_features": nn.functional.normalize(raw_BD, dim=-1), "raw_text_features": raw_BD}
        return {of_slot(name, slot): value for name, value in features.items()} | self._exposed("text_", slot)

    @property
    def aids(self) -> Mapping[str, Any]:
        """Modules for training only that stand beside the towers (training/surgeries/aids.py), by name."""
        return dict(getattr(self.model, "aids", {}))

    @property
    def shared_outputs(self) -> frozenset[str]:
        """Names of outputs whose rows are not the batch's pairs."""
        return frozenset({"logit_scale", "logit_bias"}).union(*(aid.shared for aid in self.aids.values()))

    @property
    def _reads_tokens(self) -> bool:
        return any(aid.reads_tokens for aid in self.aids.values())

    def require_tokens(self, who: str) -> None:
        """Refuse towers whose patches and words cannot be told.

        Raises:
            ModelError: names the tower that is not open_clip's own transformer.
        """
        if type(self.model.visual) is not VisionTransformer:
            raise ModelError(f"{who}: needs open_clip's own ViT as image tower, for its patches; this is another kind")
        if not self.walks_text:
            raise ModelError(f"{who}: needs open_clip's own causal text tower, for its words; this is another kind")

    def _image_states(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) features before normalisation and (B, P, W) patches before the projection."""
        visual: Any = self.model.visual
        before, visual.output_tokens = visual.output_tokens, True
        try:
            raw_BD, states_BPW = visual(image_BCHW)
        finally:
            visual.output_tokens = before
        return raw_BD, states_BPW

    def _image_projection(self, states_BPW: Tensor) -> Tensor:
        projection: Any = self.model.visual.proj  # type: ignore[union-attr]
        return states_BPW if projection is None else states_BPW @ projection

    def encode_text(self, text_BL: Tensor) -> Tensor:
        """text_features (B, D) of token ids that may have been `trimmed`."""
        return nn.functional.normalize(self._raw_text(text_BL), dim=-1)

    def _raw_text(self, text_BL: Tensor) -> Tensor:
        if not self.trims_text:
            return self.model.encode_text(text_BL)  # type: ignore[operator,no-any-return]
        # open_clip adds all its positions and masks all its tokens whatever the length, so it is walked through here
        return self.text_projection(self.at_end(self.text_states(text_BL), text_BL))

    def text_states(self, text_BL: Tensor) -> Tensor:
        """(B, L, W) of a causal text tower after its last norm."""
        tower, length = self.text_tower, text_BL.shape[1]
        x_BLW = tower.token_embedding(text_BL) + tower.positional_embedding[:length]
        mask_LL = tower.attn_mask[:length, :length]
        return tower.ln_final(tower.transformer(x_BLW, attn_mask=mask_LL))  # type: ignore[no-any-return]

    @staticmethod
    def at_end(states_BLW: Tensor, text_BL: Tensor) -> Tensor:
        """(B, W) at the end-of-text token, the largest id of a row."""
        return states_BLW[torch.arange(len(states_BLW), device=states_BLW.device), text_BL.argmax(dim=-1)]

    def text_projection(self, states: Tensor) -> Tensor:
        """(..., W) -> (..., D)."""
        projection = self.text_tower.text_projection
        if isinstance(projection, nn.Linear):
            return projection(states)  # type: ignore[no-any-return]
        return states if projection is None else states @ projection

    @property
    def text_tower(self) -> Any:
        """The module that holds token_embedding, positional_embedding and transformer; None where nothing does."""
        return self.model if isinstance(self.model, open_clip.CLIP) else getattr(self.model, "text", None)

    @property
    def walks_text(self) -> bool:
        """True where the text tower is open_clip's own, causal, and reads at the end-of-text token."""
        tower = self.text_tower
        if type(tower) not in (open_clip.CLIP, TextTransformer):
            return False
        pool = tower.text_pool_type if isinstance(tower, open_clip.CLIP) else tower.pool_type
        has_more = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
        return tower.attn_mask is not None and pool == "argmax" and not has_more

    @property
    def trims_text(self) -> bool:
        """True where a shorter text tensor gives the same outputs.

        Not where something looks at every token: a router's balance, an aid that reads words.
        """
        exposes = self._reads_tokens or any(hasattr(module, "exposed") for module in self.model.modules())
        return self.walks_text and not exposes

    def trimmed(self, text_BL: Tensor) -> Tensor:
        """The columns of token ids that can matter: captions of 10 tokens cost 16, not 77.

        Nothing behind the last end-of-text token (the largest id of a row) has an influence on the features of a
        causal tower that reads them there. Lengths are multiples of 8, as kernels like them. Reads the ids: call it
        before they go to a GPU.
        """
        longest = int(text_BL.argmax(dim=-1).max()) + 1
        return text_BL[:, : -(-longest // 8) * 8] if self.trims_text else text_BL

    def _exposed(self, prefix: str, slot: str) -> dict[str, Tensor]:
        layers: dict[str, list[Tensor]] = {}
        for module in self.model.modules():
            exposed = getattr(module, "exposed", None)
            if exposed:
                for name, value in exposed.items():
                    layers.setdefault(of_slot(prefix + name, slot), []).append(value)
                exposed.clear()
        return {name: torch.stack(values, dim=1) for name, values in layers.items()}

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        size: Any = self.model.visual.image_size  # type: ignore[union-attr]
        return int(size[0] if isinstance(size, tuple | list) else size)

    @cached_property
    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Per-channel mean and standard deviation, (1, 3, 1, 1) each, for pixels in [0, 1]."""
        preprocess = self.config["preprocess_cfg"]
        mean, std = (torch.tensor(preprocess[key], dtype=torch.float32).view(1, 3, 1, 1) for key in ("mean", "std"))
        return mean, std

    @property
    def fit(self) -> Fit:
        """How a picture becomes the square that these towers see; SigLIP's squash it, for one."""
        config = self.config["preprocess_cfg"]
        mode: Any = config.get("resize_mode") or "shortest"
        return Fit(mode, config.get("interpolation") == "bilinear", int(config.get("fill_color") or 0))

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """Bring uint8 pixels to the towers' input range, on the device they are on."""
        mean, std = (value.to(image_BCHW.device) for value in self.mean_std)
        return (image_BCHW.float() / 255 - mean) / std

    @cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer for this text tower: texts -> (B, L) token ids."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, CONFIG_NAME).write_text(json.dumps(self.config))
            return open_clip.get_tokenizer(f"local-dir:{folder}")

    @torch.inference_mode()
    def encode_images(self, pixels_BHWC: Pixels) -> Floats:
        """image_features (B, D) of uint8 pixels (B, H, W, 3) at image_size, as numpy."""
        image = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).to(self.device)
        return self.model.encode_image(self.normalise(image), normalize=True).float().cpu().numpy()  # type: ignore[operator,no-any-return]

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], chunk: int = 512) -> Floats:
        """text_features (B, D) of texts, as numpy."""
        parts = [
            self.encode_text(self.trimmed(self.tokenizer(list(texts[at : at + chunk]))).to(self.device))
            for at in range(0, len(texts), chunk)
        ]
        return torch.cat(parts).float().cpu().numpy() if parts else np.empty((0, self.embed_dim), np.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def embed_dim(self) -> int:
        """Width of the shared space."""
        return int(self.config["model_cfg"]["embed_dim"])

    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def create_towers(architecture: str | dict[str, Any], pretrained: str | None = None, seed: int = 0) -> Towers:
    """Make towers of an open_clip architecture (name or config), random by `seed` or pretrained.

    Raises:
        ModelError: unknown name, a config open_clip refuses, or weights that cannot be loaded.
    """
    if isinstance(architecture, str) and architecture not in open_clip.list_models():
        raise ModelError(
            f"architecture {architecture!r}: not an open_clip model{nearest(architecture, open_clip.list_models())}"
        )
    if isinstance(architecture, str) and pretrained:
        _require_same_activation(architecture, pretrained)
    torch.manual_seed(seed)
    try:
        if isinstance(architecture, str):
            with _without_narration():
                model = open_clip.create_model(architecture, pretrained=pretrained, weights_only=True)
            model_config = open_clip.get_model_config(architecture)
        else:
            model_config, model = architecture, _from_config(architecture)
            if pretrained:
                open_clip.load_checkpoint(model, pretrained, weights_only=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, OSError) as error:
        what = f"pretrained {pretrained!r}" if pretrained else f"architecture {architecture!r}"
        hint = "; a hub is needed for tags: give a local .safetensors file where there is none" if pretrained else ""
        raise ModelError(f"{what}: open_clip cannot make this model: {_first_line(error)}{hint}") from error
    return Towers(model, {"model_cfg": model_config, "preprocess_cfg": _preprocess_config(model)})


def _require_same_activation(architecture: str, tag: str) -> None:
    """Weights that were trained with QuickGELU load into towers with GELU without a word, and score below their worth.

    Raises:
        ModelError: open_clip's list of tags says that the two differ, or does not have this tag.
    """
    known = open_clip.get_pretrained_cfg(architecture, tag)
    if not known and not tag.endswith(_WEIGHTS_FILES):
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        have = ", ".join(tags) or "none"
        raise ModelError(f"pretrained: no weights {tag!r} for {architecture}{nearest(tag, tags)}; there are {have}")
    ours = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu"))
    if known and bool(known.get("quick_gelu")) != ours:
        other = architecture.removesuffix("-quickgelu") if ours else f"{architecture}-quickgelu"
        activation = "GELU" if ours else "QuickGELU"
        raise ModelError(
            f"pretrained {tag!r}: was trained with {activation}, {architecture} has the other; use {other}"
        )


@contextmanager
def _without_narration() -> Iterator[None]:
    """Keep open_clip from telling through the root logger that a model without weights has no weights."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _from_config(config: dict[str, Any]) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder, _without_narration():
        Path(folder, CONFIG_NAME).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        return open_clip.create_model(f"local-dir:{folder}", load_weights=False)  # type: ignore[no-any-return]


def _preprocess_config(model: nn.Module) -> dict[str, Any]:
    config = open_clip.get_model_preprocess_cfg(model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def save_towers(towers: Towers, uri: str, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write a checkpoint folder; weights are safetensors: the towers' own, or `weights`, gathered from all ranks.

    Aids that are not kept are left out.
    """
    from safetensors.torch import save

    weights = towers.model.state_dict() if weights is None else weights
    layout = [entry for entry in towers.layout if entry.get("keep", True)]
    left_out = tuple(f"aids.{entry['surgery']}." for entry in towers.layout if not entry.get("keep", True))
    kept = {name: value for name, value in weights.items() if not name.startswith(left_out)}
    kept = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
    if layout:
        storage.write_json(storage.join(uri, OWN_CONFIG_NAME), {"surgeries": layout})
    storage.write_json(storage.join(uri, CONFIG_NAME), towers.config)
    storage.write_bytes(storage.join(uri, OWN_WEIGHTS_NAME if layout else WEIGHTS_NAME), save(kept))


def load_towers(uri: str) -> Towers:
    """Load a checkpoint: one of ours (its record is checked), or any folder in open_clip's local-dir layout.

    Raises:
        ModelError: not a checkpoint folder, or the weights do not fit the config.
    """
    from safetensors.torch import load

    from training.surgeries import rebuild

    folder = open_folder(uri)
    model = _from_config(folder.config["model_cfg"])
    known = folder.config.get("preprocess_cfg") or {}  # other tools may leave out what is open_clip's default
    towers = Towers(model, {**folder.config, "preprocess_cfg": {**_preprocess_config(model), **known}})
    for surgery in folder.layout:
        towers = rebuild(towers, surgery)
    weights = load(storage.read_bytes(folder.weights))
    try:
        towers.model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ModelError(f"{uri}: weights do not fit {CONFIG_NAME}: {_first_line(error)}") from error
    return towers.eval()


def checkpoint_outcome(towers: Towers, **metrics: Any) -> Outcome:
    """What a checkpoint's record says of its model."""
    scale = float(towers.model.logit_scale.detach().exp())  # type: ignore[operator]
    bias = getattr(towers.model, "logit_bias", None)
    sizes = count(towers.config["model_cfg"], towers.layout)
    numbers = {
        "logit_scale": scale,
        "logit_bias": None if bias is None else float(bias.detach()),
        "open_clip_layout": not towers.layout,
        "active_parameters": sizes.active_parameters,
        "forward_flops_per_pair": sizes.forward_flops(),
    }
    return Outcome({"parameters": towers.parameter_count()}, {**numbers, **metrics})


def run(spec: ModelSpec, work: Work) -> Outcome:
    """Stage function of `model`: write the initial checkpoint.

    Raises:
        ArtifactError: a finished checkpoint was named that is not below the root.
    """
    if spec.artifact is not None:
        require_fingerprint(work.out.root, spec.artifact)
    if spec.folder is not None:
        towers, origin = load_towers(spec.folder), open_folder(spec.folder).artifact
        save_towers(towers, work.out.uri)
        return checkpoint_outcome(towers, origin=origin.fingerprint if origin else None)
    assert spec.architecture is not None, "the spec has one source"
    with _here(spec.pretrained) as weights:
        towers = create_towers(spec.architecture, weights, spec.seed)
    save_towers(towers, work.out.uri)
    return checkpoint_outcome(towers)


@contextmanager
def _here(pretrained: str | None) -> Iterator[str | None]:
    """A tag, or a weights file on this machine."""
    if pretrained is None or storage.is_local(pretrained):
        yield pretrained
        return
    with storage.local_copy(pretrained) as path:
        yield str(path)
