"""Sizes of open_clip's ModifiedResNet: three stem convolutions, bottlenecks, attention pooling instead of averaging.

Names: D width of the features before pooling, L their number plus the mean.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from training.tower_sizes import Tower, number

_EXPANSION = 4


class _Conv(NamedTuple):
    """A convolution with its batch norm; `side` is of its output, which has as many rows as columns."""

    name: str
    norm: str
    before: int
    after: int
    kernel: int
    side: int


def resnet(config: Mapping[str, Any]) -> Tower:
    """The image tower of a config whose `layers` are four numbers."""
    vision, D_out = config["vision_cfg"], number(config, "embed_dim", 0)
    size, width = number(vision, "image_size", 224), number(vision, "width", 64)
    convolutions = [*_stem(width, size), *_stages(vision["layers"], width, size)]
    D, L = width * 32, (size // 32) ** 2 + 1
    named = {"visual.attnpool.positional_embedding": L * D}
    for name, after in (("k_proj", D), ("q_proj", D), ("v_proj", D), ("c_proj", D_out)):
        named |= {f"visual.attnpool.{name}.weight": D * after, f"visual.attnpool.{name}.bias": after}
    for conv in convolutions:
        named[f"visual.{conv.name}.weight"] = conv.before * conv.after * conv.kernel**2
        named |= {f"visual.{conv.norm}.weight": conv.after, f"visual.{conv.norm}.bias": conv.after}
    flops = sum(2 * conv.before * conv.after * conv.kernel**2 * conv.side**2 for conv in convolutions)
    pool = 6 * L * D * D + 4 * L * L * D + 2 * L * D * D_out
    values = 2 * sum(conv.after * conv.side**2 for conv in convolutions)  # kept: what a norm gets, what it gives
    return Tower(named, "visual.", L, 0, 3 * size * size, flops + pool, None, values)


def _stem(width: int, size: int) -> Iterator[_Conv]:
    half = size // 2
    yield _Conv("conv1", "bn1", 3, width // 2, 3, half)
    yield _Conv("conv2", "bn2", width // 2, width // 2, 3, half)
    yield _Conv("conv3", "bn3", width // 2, width, 3, half)


def _stages(layers: list[int], width: int, size: int) -> Iterator[_Conv]:
    """Bottlenecks; the first of the stages 2 to 4 averages to half the side behind its second convolution."""
    before, side = width, size // 4
    for stage, blocks in enumerate(layers):
        planes = width << stage
        for block in range(blocks):
            at, inner = f"layer{stage + 1}.{block}", side
            side = side // 2 if stage and not block else side
            yield _Conv(f"{at}.conv1", f"{at}.bn1", before, planes, 1, inner)
            yield _Conv(f"{at}.conv2", f"{at}.bn2", planes, planes, 3, inner)
            yield _Conv(f"{at}.conv3", f"{at}.bn3", planes, planes * _EXPANSION, 1, side)
            if not block:  # the first of a stage always changes the number of channels
                yield _Conv(f"{at}.downsample.0", f"{at}.downsample.1", before, planes * _EXPANSION, 1, side)
            before = planes * _EXPANSION
