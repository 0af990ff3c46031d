"""Is this picture usable? Its header and checksums answer first, so that a bomb is refused before it is decoded."""

import io
import struct
import warnings
import zlib

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
# what PIL's readers raise on damaged input
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)


def max_image_bytes(max_pixels: int) -> int:
    """Largest file that is worth reading: RGBA without compression, and 64 KiB of headers."""
    return 4 * max_pixels + 65_536


def image_problem(content: bytes, max_pixels: int, decode: bool = False) -> str:
    """Return "" for a usable picture, else `unreadable_image` or `image_too_large`.

    PNG is checked by its chunk checksums, the others (which have none) by decoding at the smallest scale they offer;
    `decode` decodes every pixel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _problem(content, max_pixels, decode)
    except Image.DecompressionBombError:
        return "image_too_large"
    except DAMAGE:
        return "unreadable_image"


def _problem(content: bytes, max_pixels: int, decode: bool) -> str:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            return "image_too_large"
        if decode:
            image.load()
        elif image.format == "PNG":
            image.verify()
        else:
            image.draft("RGB", (1, 1))
            image.load()
    return ""
