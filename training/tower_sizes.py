"""The towers of an open_clip config: every parameter by its name, and forward FLOPs. No torch, no open_clip.

Names: L tokens of one picture or caption, W width, M width inside the FFN, D embed_dim, E experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.errors import ModelError

Config = Mapping[str, Any]
Names = Iterator[tuple[str, int]]  # name of a parameter, its number of values
_CUSTOM = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


@dataclass(frozen=True)
class Blocks:
    """A stack of residual attention blocks; the last `mixed` have `num_experts` FFNs, of which a token uses `top_k`."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    options: frozenset[str] = frozenset()
    mixed: int = 0
    num_experts: int = 1
    top_k: int = 1

    def parameters(self, prefix: str) -> Names:
        """Every parameter of the stack."""
        for layer in range(self.layers):
            block = f"{prefix}transformer.resblocks.{layer}."
            yield from self._attention(block)
            if layer < self.layers - self.mixed:
                yield from self._mlp(f"{block}mlp.")
                continue
            yield f"{block}mlp.router.weight", self.width * self.num_experts
            for expert in range(self.num_experts):
                yield from self._mlp(f"{block}mlp.experts.{expert}.")

    def _attention(self, block: str) -> Names:
        W, head_width = self.width, self.width // self.heads
        yield from _norm(f"{block}ln_1", W)
        yield from _norm(f"{block}ln_2", W)
        yield from [(f"{block}attn.in_proj_weight", 3 * W * W), (f"{block}attn.in_proj_bias", 3 * W)]
        yield from _linear(f"{block}attn.out_proj", W, W)
        if "ls_init_value" in self.options:
            yield from [(f"{block}ls_1.gamma", W), (f"{block}ls_2.gamma", W)]
        norms = {
            "qk_norm": ("attn.ln_q", "attn.ln_k"),
            "scale_attn_inner": ("attn.ln_inner",),
            "scale_attn": ("ln_attn",),
        }
        for option, names in norms.items():
            for name in names if option in self.options else ():
                yield from _norm(block + name, head_width if option == "qk_norm" else W)
        for option, name in (("scaled_cosine_attn", "attn.logit_scale"), ("scale_heads", "attn.head_scale")):
            if option in self.options:
                yield block + name, self.heads

    def _mlp(self, prefix: str) -> Names:
        yield from _linear(f"{prefix}c_fc", self.width, self.mlp_width)
        yield from _linear(f"{prefix}c_proj", self.mlp_width, self.width)
        if "scale_fc" in self.options:
            yield from _norm(f"{prefix}ln", self.mlp_width)

    def flops(self, tokens: int) -> int:
        """Forward FLOPs of one picture or caption of so many tokens; of a mixture, only what its active experts do."""
        W, mlp = self.width, 4 * tokens * self.width * self.mlp_width
        attention = 8 * tokens * W * W + 4 * tokens * tokens * W
        routed = self.top_k * mlp + 2 * tokens * W * self.num_experts
        return self.layers * attention + (self.layers - self.mixed) * mlp + self.mixed * routed


@dataclass(frozen=True)
class Tower:
    """One half of a dual encoder. `tokens` is the picture's number of tokens, or the text's context length."""

    named: Mapping[str, int]
    prefix: str
    tokens: int
    added_tokens: int  # class tokens, which no picture or caption brings along
    input_values: int  # of a picture: 3 x height x width; of a caption: its token ids
    fixed_flops: int  # patch embedding and projection; all of a ResNet
    blocks: Blocks | None  # None for a ResNet
    fixed_values: int = 0  # activations of a ResNet

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(self.named.values())

    def flops(self, tokens: int | None = None) -> int:
        """Forward FLOPs of one picture or of one caption of `tokens` tokens (its context length by default)."""
        if self.blocks is None:
            return self.fixed_flops
        return self.fixed_flops + self.blocks.flops((tokens or self.tokens) + self.added_tokens)

    def upcycled(self, num_experts: int, top_k: int, layers: int | None) -> "Tower | None":
        """The tower with experts in its last `layers` blocks (all by default) and in no others; None for a ResNet."""
        if self.blocks is None:
            return None
        mixed = min(layers or self.blocks.layers, self.blocks.layers)
        blocks = replace(self.blocks, mixed=mixed, num_experts=num_experts, top_k=top_k)
        dense = {name: values for name, values in self.named.items() if ".resblocks." not in name}
        return replace(self, blocks=blocks, named={**dense, **dict(blocks.parameters(self.prefix))})

    @property
    def idle_parameters(self) -> int:
        """Parameters of the experts that a token does not use."""
        if self.blocks is None or not self.blocks.mixed:
            return 0
        expert = sum(n for name, n in self.named.items() if ".experts.0." in name)
        return expert * (self.blocks.num_experts - self.blocks.top_k)

    def with_context(self, tokens: int) -> "Tower":
        """The text tower with so many positions; all else does not depend on their number."""
        name, extra = f"{self.prefix}positional_embedding", self.added_tokens
        width = self.named[name] // (self.tokens + extra)
        return replace(self, tokens=tokens, input_values=tokens, named={**self.named, name: width * (tokens + extra)})


def vision_transformer(config: Config) -> Tower:
    """open_clip's ViT."""
    vision = config["vision_cfg"]
    W, D = number(vision, "width", 768), number(config, "embed_dim", 0)
    (height, width), (patch_height, patch_width) = _sides(vision, "image_size", 224), _sides(vision, "patch_size", 16)
    patches = (height // patch_height) * (width // patch_width)
    kept = max(1, int(patches * (1 - vision.get("patch_dropout", 0.0))))
    blocks = _blocks(vision, W, W // number(vision, "head_width", 64))
    conv = 3 * patch_height * patch_width * W
    norms = ("ln_post",) if vision.get("no_ln_pre") else ("ln_pre", "ln_post")
    named = {
        "visual.conv1.weight": conv, "visual.class_embedding": W, "visual.positional_embedding": (patches + 1) * W,
        "visual.proj": W * D, **dict(blocks.parameters("visual.")),
        **{name: n for norm in norms for name, n in _norm(f"visual.{norm}", W)},
    }  # fmt: skip
    return Tower(named, "visual.", kept, 1, 3 * height * width, 2 * conv * patches + 2 * W * D, blocks)


def text_transformer(config: Config) -> Tower:
    """open_clip's text transformer: inside CLIP itself, or below `text` of a CustomTextCLIP."""
    text = config["text_cfg"]
    prefix = "text." if config.get("custom_text") else ""
    W, D, context = number(text, "width", 512), number(config, "embed_dim", 0), number(text, "context_length", 77)
    blocks, extra = _blocks(text, W, number(text, "heads", 8)), int(bool(text.get("embed_cls")))
    named = {
        f"{prefix}token_embedding.weight": number(text, "vocab_size", 49408) * W,
        f"{prefix}positional_embedding": (context + extra) * W,
        **({f"{prefix}cls_emb": W} if extra and prefix else {}),
        **dict(blocks.parameters(prefix)), **dict(_norm(f"{prefix}ln_final", W)),
    }  # fmt: skip
    projects = text.get("proj_type", "linear") != "none"
    if projects and text.get("proj_bias"):
        named |= dict(_linear(f"{prefix}text_projection", W, D))
    elif projects:
        named[f"{prefix}text_projection"] = W * D
    return Tower(named, prefix, context, extra, context, 2 * W * D if projects else 0, blocks)


def _blocks(tower: Config, width: int, heads: int) -> Blocks:
    ratio = tower.get("mlp_ratio", 4.0)
    custom = tower.get("block_type") in (None, "custom")  # blocks of type `default` ignore the custom options
    options = {name for name in _CUSTOM if custom and tower.get(name)}
    options |= {"ls_init_value"} if tower.get("ls_init_value") is not None else set()
    return Blocks(width, number(tower, "layers", 12), heads, int(width * ratio), frozenset(options))


def _norm(name: str, width: int) -> Names:
    yield from [(f"{name}.weight", width), (f"{name}.bias", width)]


def _linear(name: str, before: int, after: int) -> Names:
    yield from [(f"{name}.weight", before * after), (f"{name}.bias", after)]


def number(config: Config, key: str, default: int) -> int:
    """A size of a config.

    Raises:
        ModelError: it is no whole number above 0.
    """
    value = config.get(key, default)
    if not isinstance(value, int) or value <= 0:
        raise ModelError(f"architecture: {key} {value!r}: give a whole number above 0")
    return value


def _sides(config: Config, key: str, default: int) -> tuple[int, int]:
    value = config.get(key, default)
    if isinstance(value, list | tuple) and len(value) == 2:
        return number({key: value[0]}, key, 0), number({key: value[1]}, key, 0)
    side = number(config, key, default)
    return side, side
