"""How big a dual encoder is and what it computes, from its open_clip config alone: no torch, no open_clip, no weights.

Counted exactly: open_clip's own ViT, ResNet and text transformer. Towers of timm and Hugging Face and CoCa's are not
counted: their sizes are None. FLOPs are those of matrix products and convolutions, a multiply-add counts as two, and
attention counts whole (masked positions too), as torch.utils.flop_counter does.
"""

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from data.errors import ModelError, nearest
from training.names import matches
from training.sizes_resnet import resnet
from training.tower_sizes import Config, Tower, number, text_transformer, vision_transformer

TRAINING_FORWARDS = 3  # the backward pass costs two forward passes (PaLM, arXiv 2204.02311, appendix B)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of both towers; None for one that is not counted, and for every sum that needs it."""

    image: Tower | None
    text: Tower | None
    embed_dim: int
    scalars: tuple[str, ...] = ("logit_scale",)

    @property
    def named(self) -> dict[str, int] | None:
        """Every parameter by its name in the open_clip model."""
        if self.image is None or self.text is None:
            return None
        return {**self.image.named, **self.text.named, **dict.fromkeys(self.scalars, 1)}

    @property
    def parameters(self) -> int | None:
        """Number of parameters of the whole model."""
        return None if self.named is None else sum(self.named.values())

    def trainable(self, patterns: Iterable[str]) -> int | None:
        """Number of parameters whose names the patterns mean."""
        patterns = tuple(patterns)
        if self.named is None:
            return None
        return sum(n for name, n in self.named.items() if matches(name, patterns))

    @property
    def active_parameters(self) -> int | None:
        """Number of parameters that one pair's forward pass uses: of a mixture, k experts' a block."""
        if self.parameters is None or self.image is None or self.text is None:
            return None
        return self.parameters - self.image.idle_parameters - self.text.idle_parameters

    def forward_flops(self, text_tokens: int | None = None) -> int | None:
        """Forward FLOPs of one pair whose caption has `text_tokens` tokens (the context length by default)."""
        if self.image is None or self.text is None:
            return None
        return self.image.flops() + self.text.flops(text_tokens)

    def training_flops(self, text_tokens: int | None = None, *more_texts: int | None) -> int | None:
        """*Model* FLOPs of one pair in training: three forward passes, whatever is computed again. MFU uses these.

        `more_texts`: the tokens of a pair's other texts, None for the context length.
        """
        forward = self.forward_flops(text_tokens)
        if forward is None or self.text is None:
            return None
        return TRAINING_FORWARDS * (forward + sum(self.text.flops(tokens) for tokens in more_texts))

    def hardware_flops(self, text_tokens: int | None = None, recomputed: int = 0) -> int | None:
        """FLOPs that the device does: checkpointed activations and cached gradients recompute one forward pass each."""
        forward = self.forward_flops(text_tokens)
        return None if forward is None else (TRAINING_FORWARDS + recomputed) * forward

    def upcycled(self, num_experts: int, top_k: int, image_layers: int | None, text_layers: int | None) -> "ModelSizes":
        """The model after the surgery `upcycle`."""
        image, text = self.image, self.text
        return replace(
            self,
            image=image and image.upcycled(num_experts, top_k, image_layers),
            text=text and text.upcycled(num_experts, top_k, text_layers),
        )

    def with_context(self, tokens: int) -> "ModelSizes":
        """The model with so many text positions."""
        return replace(self, text=self.text and self.text.with_context(tokens))


def count(architecture: str | Config, layout: Sequence[Mapping[str, Any]] = ()) -> ModelSizes:
    """Sizes of an open_clip architecture (name or config), after the surgeries of a checkpoint's `layout`.

    Raises:
        ModelError: unknown name, or a config that lacks a tower or has something else than a number for a size.
    """
    config = model_config(architecture) if isinstance(architecture, str) else architecture
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ModelError(f"architecture: {missing[0]!r} is missing; give an open_clip model config")
    scalars = ("logit_scale", *(("logit_bias",) if config.get("init_logit_bias") is not None else ()))
    sizes = ModelSizes(_image_tower(config), _text_tower(config), number(config, "embed_dim", 0), scalars)
    for surgery in layout:
        if surgery["surgery"] == "upcycle":  # no other changes how much is computed without changing the config
            sizes = sizes.upcycled(*(surgery[key] for key in ("num_experts", "top_k", "image_layers", "text_layers")))
    return sizes


def flops_per_pair(config: Config, layout: Sequence[Mapping[str, Any]] = ()) -> Callable[..., int | None]:
    """Model FLOPs of one pair in training as a function of its texts' tokens; the function gives None if uncounted.

    `config` and `layout` are those of `Towers`.
    """
    return cache(count(config, layout).training_flops)


@cache
def model_config(name: str) -> Config:
    """The config of a built-in open_clip architecture, read from the installed package without importing it.

    Raises:
        ModelError: there is no such architecture.
    """
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations, "open_clip_torch is a dependency"
    folder = Path(package.submodule_search_locations[0], "model_configs")
    names = sorted(path.stem for path in folder.glob("*.json"))
    if name not in names:
        raise ModelError(f"architecture {name!r}: not an open_clip model{nearest(name, names)}")
    config: Config = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return config


def _image_tower(config: Config) -> Tower | None:
    vision = config["vision_cfg"]
    if vision.get("timm_model_name") or vision.get("attentional_pool") or "multimodal_cfg" in config:
        return None
    return resnet(config) if isinstance(vision.get("layers"), list | tuple) else vision_transformer(config)


def _text_tower(config: Config) -> Tower | None:
    uncounted = config["text_cfg"].get("hf_model_name") or "multimodal_cfg" in config
    return None if uncounted else text_transformer(config)
