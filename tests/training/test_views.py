"""Looks at a picture: worse with every severity, the same for the same uid, and never a wrapped or changed pixel."""

import io
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from training.corruptions import corrupt, scaled
from training.pictures import exact_picture
from training.specs import Corrupted, Corruption, Cropped
from training.views import corrupted, cropped

KINDS = get_args(Corruption)
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "snow", "fog", "elastic")
WHOLE = Image.fromarray(load_sample_image("china.jpg"))


def square(side, width=427):
    return np.asarray(WHOLE.crop((100, 0, 100 + width, width)).resize((side, side), Image.Resampling.BICUBIC))


def damaged(kind, severity, pixels, uid="a"):
    return corrupted(Corrupted(kind=kind, severity=severity), pixels, uid)


def distance(one, two):
    return np.abs(one.astype(float) - two).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [48, 224])
def test_every_severity_is_farther_from_the_clean_picture(kind, side):
    clean = square(side)
    found = [np.mean([distance(damaged(kind, s, clean, uid), clean) for uid in "abcdef"]) for s in range(1, 6)]
    assert found[0] > 0.5
    assert found == sorted(set(found))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 9, 33, 256])
def test_any_size_keeps_its_shape_and_the_clean_picture_is_left_alone(kind, side):
    clean = square(side)
    before = clean.copy()
    for severity in (1, 5):
        bad = damaged(kind, severity, clean)
        assert (bad.dtype, bad.shape) == (np.uint8, clean.shape)
    assert np.array_equal(clean, before)


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_are_the_uids_own(kind):
    clean = square(48)
    assert np.array_equal(damaged(kind, 3, clean, "a"), damaged(kind, 3, clean, "a"))
    assert np.array_equal(damaged(kind, 3, clean, "a"), damaged(kind, 3, clean, "b")) == (kind not in RANDOM)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("impulse_noise", "snow", "fog")])
@pytest.mark.parametrize("value", [0, 255])
def test_values_end_at_black_and_white_and_do_not_wrap(kind, value):
    flat = np.full((32, 32, 3), value, np.uint8)
    bad = damaged(kind, 5, flat).astype(int)
    assert np.mean(np.abs(bad - value) > 191) < 0.005


def test_brightness_keeps_hue_and_adds_to_the_largest_channel():
    pixel = np.full((8, 8, 3), (100, 50, 0), np.uint8)
    assert damaged("brightness", 1, pixel)[0, 0].tolist() == [126, 63, 0]  # 100 + 25.5
    assert damaged("brightness", 5, np.zeros_like(pixel))[0, 0].tolist() == [128, 128, 128]  # 0.5


def test_contrast_draws_towards_the_mean():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 200
    assert sorted(set(damaged("contrast", 1, pixels).ravel().tolist())) == [60, 140]  # 100 -+ 0.4 * 100


def test_impulses_hit_the_stated_share_with_black_and_white_alike():
    grey = np.full((224, 224, 3), 128, np.uint8)
    bad = damaged("impulse_noise", 5, grey)
    assert np.mean(bad == 0) == pytest.approx(0.135, abs=0.005)
    assert np.mean(bad == 255) == pytest.approx(0.135, abs=0.005)
    assert np.mean(bad == 128) == pytest.approx(0.73, abs=0.005)


def test_gaussian_noise_has_the_stated_deviation_at_both_sizes():
    for side, deviation in ((224, 0.12), (56, 0.06)):
        grey = np.full((side, side, 3), 128, np.uint8)
        assert np.std(damaged("gaussian_noise", 2, grey)) / 255 == pytest.approx(deviation, rel=0.03)


def test_lengths_are_shares_of_the_picture():
    """A blurred edge is as wide, in shares of the side, at 56 pixels as at 224."""
    widths = []
    for side in (56, 224):
        edge = np.zeros((side, side, 3), np.uint8)
        edge[:, side // 2 :] = 255
        row = damaged("defocus_blur", 5, edge)[side // 2, :, 0] / 255
        widths.append(((row > 0.1) & (row < 0.9)).sum() / side)
    assert widths[0] == pytest.approx(widths[1], abs=0.02)
    assert scaled(8, np.zeros((56, 56, 3)), 1) == 2


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur", "zoom_blur", "pixelate", "elastic"])
def test_what_moves_pixels_leaves_one_colour_alone(kind):
    flat = np.full((40, 40, 3), (10, 120, 250), np.uint8)
    assert np.abs(damaged(kind, 5, flat).astype(int) - flat).max() <= 1


def test_pixelate_makes_blocks():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    bad = damaged("pixelate", 5, pixels)  # blocks of 4: 224 * 0.25 a side
    assert np.abs(bad[:4, :4].astype(int) - pixels[:4, :4].mean(axis=(0, 1))).max() <= 1
    assert len(np.unique(bad.reshape(-1, 3), axis=0)) <= 56 * 56


def test_severities_of_one_kind_are_drawn_apart():
    random = (np.random.Generator(np.random.Philox(n)) for n in (1, 2))
    one, two = (corrupt("gaussian_noise", 1, square(16), generator) for generator in random)
    assert not np.array_equal(one, two)


def test_a_crop_is_a_part_of_the_whole_picture_by_seed_and_uid():
    views = [Cropped(seed=seed) for seed in (0, 0, 1)]
    first, again, other = (cropped(view, WHOLE, 48, "a") for view in views)
    assert first.shape == (48, 48, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, cropped(views[0], WHOLE, 48, "b"))


def test_a_crop_of_everything_is_the_picture_and_flip_mirrors_it():
    sink = io.BytesIO()
    picture = Image.fromarray(square(60))
    picture.save(sink, "PNG")
    plain = np.empty((32, 32, 3), np.uint8)
    exact_picture(sink.getvalue(), None, plain)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    assert np.array_equal(cropped(Cropped(**whole, flip=0), picture, 32, "a"), plain)
    assert np.array_equal(cropped(Cropped(**whole, flip=1), picture, 32, "a"), plain[:, ::-1])
    mirrored = [np.array_equal(cropped(Cropped(**whole), picture, 32, str(n)), plain[:, ::-1]) for n in range(200)]
    assert 70 < sum(mirrored) < 130
