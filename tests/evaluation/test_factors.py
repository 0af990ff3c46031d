"""Robustness, visual factors, natural shift: numbers by hand, what is paired cancels, what is missing is counted."""

import numpy as np
import pytest

from data.errors import EvaluationError
from data.features import FeatureSet, write_features
from evaluation.bootstrap import estimate
from evaluation.metrics.base import Mean
from evaluation.metrics.differences import Gap, RelativeDrop, Worst
from evaluation.rows import Rows
from evaluation.specs import Bootstrap, NaturalShift, Robustness, VisualFactors
from evaluation.tasks import natural_shift, robustness, visual_factors
from training.specs import Prompts

CLASSES = ("ant", "bee", "cat")
PROMPTS = Prompts(field="class", classes=CLASSES)
TEXTS = dict(zip(CLASSES, np.eye(3), strict=True))
BOOTSTRAP = Bootstrap(resamples=100)


def found(answer):
    """Estimates by metric."""
    estimates = estimate(answer.rows, answer.metrics, BOOTSTRAP)
    return {metric.name: one for metric, one in zip(answer.metrics, estimates, strict=True)}


def seeing(classes):
    """Features of a model that answers these classes."""
    return np.eye(3)[[CLASSES.index(name) for name in classes]]


# ---------------------------------------------------------------------------------------------------------- robustness

TRUTH = ["ant", "ant", "bee", "bee", "cat", "cat"]
CLEAN = ["ant", "ant", "bee", "bee", "ant", "bee"]  # 4 of 6
NOISE_1 = ["ant", "ant", "bee", "ant", "ant", "ant"]  # 3
NOISE_5 = ["bee", "ant", "cat", "ant", "bee", "bee"]  # 1
BLUR_3 = ["ant", "bee", "cat", "ant", "cat", "cat"]  # 3
VIEWS = {
    "noisy": {"view": "corrupted", "kind": "gaussian_noise", "severity": 1},
    "noisier": {"view": "corrupted", "kind": "gaussian_noise", "severity": 5},
    "blurred": {"view": "corrupted", "kind": "defocus_blur", "severity": 3},
    "cropped": {"view": "cropped", "scale": [0.5, 1.0]},
}


def robust_subject(made, tmp_path, clean=None, views=VIEWS, answers=(NOISE_1, NOISE_5, BLUR_3, CLEAN), embedded=6):
    entries = [made.Entry(f"p{row}", meta={"class": name}) for row, name in enumerate(TRUTH)]
    world = made.Made(tmp_path, entries)
    data = world.data(world.features(seeing(CLEAN) if clean is None else clean, TEXTS))
    uids = [entry.uid for entry in entries[:embedded]]
    named = dict(zip(views, answers, strict=True))

    def write(uri):
        looks = {name: seeing(classes)[:embedded] for name, classes in named.items()}
        write_features(uri, uids, np.eye(3)[[0] * embedded], [], np.zeros((0, 3)), looks)

    data.views = FeatureSet(
        world.put("views", "feature_set", {"checkpoint": world.checkpoint()}, write, {"views": views})
    )
    return made.subject_of(data)


def test_robustness_by_hand(made, tmp_path):
    (answer,) = robustness.answer(Robustness(prompts=PROMPTS), robust_subject(made, tmp_path))
    value = {name: one.value for name, one in found(answer).items()}
    assert value == pytest.approx(
        {
            "clean_top1": 4 / 6, "gaussian_noise@1": 3 / 6, "gaussian_noise@5": 1 / 6, "defocus_blur@3": 3 / 6,
            "gaussian_noise_top1": (3 + 1) / 12, "defocus_blur_top1": 3 / 6,
            "corrupted_top1": 5 / 12, "drop": 1 / 4, "relative_drop": 3 / 8,  # by views: 7 / 18
        }
    )  # fmt: skip
    chance = {metric.name: metric.chance(answer.rows) for metric in answer.metrics}
    assert chance["clean_top1"] == chance["gaussian_noise@5"] == pytest.approx(1 / 3)
    assert chance["drop"] == chance["relative_drop"] == 0
    curve = answer.extra["curves"]["gaussian_noise"]
    assert curve == {"severity": [1, 5], "top1": pytest.approx([3 / 6, 1 / 6])}
    assert "cropped" not in "".join(value)


def test_views_that_change_nothing_drop_exactly_nothing(made, tmp_path):
    subject = robust_subject(made, tmp_path, answers=(CLEAN, CLEAN, CLEAN, CLEAN))
    (answer,) = robustness.answer(Robustness(prompts=PROMPTS), subject)
    drop, relative = (found(answer)[name] for name in ("drop", "relative_drop"))
    assert (drop.value, drop.low, drop.high) == pytest.approx((0, 0, 0))
    assert np.nanmax(np.abs(relative.draws)) == pytest.approx(0)


def test_a_constant_model_has_nothing_to_lose_and_no_part_of_nothing_is_given(made, tmp_path):
    (answer,) = robustness.answer(Robustness(prompts=PROMPTS), robust_subject(made, tmp_path, clean=np.ones((6, 3))))
    estimates = found(answer)
    assert estimates["clean_top1"].value == 0
    assert answer.rows.ties == 6
    assert "relative_drop" not in estimates


def test_pictures_without_views_are_dropped_and_no_views_is_one_line(made, tmp_path):
    (answer,) = robustness.answer(Robustness(prompts=PROMPTS), robust_subject(made, tmp_path, embedded=4))
    assert (len(answer.rows), dict(answer.rows.dropped)) == (4, {"p4": "not_in_views", "p5": "not_in_views"})
    assert found(answer)["clean_top1"].value == 1
    subject = robust_subject(made, tmp_path, views={"cropped": VIEWS["cropped"]}, answers=(CLEAN,))
    with pytest.raises(EvaluationError, match="set: robustness needs corrupted views; embed some"):
        robustness.answer(Robustness(prompts=PROMPTS), subject)
    subject.data.views = None
    with pytest.raises(EvaluationError, match="needs corrupted views"):
        robustness.answer(Robustness(prompts=PROMPTS), subject)


# ------------------------------------------------------------------------------------------------------ visual factors

STYLES = ["flat", "flat", "flat", "flat", "3d", "3d", "3d", "3d", "photo", None]
RIGHT = [1, 1, 1, 0, 1, 0, 0, 0, 0, 1]


def factor_subject(made, tmp_path, styles=STYLES):
    entries = [
        made.Entry(f"p{row}", meta={"class": "ant", **({"style": style} if style else {})})
        for row, style in enumerate(styles)
    ]
    world = made.Made(tmp_path, entries)
    return made.subject_of(world.data(world.features(seeing(["ant" if hit else "bee" for hit in RIGHT]), TEXTS)))


def test_visual_factors_by_hand(made, tmp_path):
    spec = VisualFactors(prompts=PROMPTS, fields=("style",), min_pairs=2)
    (answer,) = visual_factors.answer(spec, factor_subject(made, tmp_path))
    value = {name: one.value for name, one in found(answer).items()}
    assert value == pytest.approx(
        {
            "top1": 5 / 10, "style=flat_top1": 3 / 4, "style=3d_top1": 1 / 4, "worst_style_top1": 1 / 4,
            "style=flat_gap": 3 / 4 - 1 / 5, "style=3d_gap": 1 / 4 - 3 / 5,  # the pair without a style is in no rest
        }
    )  # fmt: skip
    table = answer.extra["factors"]["style"]
    assert table["photo"] == {"n": 1, "top1": 0, "scored": False}
    assert table["flat"] == {"n": 4, "top1": 0.75, "scored": True}


def test_a_pair_may_have_several_values(made, tmp_path):
    styles = [["flat", "small"], ["flat"], ["small"], ["small", "flat"], *[["large"]] * 6]
    spec = VisualFactors(prompts=PROMPTS, fields=("style",), min_pairs=2)
    (answer,) = visual_factors.answer(spec, factor_subject(made, tmp_path, styles))
    value = {name: one.value for name, one in found(answer).items()}
    assert (value["style=flat_top1"], value["style=small_top1"]) == pytest.approx((2 / 3, 2 / 3))
    assert value["style=flat_gap"] == pytest.approx(2 / 3 - 3 / 7)
    assert value["worst_style_top1"] == pytest.approx(2 / 6)


def test_a_value_that_every_pair_has_has_no_rest(made, tmp_path):
    spec = VisualFactors(prompts=PROMPTS, fields=("style",), min_pairs=2)
    (answer,) = visual_factors.answer(spec, factor_subject(made, tmp_path, ["flat"] * 10))
    assert {metric.name for metric in answer.metrics} == {"top1", "style=flat_top1"}


def test_no_value_with_enough_pairs_and_an_unknown_field_are_one_line(made, tmp_path):
    subject = factor_subject(made, tmp_path)
    with pytest.raises(EvaluationError, match=r"no value of 'style' has 20 pairs in split 'test'; lower min_pairs"):
        visual_factors.answer(VisualFactors(prompts=PROMPTS, fields=("style",)), subject)
    with pytest.raises(EvaluationError, match=r"no pair has a metadata field 'stile'; did you mean 'style'"):
        visual_factors.answer(VisualFactors(prompts=PROMPTS, fields=("stile",)), subject)


# ------------------------------------------------------------------------------------------------------- natural shift


def shifted(made, tmp_path, other_truth=("ant", "bee", "cat", "cat", "dog"), classes=CLASSES):
    """Here 2 of 4 are right, there 3 of 4 and one pair of a class that is not asked. Uids and clusters are the same."""
    here = [made.Entry(f"p{row}", meta={"class": name, "base": "one"}) for row, name in enumerate(TRUTH[:4])]
    there = [made.Entry(f"p{row}", meta={"class": name, "base": "one"}) for row, name in enumerate(other_truth)]
    ours, theirs = made.Made(tmp_path, here, "sketch"), made.Made(tmp_path, there, "photo")
    images = seeing(["ant", "bee", "bee", "ant"]), seeing(["ant", "bee", "cat", "ant", "ant"])
    sketch = ours.data(ours.features(images[0], TEXTS), cluster_field="base", name="sketch")
    photo = theirs.data(theirs.features(images[1], TEXTS, name="embed-photo"), cluster_field="base", name="photo")
    reference = made.subject_of(photo)
    return made.subject_of(sketch)._replace(other=lambda where: reference)


def test_natural_shift_by_hand(made, tmp_path):
    spec = NaturalShift(prompts=PROMPTS, reference="photo/test")
    (answer,) = natural_shift.answer(spec, shifted(made, tmp_path))
    value = {name: one.value for name, one in found(answer).items()}
    assert value == pytest.approx({"top1": 2 / 4, "reference_top1": 3 / 4, "drop": 1 / 4})
    assert dict(answer.rows.dropped) == {"photo/test:p4": "other_class"}
    assert len(set(answer.rows.ids)) == len(answer.rows) == 8
    assert set(answer.rows.clusters) == {"one", "photo/test:one"}
    assert answer.extra == {"n": 4, "reference": "photo/test", "reference_n": 4}


def test_a_split_of_the_same_set_shares_its_clusters(made, tmp_path):
    entries = [
        made.Entry(f"{split}{row}", split, {"class": name, "base": name})
        for split in ("test", "plain") for row, name in enumerate(CLASSES)
    ]  # fmt: skip
    world = made.Made(tmp_path, entries)
    images = seeing([*CLASSES, *CLASSES])
    subject = made.subject_of(world.data(world.features(images, TEXTS), cluster_field="base"))
    (answer,) = natural_shift.answer(NaturalShift(prompts=PROMPTS, reference="plain"), subject)
    assert sorted(set(answer.rows.clusters)) == list(CLASSES)
    assert found(answer)["drop"].value == 0


def test_sets_of_other_classes_are_refused(made, tmp_path):
    spec = NaturalShift(prompts=Prompts(field="class"), reference="photo/test")
    with pytest.raises(
        EvaluationError, match=r"sketch and photo/test have different classes, e.g. 'cat'; name the com"
    ):
        natural_shift.answer(spec, shifted(made, tmp_path))
    spec = NaturalShift(prompts=PROMPTS, reference="photo/test")
    with pytest.raises(EvaluationError, match="no pair of photo/test has one of the classes"):
        natural_shift.answer(spec, shifted(made, tmp_path, other_truth=("dog",) * 5))


# ------------------------------------------------------------------------------------------------------------- metrics


def rows_of(clusters, **numbers):
    size = len(clusters)
    ids = [str(row) for row in range(size)]
    return Rows(ids, list(clusters), [""] * size, [""] * size, {k: np.asarray(v) for k, v in numbers.items()})


def test_differences_on_weighted_clusters_are_those_of_repeated_samples():
    """Brute force: a cluster drawn twice is its samples twice."""
    random = np.random.default_rng(3)
    clusters = random.integers(0, 5, 40).astype(str)
    numbers = {"hit": random.integers(0, 2, 40), "after": random.random(40), "a": random.integers(0, 2, 40)}
    numbers["b"] = 1 - numbers["a"]
    rows, weights_RG = rows_of(clusters, **numbers), random.integers(0, 3, (6, 5)).astype(float)
    metrics = [Gap("gap", "hit", "a", "b"), Worst("worst", "hit", ("a", "b")), RelativeDrop("lost", "hit", "after")]
    names = np.unique(clusters)
    for weights_G in weights_RG:
        repeated = np.concatenate(
            [np.flatnonzero(clusters == n).repeat(int(w)) for n, w in zip(names, weights_G, strict=True)]
        )
        hit, after, a, b = (numbers[name][repeated] for name in ("hit", "after", "a", "b"))
        means = hit[a == 1].mean(), hit[b == 1].mean()
        expected = (means[0] - means[1], min(means), 1 - after.sum() / hit.sum())
        got = [metric.statistic(rows)(weights_G[None])[0] for metric in metrics]
        assert got == pytest.approx(expected)


def test_a_kind_that_a_draw_leaves_out_is_not_the_worst_and_no_gap_is_a_number():
    rows = rows_of("xy", hit=[1, 0], a=[1, 0], b=[0, 1])
    assert Worst("w", "hit", ("a", "b")).statistic(rows)(np.array([[1.0, 0.0], [1.0, 1.0]])).tolist() == [1, 0]
    assert np.isnan(Gap("g", "hit", "a", "b").statistic(rows)(np.array([[1.0, 0.0]])))
    assert np.isnan(RelativeDrop("r", "b", "hit").statistic(rows)(np.array([[1.0, 0.0]])))
    with pytest.raises(EvaluationError, match="'r': not defined"):
        estimate(rows_of("xy", hit=[1, 0], none=[0, 0]), [RelativeDrop("r", "none", "hit")], BOOTSTRAP)


def test_a_paired_gap_is_narrower_than_two_apart():
    """Two kinds of samples that rise and fall with the same clusters: their gap is known better than each of them."""
    clusters = np.repeat(np.arange(30), 2).astype(str)
    hit = np.repeat(np.random.default_rng(0).integers(0, 2, 30), 2)
    rows = rows_of(clusters, hit=hit, a=np.tile([1, 0], 30), b=np.tile([0, 1], 30))
    gap, alone = estimate(rows, [Gap("gap", "hit", "a", "b"), Mean("alone", "hit", where="a")], BOOTSTRAP)
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)
    assert alone.high - alone.low > 0.2
