"""The patch probe: counts by hand, a separable world, and controls that must fail where it must."""

import numpy as np
import pytest

from data.errors import EvaluationError
from data.features import Patches
from evaluation.bootstrap import estimate
from evaluation.metrics.segmentation import IoU
from evaluation.rows import Rows
from evaluation.specs import Bootstrap, DenseProbe
from evaluation.tasks import dense_probe

SIDE, WIDTH = 4, 6
SPLITS = {"train": 24, "val": 8, "test": 12}


def found(answer):
    estimates = estimate(answer.rows, answer.metrics, Bootstrap(resamples=100))
    return {metric.name: one for metric, one in zip(answer.metrics, estimates, strict=True)}


def square(random, place=None):
    """A 2x2 square of foreground somewhere in 4x4 patches."""
    row, column = random.integers(0, SIDE - 1, 2) if place is None else place
    mask = np.zeros((SIDE, SIDE))
    mask[row : row + 2, column : column + 2] = 1
    return mask.ravel()


def probed(made, tmp_path, token_of, masks=square, spec=None, without=(), foreground=None):
    """A set whose tokens are `token_of(random, mask)` (P, W)."""
    random = np.random.default_rng(0)
    entries = [made.Entry(f"{split}{n:02d}", split) for split, count in SPLITS.items() for n in range(count)]
    uids = sorted(entry.uid for entry in entries if entry.uid not in without)
    masks_MP = np.stack([masks(random) for _ in uids])
    tokens_MPW = np.stack([token_of(random, mask) for mask in masks_MP]).astype(np.float16)
    world = made.Made(tmp_path, entries)
    data = world.data(world.features(np.ones((len(entries), 2)), {}))
    shown = masks_MP if foreground is None else foreground(masks_MP)
    data.features.__dict__["patches"] = Patches(uids, tokens_MPW, shown.astype(np.float32))
    answers = dense_probe.answer(spec or DenseProbe(), made.subject_of(data))
    return {answer.baseline: answer for answer in answers}


def seen(random, mask):
    """Tokens that tell foreground on one axis, among noise."""
    tokens = random.normal(size=(len(mask), WIDTH))
    tokens[:, 0] += 8 * mask
    return tokens


def noise(random, mask):
    return random.normal(size=(len(mask), WIDTH))


def test_a_separable_world_is_separated_and_no_control_is(made, tmp_path):
    answers = probed(made, tmp_path, seen)
    value = {name: found(answer)["mIoU"].value for name, answer in answers.items()}
    assert value[""] > 0.95
    # all background: 12 of 16 patches, so IoU 0.75 and 0
    assert value["majority"] == pytest.approx(0.375)
    assert value["position_only"] < 0.6
    assert value["shuffled_labels"] < 0.45
    chosen = answers[""].chosen
    assert (chosen["chosen_on"], chosen["fit_on"], chosen["fit_patches"]) == ("val", "train", 24 * 16)
    assert chosen["penalty"] in DenseProbe().penalties
    assert answers["majority"].chosen == {}
    assert len(answers[""].rows) == SPLITS["test"]


def test_tokens_of_noise_know_nothing(made, tmp_path):
    answers = probed(made, tmp_path, noise)
    assert found(answers[""])["mIoU"].value < 0.5
    assert found(answers[""])["patch_accuracy"].value < 0.8


def test_a_subject_that_is_always_in_one_place_needs_no_tokens(made, tmp_path):
    """The control that shows how much of a score is the habit of centring: here all of it."""
    answers = probed(made, tmp_path, noise, masks=lambda random: square(random, (1, 1)))
    assert found(answers["position_only"])["mIoU"].value == 1
    assert found(answers[""])["mIoU"].value < 0.6


def test_mixed_patches_are_scored_and_not_learned_from(made, tmp_path):
    """A third of the patches is 60 % foreground: foreground when scored, and none of them is fitted on."""

    def blurred(masks_MP):
        shown = masks_MP.copy()
        shown[:, ::3] = np.where(shown[:, ::3] > 0, 0.6, 0.4)
        return shown

    answer = probed(made, tmp_path, seen, foreground=blurred)[""]
    clear = SIDE * SIDE - len(range(0, SIDE * SIDE, 3))
    assert answer.chosen["fit_patches"] == SPLITS["train"] * clear
    assert answer.extra["mixed_patches"] == pytest.approx(1 - clear / SIDE**2)
    assert found(answer)["mIoU"].value > 0.95
    assert sum(answer.rows.numbers["foreground_hit"] + answer.rows.numbers["foreground_missed"]) == 4 * SPLITS["test"]


def test_counts_by_hand():
    predicted, truth = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool), np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)
    counts = dense_probe._counts(predicted, truth)
    assert {name: column.tolist() for name, column in counts.items()} == {
        "foreground_hit": [1, 0], "foreground_missed": [1, 0], "foreground_false": [1, 0], "background_hit": [1, 4],
    }  # fmt: skip
    rows = Rows(["a", "b"], ["a", "b"], ["", ""], ["", ""], counts)
    weights = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    foreground, background = np.array([1 / 3, 1 / 3, np.nan]), np.array([5 / 7, 1 / 3, 1])
    assert IoU("f", ("foreground",)).statistic(rows)(weights) == pytest.approx(foreground, nan_ok=True)
    assert IoU("b", ("background",)).statistic(rows)(weights) == pytest.approx(background)
    # picture b has no foreground and none is predicted: only its background counts
    assert IoU("m").statistic(rows)(weights) == pytest.approx([(1 / 3 + 5 / 7) / 2, 1 / 3, 1])
    share = 2 / 8
    assert IoU("m").chance(rows) == pytest.approx((share / (1 + share) + (1 - share) / (2 - share)) / 2)


def test_iou_equals_scikit_learns_jaccard():
    from sklearn.metrics import jaccard_score

    random = np.random.default_rng(1)
    predicted, truth = random.integers(0, 2, (20, 9)).astype(bool), random.integers(0, 2, (20, 9)).astype(bool)
    names = [str(n) for n in range(20)]
    rows = Rows(names, names, names, names, dense_probe._counts(predicted, truth))
    expected = jaccard_score(truth.ravel(), predicted.ravel(), average="macro")
    assert IoU("m").statistic(rows)(np.ones((1, 20)))[0] == pytest.approx(expected)


def test_a_fair_coin_is_at_chance():
    random = np.random.default_rng(2)
    truth, predicted = random.random((400, 64)) < 0.2, random.random((400, 64)) < 0.5
    names = [str(n) for n in range(400)]
    rows = Rows(names, names, names, names, dense_probe._counts(predicted, truth))
    assert IoU("m").statistic(rows)(np.ones((1, 400)))[0] == pytest.approx(IoU("m").chance(rows), abs=0.01)


def test_pictures_without_a_mask_are_dropped_and_the_same_seed_fits_the_same(made, tmp_path):
    answers = probed(made, tmp_path, seen, without=("test03", "train00"), spec=DenseProbe(most_patches=100))
    assert dict(answers[""].rows.dropped) == {"test03": "no_patches"}
    assert answers[""].chosen["fit_patches"] == 100
    again = probed(made, tmp_path, seen, without=("test03", "train00"), spec=DenseProbe(most_patches=100))
    assert answers[""].rows.predictions == again[""].rows.predictions


def test_what_cannot_be_fitted_is_one_line(made, tmp_path):
    with pytest.raises(EvaluationError, match=r"dense_probe: fits and chooses on 'train'; choose on another split"):
        probed(made, tmp_path, seen, spec=DenseProbe(select="train"))
    with pytest.raises(EvaluationError, match=r"set/test: 12 of 12 pairs are scored in this evaluation"):
        probed(made, tmp_path, seen, spec=DenseProbe(fit="test"))
    with pytest.raises(EvaluationError, match=r"clear patches of split 'train' have one class; embed more pictures"):
        probed(made, tmp_path, seen, masks=lambda random: np.zeros(SIDE * SIDE))
    with pytest.raises(
        EvaluationError, match=r"no picture of split 'val' has patch tokens; a mask is a picture's alph"
    ):
        probed(made, tmp_path, seen, without=[f"val{n:02d}" for n in range(8)])
    with pytest.raises(EvaluationError, match=r"uid 'train00'.*its feature is not finite"):
        probed(made, tmp_path, lambda random, mask: np.full((len(mask), WIDTH), np.nan))
    world = made.Made(tmp_path, [made.Entry("test00"), made.Entry("train00", "train"), made.Entry("val00", "val")])
    subject = made.subject_of(world.data(world.features(np.ones((3, 2)), {})))
    with pytest.raises(EvaluationError, match=r"set: no patch tokens were embedded; give the embed stage `patches`"):
        dense_probe.answer(DenseProbe(), subject)
