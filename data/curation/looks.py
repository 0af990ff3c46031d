"""One look at one picture: does it decode whole, how large is it, and three numbers of its grey thumbnail.

A picture is hostile until it has decoded: its header answers for its size before a pixel is decoded, and whatever is
wrong with it is an answer, never an error. All numbers are of one thumbnail (grey, longer side at most 256,
transparency on white), so they compare between formats and sizes, and a JPEG need not be decoded at full size.
"""

import io
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from data.pools.image import DAMAGE, FORMATS

UNREADABLE, UNREADABLE_IMAGE, IMAGE_TOO_LARGE = "unreadable", "unreadable_image", "image_too_large"
PROBLEMS = (UNREADABLE, UNREADABLE_IMAGE, IMAGE_TOO_LARGE)
THUMBNAIL_SIDE = 256
_JPEG = b"\xff\xd8\xff"
_SHRINKS = (8, 4, 2)  # libjpeg-turbo decodes the scales between them slower than the whole picture
_BICUBIC = Image.Resampling.BICUBIC


class Look(NamedTuple):
    """What one look found; numbers are None where there is a problem."""

    problem: str
    width: int | None = None  # pixels, as stored
    height: int | None = None
    phash: int | None = None  # 64 bits
    entropy: float | None = None  # bits
    sharpness: float | None = None  # variance of the Laplacian, in squared grey levels


def look_at(content: bytes, max_pixels: int) -> Look:
    """Decode a picture once and measure it. Problems: `unreadable_image`, `image_too_large`; nothing is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _look(content, max_pixels)
    except Image.DecompressionBombError:
        return Look(IMAGE_TOO_LARGE)
    except DAMAGE:
        return Look(UNREADABLE_IMAGE)


def _look(content: bytes, max_pixels: int) -> Look:
    with _open(content) as image:
        width, height = image.size
        if width * height > max_pixels:
            return Look(IMAGE_TOO_LARGE)
        if image.format == "PNG":
            with _open(content) as again:  # Pillow decodes a PNG without its last chunks; the checksums tell
                again.verify()
        grey = thumbnail(image, content)
    return Look("", width, height, perceptual_hash(grey), abs(grey.entropy()), sharpness(grey))


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=FORMATS)


def thumbnail(image: Image.Image, content: bytes) -> Image.Image:
    """Grey picture whose longer side is at most 256, of an opened image and the bytes it was opened from."""
    scale = min(1.0, THUMBNAIL_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if content.startswith(_JPEG) and image.mode in ("L", "RGB"):
        return _resized(_reduced_jpeg(image, content), size)
    if image.mode.startswith("I"):  # 16 bits a pixel, which `convert` would cut off at 255 instead of scaling
        return _resized(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)), size)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = _resized(image.convert("RGBA"), size)
        return Image.alpha_composite(Image.new("RGBA", size, "white"), layer).convert("L")
    return _resized(image.convert("L"), size)


def _reduced_jpeg(image: Image.Image, content: bytes) -> Image.Image:
    """Grey picture of a JPEG, at a half, a quarter or an eighth where that still has the thumbnail's pixels.

    All of the file is read at every scale, and `strict` refuses one that ends early. It refuses harmless oddities too:
    Pillow, which decodes those and refuses a file that ends early itself, has the last word.
    """
    shrink = next((factor for factor in _SHRINKS if max(image.size) >= factor * THUMBNAIL_SIDE), 1)
    width, height = (-(-side // shrink) for side in image.size)
    try:
        grey_HW1 = simplejpeg.decode_jpeg(content, "GRAY", min_width=width, min_height=height, strict=True)
    except ValueError:
        return image.convert("L")
    return Image.fromarray(grey_HW1[:, :, 0])


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, _BICUBIC)


def perceptual_hash(grey: Image.Image) -> int:
    """Signs of the 8 x 8 lowest DCT frequencies around their median (`imagehash.phash`), the first bit highest."""
    import imagehash

    bits: Any = imagehash.phash(grey).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def sharpness(grey: Image.Image) -> float:
    """Variance of the 4-neighbour Laplacian; beyond the border its pixels repeat. Integers, so the same anywhere."""
    grey_HW: npt.NDArray[np.int16] = np.pad(np.asarray(grey, np.int16), 1, mode="edge")
    centre, rows, columns = grey_HW[1:-1, 1:-1], grey_HW[:, 1:-1], grey_HW[1:-1, :]
    edges = rows[:-2] + rows[2:] + columns[:, :-2] + columns[:, 2:] - 4 * centre
    total, squares = int(edges.sum(dtype=np.int64)), int(np.square(edges, dtype=np.int32).sum(dtype=np.int64))
    return (squares * edges.size - total * total) / edges.size**2
