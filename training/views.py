"""Other looks at a picture, each a pure function of the picture, the view and the uid.

Damage is done to the square of pixels that a tower would see; a crop is taken from the whole picture before that.
"""

import hashlib

import numpy as np
from PIL import Image

from training.pictures import CROP_DRAWS, Pixels, crops, put_square
from training.specs import Augment, Corrupted, Cropped


def corrupted(view: Corrupted, square_SS3: Pixels, uid: str) -> Pixels:
    """The pixels damaged, with random numbers by (uid, kind, severity)."""
    from training.corruptions import corrupt  # SciPy, which pictures as they are do not need

    return corrupt(view.kind, view.severity, square_SS3, _random("corrupted", view.kind, view.severity, uid))


def cropped(view: Cropped, image: Image.Image, side: int, uid: str) -> Pixels:
    """A random resized crop (side, side, 3) by (seed, uid), perhaps mirrored."""
    draws = _random("cropped", view.seed, uid).random(CROP_DRAWS + 1)
    crop = crops(Augment(crop_scale=view.scale, crop_ratio=view.ratio), draws[None, :CROP_DRAWS])[0]
    out = np.empty((side, side, 3), np.uint8)
    put_square(image, crop, out)
    return out[:, ::-1].copy() if draws[CROP_DRAWS] < view.flip else out


def _random(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))
