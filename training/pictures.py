"""One picture from file bytes to a square of uint8 pixels: decoded, transparency on white, cropped, resized.

`exact` gives the very pixels of open_clip's transforms (Pillow, bicubic). `fast` decodes JPEG with libjpeg-turbo, at a
half, a quarter or an eighth of its size where that still has the pixels the crop needs, and resizes with torch's uint8
kernel, which is Pillow's algorithm on wide registers: pixels differ by rounding, and by the DCT's own low-pass where
the picture was decoded smaller.
Shapes: B pairs, H height, W width, T tries of one crop; `side` is that of the towers' input.
"""

import io
import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image

from training.specs import Augment

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what a broken picture raises
_TRIES = 10  # of a crop that must lie inside the picture, as in torchvision's RandomResizedCrop
CROP_DRAWS = 2 * _TRIES + 2
_JPEG = b"\xff\xd8\xff"
_SHRINKS = (8, 4, 2)  # the scales between them decode slower than the whole picture, and farther from its pixels


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int


class Window(NamedTuple):
    """What of a picture a square shows, in fractions of the picture; outside of [0, 1] there is padding."""

    left: float
    top: float
    width: float
    height: float


class Crop(NamedTuple):
    """A random resized crop, drawn before the picture's size is known."""

    shapes: Floats  # (T, 2): width and height in units of the square root of the picture's area
    x: float  # place between the borders, in [0, 1)
    y: float
    ratio: tuple[float, float]  # limits of width / height

    def box(self, width: int, height: int) -> Box:
        """The first try that lies inside a picture of this size, else its largest central part within `ratio`."""
        unit = math.sqrt(width * height)
        for across, down in self.shapes.tolist():
            w, h = round(unit * across), round(unit * down)
            if 0 < w <= width and 0 < h <= height:
                return Box(int(self.x * (width - w + 1)), int(self.y * (height - h + 1)), w, h)
        low, high = self.ratio
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return Box((width - w) // 2, (height - h) // 2, w, h)


def crops(augment: Augment, draws_BD: Floats) -> list[Crop]:
    """A crop for each row of CROP_DRAWS uniform numbers in [0, 1): torchvision's RandomResizedCrop, before its picture.

    Areas are fractions of the whole picture, uniform in `crop_scale`; width / height is log-uniform in `crop_ratio`.
    """
    low, high = augment.crop_scale
    area_BT = low + (high - low) * draws_BD[:, :_TRIES]
    shortest, longest = np.log(augment.crop_ratio)
    ratio_BT = np.exp(shortest + (longest - shortest) * draws_BD[:, _TRIES : 2 * _TRIES])
    shapes_BT2 = np.stack([np.sqrt(area_BT * ratio_BT), np.sqrt(area_BT / ratio_BT)], axis=2)
    places = draws_BD[:, 2 * _TRIES :].tolist()
    return [Crop(shapes_T2, x, y, augment.crop_ratio) for shapes_T2, (x, y) in zip(shapes_BT2, places, strict=True)]


def exact_picture(content: bytes, crop: Crop | None, out: Pixels) -> Window:
    """Put the pixels of open_clip's transform for this crop into `out` (side, side, 3); None: its validation transform.

    Returns what of the picture they show.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: not a readable picture (`UNREADABLE`).
    """
    return put_square(open_picture(content), crop, out)


class Fit(NamedTuple):
    """How a whole picture becomes a square: open_clip's `resize_mode`, `interpolation` and `fill_color`."""

    mode: Literal["shortest", "longest", "squash"] = "shortest"
    bilinear: bool = False
    fill: int = 0

    def size(self, side: int, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which the picture is resized."""
        if self.mode == "squash":
            return side, side
        if self.mode == "longest":
            ratio = max(width, height) / side
            return round(width / ratio), round(height / ratio)
        return _shorter_side_to(side, width, height)


def put_square(image: Image.Image, crop: Crop | None, out: Pixels, fit: Fit = Fit()) -> Window:  # noqa: B008 - frozen
    """The same of a picture that is decoded already; without a crop it is fitted as `fit` says."""
    side = len(out)
    if crop:
        box = crop.box(*image.size)
        left, top, width, height = box
        cut = image.crop((left, top, left + width, top + height))
        out[:] = np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))
        return _window(box, image.size)
    size = fit.size(side, *image.size)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR if fit.bilinear else Image.Resampling.BICUBIC)
    if fit.mode == "longest":
        left, top = (side - image.width) // 2, (side - image.height) // 2
        out[:] = fit.fill
        out[top : top + image.height, left : left + image.width] = np.asarray(image)
        return _window(Box(-left, -top, side, side), image.size)
    out[:] = _central(np.asarray(image), side)
    return _window(Box(*_corner(image.size, side), side, side), image.size)


def fast_picture(content: bytes, crop: Crop | None, out: Pixels) -> Window:
    """Put pixels close to those of `exact_picture` into `out` (side, side, 3); returns and raises what that does."""
    size, side = _jpeg_size(content), len(out)
    if size is None:
        image = open_picture(content)
        return _fit(np.array(image), image.size, crop, out)
    width, height = size
    box = crop.box(width, height) if crop else Box(0, 0, min(size), min(size))
    shrink = next((factor for factor in _SHRINKS if min(box.width, box.height) >= factor * side), 1)
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", min_width=-(-width // shrink), min_height=-(-height // shrink))
    except ValueError:  # damage that Pillow may forgive, and if not, explains
        pixels = np.array(open_picture(content))
    return _fit(pixels, size, crop, out)


def open_picture(content: bytes) -> Image.Image:
    """Decode with Pillow to RGB, transparency on white; raises `UNREADABLE`."""
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return picture.convert("RGB")


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG for libjpeg-turbo, None for what Pillow must read.

    Raises:
        DecompressionBombError: too many pixels, by the header, as Pillow itself would say.
    """
    if not content.startswith(_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > 2 * limit:
        raise Image.DecompressionBombError(f"{width} x {height} pixels are above the limit of {2 * limit}")
    return (width, height) if colours in ("YCbCr", "Gray", "RGB") else None


def _window(box: Box, size: tuple[int, int]) -> Window:
    """A box of a picture, or of a resized one, in fractions of it."""
    return Window(box.left / size[0], box.top / size[1], box.width / size[0], box.height / size[1])


def _fit(pixels_HW3: Pixels, size: tuple[int, int], crop: Crop | None, out: Pixels) -> Window:
    """Crop and resize pixels of a picture whose full `size` may be larger than they are."""
    height, width = pixels_HW3.shape[:2]
    if crop is None:
        whole = np.empty((*_shorter_side_to(len(out), *size)[::-1], 3), np.uint8)
        _resize(pixels_HW3, whole)
        out[:] = _central(whole, len(out))
        resized = (whole.shape[1], whole.shape[0])
        return _window(Box(*_corner(resized, len(out)), len(out), len(out)), resized)
    box = crop.box(*size)
    across, down = width / size[0], height / size[1]
    left, top = round(box.left * across), round(box.top * down)
    right = max(left + 1, round((box.left + box.width) * across))
    bottom = max(top + 1, round((box.top + box.height) * down))
    _resize(pixels_HW3[top:bottom, left:right], out)
    return _window(box, size)


def _resize(pixels_HW3: Pixels, out: Pixels) -> None:
    """Resize to the shape of `out`: what `interpolate(mode="bicubic", antialias=True)` calls, without its output.

    Allocating that, one piece of fresh pages a picture, costs half as much again as the resize.
    """
    # the kernel is a third slower on a view than on a contiguous copy, which costs a tenth of that
    arrays = np.ascontiguousarray(pixels_HW3), out
    source, target = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in arrays)
    torch.ops.aten._upsample_bicubic2d_aa.out(source, out.shape[:2], False, None, None, out=target)


def _shorter_side_to(side: int, width: int, height: int) -> tuple[int, int]:
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _corner(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(left, top) of the central square."""
    return round((size[0] - side) / 2), round((size[1] - side) / 2)


def _central(pixels_HW3: Pixels, side: int) -> Pixels:
    left, top = _corner((pixels_HW3.shape[1], pixels_HW3.shape[0]), side)
    return pixels_HW3[top : top + side, left : left + side]
