"""Thirteen ways a picture goes bad, five severities each, for a picture of any size.

The families, and the strengths at 224 pixels of all but snow, fog and elastic, are those of Hendrycks & Dietterich
(arXiv 1903.12261, ImageNet-C); the code is our own, so numbers are not comparable with theirs to the digit. They give a
second table of strengths for 32 pixels (CIFAR-10-C). A strength here is that at 224 times (side / 224) ** power, with
the power that leads from one table to the other:

- lengths (blur, flakes, displacement, excess of a block over a pixel): power 1, so equal shares of the picture;
- noise, as standard deviation or share of pixels: power 1/2, as noise of fine pixels averages out in what they show;
- JPEG's quantiser: power 0.8, as its blocks are 8 pixels whatever the picture;
- light (brightness, contrast, fog, snow's veil) and zoom: the same at any size, milder than the 32-pixel table.

Frost and glass blur are left out: the first needs photographs, the second a Python loop over pixels.
Legend: H height, W width; intensities are in [0, 1].
"""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import fftconvolve
from scipy.sparse import csr_array

from training.pictures import Pixels
from training.specs import Corruption

Floats = npt.NDArray[np.floating[Any]]
Damage = Callable[[Floats, int, np.random.Generator], Floats]
_REFERENCE_SIDE = 224


def corrupt(kind: Corruption, severity: int, pixels_HW3: Pixels, random: np.random.Generator) -> Pixels:
    """The picture damaged; what came in is left alone. Severity is 1 to 5."""
    clean = pixels_HW3.astype(np.float32) / 255
    bad = _DAMAGES[kind](clean, severity - 1, random)
    return np.rint(np.clip(bad, 0, 1) * 255).astype(np.uint8)


def scaled(strength: float, picture: Floats, power: float) -> float:
    """A strength at 224 pixels, for this picture's shorter side."""
    return float(strength * (min(picture.shape[:2]) / _REFERENCE_SIDE) ** power)


# ------------------------------------------------------------------------------------------------------------- noise


def _gaussian_noise(x: Floats, level: int, random: np.random.Generator) -> Floats:
    deviation = scaled((0.08, 0.12, 0.18, 0.26, 0.38)[level], x, 0.5)
    return x + random.normal(scale=deviation, size=x.shape).astype(np.float32)


def _shot_noise(x: Floats, level: int, random: np.random.Generator) -> Floats:
    photons = (60, 25, 12, 5, 3)[level] / scaled(1, x, 1)  # deviation is 1 / sqrt(photons): power 1/2
    return (random.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: Floats, level: int, random: np.random.Generator) -> Floats:
    share = min(1.0, scaled((0.03, 0.06, 0.09, 0.17, 0.27)[level], x, 0.5))
    draw = random.random(x.shape)
    return np.where(draw < share / 2, 0, np.where(draw < share, 1, x)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- blur


def _defocus_blur(x: Floats, level: int, _random: np.random.Generator) -> Floats:
    radius = scaled((3, 4, 6, 8, 10)[level], x, 1)
    reach, parts = math.ceil(radius), 8
    fine = (np.arange((2 * reach + 1) * parts) + 0.5) / parts - reach - 0.5
    inside = np.hypot(fine[:, None], fine) <= radius + 0.5  # half a pixel more: no radius is the pixel itself
    return _convolved(x, inside.reshape(2 * reach + 1, parts, 2 * reach + 1, parts).mean(axis=(1, 3)))


def _motion_blur(x: Floats, level: int, random: np.random.Generator) -> Floats:
    length, deviation = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angle = random.uniform(-math.pi / 4, math.pi / 4)
    return _convolved(x, _streak(scaled(length, x, 1), scaled(deviation, x, 1), angle))


def _streak(length: float, deviation: float, angle: float) -> npt.NDArray[np.float64]:
    """Kernel of a move to one side: half a Gaussian along a line, each point shared by its four pixels."""
    reach = math.ceil(length) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    place = np.linspace(0, length, 8 * reach)
    weight = np.exp(-(place**2) / (2 * deviation**2))
    x, y = reach + place * math.cos(angle), reach + place * math.sin(angle)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for column, share in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, portion in ((top, 1 - (y - top)), (top + 1, y - top)):
            np.add.at(kernel, (row, column), weight * share * portion)
    return kernel


def _convolved(x: Floats, kernel: npt.NDArray[np.float64]) -> Floats:
    """Every channel with a kernel of odd sides, brought to sum 1; the picture is mirrored at its borders."""
    down, across = (side // 2 for side in kernel.shape)
    padded = np.pad(x, ((down, down), (across, across), (0, 0)), mode="symmetric")
    weights = (kernel / kernel.sum()).astype(np.float32)[:, :, None]
    return np.asarray(fftconvolve(padded, weights, mode="valid", axes=(0, 1)), np.float32)


def _zoom_blur(x: Floats, level: int, _random: np.random.Generator) -> Floats:
    height, width = x.shape[:2]
    picture = Image.fromarray(np.rint(x * 255).astype(np.uint8))
    total = np.zeros_like(x)
    factors = np.linspace(1, (1.11, 1.16, 1.21, 1.26, 1.31)[level], 12)
    for factor in factors:
        left, top = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
        part = (left, top, width - left, height - top)
        total += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=part), np.float32) / 255
    return (x + total) / (1 + len(factors))


# ----------------------------------------------------------------------------------------------------------- weather


def _snow(x: Floats, level: int, random: np.random.Generator) -> Floats:
    """Flakes that fall aslant before a whitened picture; flakes are blobs of smoothed noise above a quantile."""
    cover, veil = ((0.03, 0.2), (0.06, 0.3), (0.1, 0.35), (0.15, 0.4), (0.22, 0.45))[level]
    noise = random.normal(size=x.shape[:2])
    smooth = gaussian_filter(noise, max(0.5, scaled(2, x, 1)), mode="wrap")
    floor = np.quantile(smooth, 1 - cover)
    flakes = np.clip((smooth - floor) / (smooth.max() - floor + 1e-6), 0, 1) ** 0.5
    angle = math.pi / 2 + random.uniform(-math.pi / 4, math.pi / 4)
    fallen = _convolved(flakes[:, :, None].astype(np.float32), _streak(scaled(10, x, 1), scaled(6, x, 1), angle))
    grey = 0.299 * x[:, :, 0] + 0.587 * x[:, :, 1] + 0.114 * x[:, :, 2]
    white = (1 - veil) * x + veil * np.maximum(x, np.clip(1.5 * grey + 0.5, 0, 1)[:, :, None])
    return np.asarray(white + fallen, np.float32)


def _fog(x: Floats, level: int, random: np.random.Generator) -> Floats:
    """Light of clouds over the picture, dimmed to its own brightest value; amplitudes fall with frequency ** 1.8."""
    thick = (0.7, 1.1, 1.6, 2.3, 3.2)[level]
    height, width = x.shape[:2]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    spectrum = np.fft.rfft2(random.normal(size=(height, width))) / np.maximum(frequency, 1) ** 1.8
    clouds = np.fft.irfft2(spectrum, (height, width))
    clouds = np.clip(0.5 + 0.2 * (clouds - clouds.mean()) / (clouds.std() + 1e-6), 0, 1)
    brightest = float(x.max())
    return np.asarray((x + thick * clouds[:, :, None]) * brightest / (brightest + thick), np.float32)


def _brightness(x: Floats, level: int, _random: np.random.Generator) -> Floats:
    """More of HSV's value, hue and saturation kept."""
    value = x.max(axis=2, keepdims=True)
    lit = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 1)
    return np.asarray(np.where(value > 0, x * (lit / np.maximum(value, 1e-6)), lit), np.float32)


# ----------------------------------------------------------------------------------------------------------- digital


def _contrast(x: Floats, level: int, _random: np.random.Generator) -> Floats:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean, np.float32)


def _elastic(x: Floats, level: int, random: np.random.Generator) -> Floats:
    """Every point moved by a smooth field: root mean square `move` along each axis, smooth over 1/14 of the side."""
    move = scaled((1.5, 2.5, 4.0, 6.0, 8.0)[level], x, 1)
    places = np.indices(x.shape[:2], np.float64)
    for axis in range(2):
        field = gaussian_filter(random.normal(size=x.shape[:2]), scaled(16, x, 1), mode="reflect")
        places[axis] += field * move / np.sqrt(np.mean(field**2))
    moved = [map_coordinates(x[:, :, c], places, order=1, mode="reflect") for c in range(x.shape[2])]
    return np.stack(moved, axis=2).astype(np.float32)


def _pixelate(x: Floats, level: int, _random: np.random.Generator) -> Floats:
    """Blocks of equal sides, from the middle; a pixel that lies in several is mixed by area."""
    block = 1 + scaled(1 / (0.6, 0.5, 0.4, 0.3, 0.25)[level] - 1, x, 1)
    for axis in range(2):
        lines = np.moveaxis(x, axis, 0)
        mixed = _blocks(len(lines), block) @ lines.reshape(len(lines), -1)
        x = np.moveaxis(mixed.reshape(lines.shape), 0, axis)
    return x


def _blocks(side: int, block: float) -> csr_array:
    """(side, side): every pixel's value as the mean of its block."""
    half = math.ceil(side / 2 / block)
    edges = np.clip(side / 2 + block * np.arange(-half, half + 1), 0, side)
    pixel = np.arange(side)
    low, high = np.maximum(edges[:-1, None], pixel), np.minimum(edges[1:, None], pixel + 1)
    overlap = np.maximum(high - low, 0)
    # sparse for speed, and because a dense product may be summed in another order on another number of threads
    return csr_array(overlap.T) @ csr_array(overlap / overlap.sum(axis=1, keepdims=True))


def _jpeg(x: Floats, level: int, _random: np.random.Generator) -> Floats:
    coarse = scaled(5000 / (25, 18, 15, 10, 7)[level], x, 0.8)  # libjpeg: per cent of the standard tables
    quality = 5000 / coarse if coarse > 100 else (200 - coarse) / 2
    sink = io.BytesIO()
    Image.fromarray(np.rint(x * 255).astype(np.uint8)).save(sink, "JPEG", quality=min(95, max(1, round(quality))))
    return np.asarray(Image.open(sink), np.float32) / 255


_DAMAGES: dict[Corruption, Damage] = {
    "gaussian_noise": _gaussian_noise, "shot_noise": _shot_noise, "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur, "motion_blur": _motion_blur, "zoom_blur": _zoom_blur,
    "snow": _snow, "fog": _fog, "brightness": _brightness,
    "contrast": _contrast, "elastic": _elastic, "pixelate": _pixelate, "jpeg": _jpeg,
}  # fmt: skip
