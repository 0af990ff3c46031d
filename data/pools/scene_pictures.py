"""Pictures of composed scenes: emoji with a thin white outline, on coloured tiles, on a plain background.

The outline keeps a red thing on a red tile visible at a dozen pixels.
"""

import io
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageFilter

from data.pools.emoji import concept_of_file, picture_folders
from data.pools.scene_layout import Scene
from data.pools.scene_words import BACKGROUNDS, COLORS, NOUNS

_INSIDE = 0.86  # of the tile's side
_CACHED_TILES = 8192  # all that one pool has: 40 nouns, 8 colours, 2 sizes, 2 vendors, a few of them more than once


def draw(scene: Scene, canvas_pixels: int) -> bytes:
    """The scene as PNG."""
    canvas = Image.new("RGB", (canvas_pixels, canvas_pixels), BACKGROUNDS[scene.background])
    for group in scene.groups:
        for box in group.boxes:
            canvas.paste(_tile(scene.vendor, group.noun, group.color, box.side), (box.left, box.top))
    sink = io.BytesIO()
    canvas.save(sink, "PNG", compress_level=1)  # twice as fast as the default
    return sink.getvalue()


@lru_cache(_CACHED_TILES)
def _tile(vendor: str, noun: str, color: str, side: int) -> Image.Image:
    tile = Image.new("RGB", (side, side), COLORS[color])
    sticker = _sticker(vendor, noun, max(1, round(_INSIDE * side)))
    at = (side - sticker.width) // 2
    tile.paste(sticker, (at, at), sticker)
    return tile


@lru_cache(_CACHED_TILES)
def _sticker(vendor: str, noun: str, side: int) -> Image.Image:
    """The emoji in a square, with a white outline of about one part in fourteen."""
    outline = max(1, round(side / 14))
    inside = max(1, side - 2 * outline)
    with Image.open(_files(vendor)[NOUNS[noun].concept]) as stored:
        emoji = stored.convert("RGBA").resize((inside, inside), Image.Resampling.LANCZOS)
    alpha = Image.new("L", (side, side), 0)
    alpha.paste(emoji.getchannel("A"), (outline, outline))
    sticker = Image.new("RGBA", (side, side), "white")
    sticker.putalpha(alpha.filter(ImageFilter.MaxFilter(2 * outline + 1)))
    sticker.alpha_composite(emoji, (outline, outline))
    return sticker


@cache
def _files(vendor: str) -> dict[str, Path]:
    """Picture of each concept."""
    found = ((concept_of_file(path.name), path) for path in picture_folders((vendor,))[vendor].iterdir())
    return {concept: path for concept, path in found if concept is not None}
