"""scikit-learn's handwritten digits as labelled pictures: real, in every installation, small enough for any machine."""

import io

from PIL import Image

from data.pools import Plan, Planned
from data.pools.package import version_of
from data.specs import DigitsPool

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WHITE = 16  # the largest value of a pixel
# 32x32: at 8x8 a crop, a blur or a JPEG block is the whole picture. A whole factor without interpolation adds nothing:
# every fourth pixel is the original.
_ENLARGED = 4


def package_versions() -> dict[str, str]:
    """Version of the package that ships the digits."""
    return {"scikit-learn": version_of("scikit-learn", "digits")}


def plan(_pool: DigitsPool) -> Plan:
    """Plan the 1,797 digits in the order of the package."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pairs = []
    for number, (values_88, digit) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        uid, name = f"digit-{number:04d}", NAMES[digit]
        grey_88 = (values_88 * 255 / _WHITE).round().astype("uint8")
        captions, meta = {"alt": f"the digit {name}"}, {"class": name, "digit": digit}
        pairs.append(Planned(uid, "", "png", uid, captions, meta, _png(Image.fromarray(grey_88))))
    card = {
        "title": "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998): its test part, 8x8 in 17 greys",
        "packages": package_versions(),
        "classes": list(NAMES),
        "licence": "CC-BY-4.0 (UCI Machine Learning Repository)",
        "notes": [f"Each pixel is a square of {_ENLARGED}x{_ENLARGED}; writers are not told apart."],
    }
    return Plan(pairs, [], card)


def _png(picture: Image.Image) -> bytes:
    size = (picture.width * _ENLARGED, picture.height * _ENLARGED)
    sink = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(sink, "PNG")
    return sink.getvalue()
