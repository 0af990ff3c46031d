"""A contact sheet: found pictures in a tidy grid with their captions, as one image."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIDE = 168  # pixels of a picture
_GAP, _MARGIN, _COLUMNS = 20, 32, 4
_LINE, _LINES, _TITLE = 19, 3, 56
_PAPER, _INK, _MUTED, _FRAME = "#fbfaf7", "#1d2126", "#666d75", "#dfdcd4"


class Found(NamedTuple):
    """A picture that was found; similarity is the cosine of picture and words."""

    uid: str
    similarity: float
    caption: str


def draw_sheet(query: str, found: Sequence[Found], pictures: Mapping[str, Image.Image]) -> Image.Image:
    """A grid of pictures, best first, captions below them."""
    columns = min(_COLUMNS, max(1, len(found)))
    rows = -(-len(found) // columns)
    cell = SIDE + 10 + _LINES * _LINE + _GAP
    size = (2 * _MARGIN + columns * (SIDE + _GAP) - _GAP, 2 * _MARGIN + _TITLE + rows * cell - _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw, small = ImageDraw.Draw(page), _font(14)
    title = _wrapped(query, _font(24), size[0] - 2 * _MARGIN, 1)[0]
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, _font(24))
    for number, hit in enumerate(found):
        left = _MARGIN + number % columns * (SIDE + _GAP)
        top = _MARGIN + _TITLE + number // columns * cell
        draw.rounded_rectangle((left - 1, top - 1, left + SIDE, top + SIDE), 8, "white", _FRAME)
        if hit.uid in pictures:
            inner = pictures[hit.uid].resize((SIDE - 24, SIDE - 24), Image.Resampling.LANCZOS)
            page.paste(inner, (left + 12, top + 12))
        lines = _wrapped(hit.caption or hit.uid, small, SIDE, _LINES - 1)
        for row, line in enumerate(lines):
            draw.text((left, top + SIDE + 8 + row * _LINE), line, _INK, small)
        draw.text((left, top + SIDE + 8 + len(lines) * _LINE), f"{hit.similarity:.2f}", _MUTED, small)
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """At most `most` lines no wider than `width`; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in unicodedata.normalize("NFC", " ".join(text.split())).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:most]
    if len(lines) > most:
        kept[-1] += "…"
    return [_shortened(line, font, width) for line in kept]


def _shortened(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix("…")
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships: it knows more scripts than Pillow's own font."""
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
