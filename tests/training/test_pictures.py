"""Pixels: `exact` is open_clip's transform to the bit, `fast` stays within a stated distance of it."""

import io
import math

import numpy as np
import open_clip
import pytest
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from training.order import position_draws
from training.pictures import CROP_DRAWS, UNREADABLE, Crop, Fit, crops, exact_picture, fast_picture, put_square
from training.specs import Augment

WIDE = Augment(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3))


def encoded(image, kind="JPEG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(make, content, side, crop=None):
    out = np.zeros((side, side, 3), np.uint8)
    make(content, crop, out)
    return out


def noise(width, height, mode="RGB"):
    values = np.random.default_rng(width * height).integers(0, 255, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture(scope="module", params=["china.jpg", "flower.jpg"])
def photograph(request):
    return encoded(Image.fromarray(load_sample_image(request.param)), quality=90)


def some_crops(augment, count=24):
    return crops(augment, position_draws(0, 0, count, CROP_DRAWS))


@pytest.mark.parametrize("make", [exact_picture, fast_picture])
@pytest.mark.parametrize("size", [(20, 20), (31, 20), (20, 45), (16, 16), (300, 200), (7, 5)])
def test_without_a_crop_pixels_are_those_of_open_clips_validation_transform(make, size):
    content = encoded(noise(*size), "PNG")
    transform = open_clip.image_transform(16, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    expected = (transform(Image.open(io.BytesIO(content))) * 255).round().permute(1, 2, 0).numpy()
    distance = np.abs(picture(make, content, 16).astype(int) - expected)
    assert distance.max() <= (0 if make is exact_picture else 4)


@pytest.mark.parametrize("size", [(20, 20), (31, 20), (20, 45), (16, 16), (300, 200), (7, 5), (5, 50)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_picture_is_fitted_as_the_towers_preprocessing_says(mode, interpolation, size):
    image, out = noise(*size), np.zeros((16, 16, 3), np.uint8)
    transform = open_clip.image_transform(
        16, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize_mode=mode, interpolation=interpolation,
        fill_color=7,
    )  # fmt: skip
    put_square(image, None, out, Fit(mode, interpolation == "bilinear", 7))
    assert np.array_equal(out, (transform(image) * 255).round().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("augment", [Augment(), WIDE])
def test_an_exact_crop_is_what_torchvision_makes_of_the_same_box(photograph, augment):
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    for crop in some_crops(augment):
        box = crop.box(*image.size)
        theirs = resized_crop(image, box.top, box.left, box.height, box.width, [64, 64], InterpolationMode.BICUBIC)
        assert np.array_equal(picture(exact_picture, photograph, 64, crop), np.asarray(theirs))


@pytest.mark.parametrize(
    ("side", "mean", "most"),
    # 427 rows: decoded whole for 224, where only rounding differs; at a half, a quarter and an eighth for the others,
    # where the DCT's low-pass shows at edges, and a box moves by up to half a decoded pixel
    [(224, 0.2, 8), (160, 4.5, 80), (64, 3.0, 50), (32, 5.0, 90)],
)
def test_fast_pixels_stay_near_the_exact_ones(photograph, side, mean, most):
    for crop in [None, *some_crops(Augment())]:
        one, two = (picture(make, photograph, side, crop).astype(int) for make in (exact_picture, fast_picture))
        assert np.abs(one - two).mean() <= mean
        assert np.abs(one - two).max() <= most


@pytest.mark.parametrize(
    ("side", "decoded"), [(224, 427), (213, 214), (160, 214), (64, 107), (32, 54), (106, 107), (107, 214)]
)
def test_a_jpeg_is_decoded_at_the_smallest_power_of_two_that_has_the_pixels(photograph, monkeypatch, side, decoded):
    shapes, decode = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(
        "training.pictures.simplejpeg.decode_jpeg", lambda *a, **k: shapes.append(decode(*a, **k)) or shapes[-1]
    )
    picture(fast_picture, photograph, side)
    assert shapes[0].shape[0] == decoded


def test_boxes_are_distributed_as_torchvisions():
    width, height, count = 640, 427, 4000
    ours = np.array([crop.box(width, height) for crop in some_crops(WIDE, count)])
    torch.manual_seed(0)
    empty = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(empty, WIDE.crop_scale, WIDE.crop_ratio) for _ in range(count)])
    theirs = theirs[:, [1, 0, 3, 2]]
    for column in range(4):
        spread = math.sqrt((ours[:, column].var() + theirs[:, column].var()) / count)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 4 * spread
        assert abs(np.log(ours[:, column].std() / theirs[:, column].std())) < 0.1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 500), (500, 3), (224, 224), (641, 427)])
def test_boxes_lie_inside_any_picture(width, height):
    boxes = np.array([crop.box(width, height) for crop in some_crops(WIDE, 200)])
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2:].min() >= 1
    assert (boxes[:, 0] + boxes[:, 2]).max() <= width
    assert (boxes[:, 1] + boxes[:, 3]).max() <= height


def test_a_box_that_never_fits_becomes_the_central_part():
    crop = Crop(np.full((10, 2), 1.2), 0.7, 0.7, (3 / 4, 4 / 3))
    assert crop.box(800, 300) == (200, 0, 400, 300)
    assert crop.box(300, 300) == (0, 0, 300, 300)


@pytest.mark.parametrize("make", [exact_picture, fast_picture])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(make, mode):
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    content = encoded(clear.convert(mode) if mode != "P" else clear.quantize(), "PNG")
    assert picture(make, content, 16).min() == 255
    assert picture(make, content, 16, some_crops(WIDE, 1)[0]).min() == 255


@pytest.mark.parametrize("kind", ["L", "CMYK"])
def test_other_jpegs_are_decoded_as_pillow_does(kind):
    content = encoded(Image.fromarray(load_sample_image("flower.jpg")).convert(kind), quality=95)
    one, two = (picture(make, content, 224).astype(int) for make in (exact_picture, fast_picture))
    assert np.abs(one - two).mean() < 1


@pytest.mark.parametrize("make", [exact_picture, fast_picture])
def test_broken_pictures_are_refused(make, photograph):
    for content in (
        b"",
        photograph[:2000],
        photograph[:1],
        b"\xff\xd8\xff" + bytes(100),
        encoded(noise(9, 9), "PNG")[:60],
    ):
        with pytest.raises(UNREADABLE):
            picture(make, content, 16)


@pytest.mark.parametrize("make", [exact_picture, fast_picture])
def test_a_decompression_bomb_is_refused_by_its_header(make, monkeypatch):
    content = encoded(noise(64, 64), quality=50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr("training.pictures.simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(Image.DecompressionBombError):
        picture(make, content, 16)
