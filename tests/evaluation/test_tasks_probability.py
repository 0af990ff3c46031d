"""Calibration, out of distribution, geometry and multi-label as tasks, on features written by hand."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from data.errors import EvaluationError
from evaluation.bootstrap import estimate
from evaluation.rows import file_name, read_rows, write_rows
from evaluation.scores import softmax
from evaluation.specs import Bootstrap, Calibration, Geometry, OutOfDistribution, ZeroShot
from evaluation.subject import Subject, first_by_hash
from evaluation.tasks import calibration, geometry, out_of_distribution, zero_shot
from training.specs import Prompts

CLASSES = ("ant", "bee", "cat", "dog")
PROMPTS = Prompts(field="animal", classes=CLASSES)
DIM = 8
TEXTS = {name: np.eye(DIM)[i] for i, name in enumerate(CLASSES)}


def values(answer, resamples=100):
    found = estimate(answer.rows, answer.metrics, Bootstrap(resamples=resamples))
    return {metric.name: one.value for metric, one in zip(answer.metrics, found, strict=True)}


def animals(made, splits, seed=0, noise=0.5, out=()):
    """Pictures near their class; those of a split in `out` near none."""
    random = np.random.default_rng(seed)
    entries, images = [], []
    for split, count in splits.items():
        for number in range(count):
            label = int(random.integers(4))
            entries.append(
                made.Entry(f"{split}{number:05}", split, {"animal": CLASSES[label]}, [("alt", CLASSES[label])])
            )
            centre = np.eye(DIM)[label] if split not in out else np.zeros(DIM)
            images.append(centre + noise * random.normal(size=DIM))
    return entries, made.unit(images)


def made_subject(made, tmp_path, splits, scored=("test",), scale=10.0, **how):
    entries, images = animals(made, splits, **how)
    pairs = made.Made(tmp_path, entries)
    return made.subject_of(
        pairs.data(pairs.features(images, TEXTS, logit_scale=scale, name=f"x{scale}"), scored), scored[0]
    ), images


# ------------------------------------------------------------------------------------------------------- calibration


def test_calibration_before_and_after_a_temperature_fitted_elsewhere(made, tmp_path):
    subject, images = made_subject(made, tmp_path, {"test": 300, "val": 300}, scale=100.0)
    answer, shuffled = calibration.answer(Calibration(prompts=PROMPTS), subject)
    found = values(answer)
    assert list(found)[:4] == ["ece", "ece_equal_mass", "nll", "brier"]
    logits = 100 * images[:300].astype(float)[:, :4]
    labels = np.array([CLASSES.index(name) for name in answer.rows.labels])
    own = softmax(logits)[np.arange(300), labels]
    assert found["nll"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    assert found["brier"] == pytest.approx(((softmax(logits) - np.eye(4)[labels]) ** 2).sum(axis=1).mean(), rel=1e-5)
    # scale 100 is far too sure of such noise: the temperature of another split mends it
    assert answer.chosen["temperature"] > 3
    assert (answer.chosen["chosen_on"], answer.chosen["pairs"]) == ("val", 300)
    for name in ("ece", "ece_equal_mass", "nll", "brier"):
        assert found[f"{name}_scaled"] < found[name]
    assert found["ece_scaled"] < 2 * answer.extra["expected_ece"]["ece_scaled"]
    assert found["top1"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert sum(one["count"] for one in answer.extra["bins_scaled"]) == 300
    assert shuffled.baseline == "shuffled_labels" and values(shuffled)["ece"] > found["ece"] + 0.2


def test_the_scale_of_the_model_does_not_move_what_is_scaled(made, tmp_path):
    found = []
    for scale in (5.0, 50.0):
        subject, _ = made_subject(made, tmp_path, {"test": 100, "val": 100}, scale=scale)
        answer, _ = calibration.answer(Calibration(prompts=PROMPTS), subject)
        found.append((values(answer), answer.chosen["temperature"], answer.rows.predictions))
    (low, low_t, low_best), (high, high_t, high_best) = found
    assert high_t == pytest.approx(10 * low_t, rel=1e-9)
    assert low_best == high_best and low["top1"] == high["top1"]
    for name in ("ece_scaled", "ece_equal_mass_scaled", "nll_scaled", "brier_scaled"):
        assert low[name] == pytest.approx(high[name], abs=1e-9)
    assert low["nll"] != pytest.approx(high["nll"])


def test_calibration_does_not_depend_on_blocks_and_caps_its_fit(made, tmp_path, monkeypatch):
    subject, _ = made_subject(made, tmp_path, {"test": 50, "val": 60})
    (whole, _), spec = calibration.answer(Calibration(prompts=PROMPTS), subject), Calibration(prompts=PROMPTS)
    monkeypatch.setattr("evaluation.subject._BLOCK_PAIRS", 7)
    again, _ = calibration.answer(spec, subject)
    assert values(again) == pytest.approx(values(whole))
    monkeypatch.setattr(calibration, "_MOST_FITTED", 40)
    capped, _ = calibration.answer(spec, subject)
    assert (capped.chosen["pairs"], capped.chosen["left_out_by_hash"]) == (40, 20)
    assert capped.chosen["temperature"] != whole.chosen["temperature"]


def test_calibration_without_a_fit_has_no_scaled_columns(made, tmp_path):
    subject, _ = made_subject(made, tmp_path, {"test": 40})
    answer, _ = calibration.answer(Calibration(prompts=PROMPTS, fit=None), subject)
    assert not any("scaled" in name for name in (*values(answer), *answer.rows.numbers, *answer.extra))
    assert not answer.chosen


def test_a_temperature_is_never_fitted_on_what_is_scored(made, tmp_path):
    subject, _ = made_subject(made, tmp_path, {"test": 30, "val": 30}, scored=("test", "val"))
    with pytest.raises(EvaluationError, match=r"set/val: 30 of 30 pairs are scored .* not scored"):
        calibration.answer(Calibration(prompts=PROMPTS), subject)
    with pytest.raises(EvaluationError, match="'vall' is not a split"):
        calibration.answer(Calibration(prompts=PROMPTS, fit="vall"), subject)


def test_pictures_that_are_scored_are_left_out_of_the_fit(made, tmp_path):
    entries, images = animals(made, {"test": 20, "val": 20})
    entries[25] = made.Entry(entries[25].uid, "val", entries[25].meta, (), entries[3].uid.encode())  # the picture of 3
    pairs = made.Made(tmp_path, entries)
    subject = made.subject_of(pairs.data(pairs.features(images, TEXTS, contents=True)))
    answer, _ = calibration.answer(Calibration(prompts=PROMPTS), subject)
    assert (answer.chosen["pairs"], answer.chosen["left_out_scored_pictures"]) == (19, 1)


# ------------------------------------------------------------------------------------------------ out of distribution


def test_out_of_distribution_is_found_by_every_score(made, tmp_path):
    subject, images = made_subject(made, tmp_path, {"near": 80, "test": 120}, noise=0.2, out=("near",))
    spec = OutOfDistribution(prompts=PROMPTS, out=("near",))
    answer, shuffled = out_of_distribution.answer(spec, subject)
    found = values(answer)
    assert list(found) == [
        f"near_{metric}_{score}" for score in ("msp", "entropy", "mcm", "energy") for metric in ("auroc", "fpr95")
    ]
    is_out = np.array([0] * 120 + [1] * 80)
    assert answer.rows.numbers["is_out"].tolist() == is_out.tolist()
    cosines = np.concatenate([images[80:], images[:80]]).astype(float)[:, :4]
    assert found["near_auroc_msp"] == pytest.approx(roc_auc_score(is_out, -softmax(10 * cosines).max(axis=1)))
    assert found["near_auroc_mcm"] == pytest.approx(roc_auc_score(is_out, -softmax(cosines).max(axis=1)))
    assert min(found[f"near_auroc_{score}"] for score in spec.scores) > 0.9
    assert values(shuffled)["near_auroc_msp"] == pytest.approx(0.5, abs=0.12)
    assert (answer.extra["in"], answer.extra["out"]) == (120, 80)
    bars = answer.extra["histograms"]["energy"]
    assert (sum(bars["in"]), sum(bars["out"]), len(bars["edges"])) == (120, 80, 31)


def test_a_model_that_says_the_same_of_everything_earns_nothing(made, tmp_path):
    entries, images = animals(made, {"far": 30, "test": 31})
    images[:] = made.unit(np.random.default_rng(0).normal(size=DIM))
    pairs = made.Made(tmp_path, entries)
    subject = made.subject_of(pairs.data(pairs.features(images, TEXTS, logit_scale=100.0)))
    found = values(out_of_distribution.answer(OutOfDistribution(prompts=PROMPTS, out=("far",)), subject)[0])
    assert {value for name, value in found.items() if "auroc" in name} == {0.5}
    assert {value for name, value in found.items() if "fpr95" in name} == {1.0}


def test_the_ensemble_is_the_mean_of_its_members_probabilities(made, tmp_path):
    subject, _ = made_subject(
        made, tmp_path, {"near": 60, "test": 80, "train": 120, "val": 60}, noise=0.3, out=("near",)
    )
    spec = OutOfDistribution(prompts=PROMPTS, out=("near",), scores=("entropy",), fit="train")
    answer, _ = out_of_distribution.answer(spec, subject)
    found = values(answer)
    assert {"near_auroc_ensemble_entropy", "near_auroc_probe_entropy", "near_fpr95_closest_ensemble_msp"} <= set(found)
    assert "near_fpr95_closest_entropy" not in found
    assert (answer.chosen["fitted_on"], answer.chosen["chosen_on"], answer.chosen["pairs"]) == ("train", "val", 120)
    columns = answer.rows.numbers
    assert not np.allclose(columns["probe_entropy"], columns["entropy"], atol=0.05)  # the probe has its own opinion
    hand = out_of_distribution._ensemble(np.array([[0.9, 0.1]]), np.array([[0.4, 0.6]]))
    assert (hand["ensemble_msp"][0], hand["probe_msp"][0]) == pytest.approx((0.35, 0.4))
    # entropy is concave: that of the mean is at least the mean of the members'
    assert (columns["ensemble_entropy"] >= (columns["entropy"] + columns["probe_entropy"]) / 2 - 1e-9).all()
    assert (columns["ensemble_msp"] >= columns["probe_msp"] / 2 - 1e-9).all()
    assert found["near_auroc_ensemble_entropy"] > 0.8


def two_sets(made, tmp_path):
    """Two sets whose uids and clusters are called alike."""
    entries, images = animals(made, {"test": 40}, noise=0.1)
    ours = made.Made(tmp_path, entries, "ours")
    theirs = made.Made(tmp_path, [made.Entry(e.uid, "test", {"other": "x"}) for e in entries], "theirs")
    noise = made.unit(np.random.default_rng(3).normal(size=(40, DIM)))
    checkpoint = ours.checkpoint()
    first = ours.data(ours.features(images, TEXTS, checkpoint, name="a"), name="ours")
    second = theirs.data(theirs.features(noise, {"unused": np.eye(DIM)[0]}, checkpoint, name="b"), name="theirs")
    policy = made.policy_of(first, second)

    def other(where):
        name, _, split = where.rpartition("/")
        data = {"ours": first, "theirs": second, "": first}[name]
        return Subject(data, data.part(split), policy, other)

    return Subject(first, first.part("test"), policy, other)


def test_another_set_is_scored_against_the_classes_of_this_one_and_its_names_do_not_collide(made, tmp_path):
    subject = two_sets(made, tmp_path)
    answer, shuffled = out_of_distribution.answer(OutOfDistribution(prompts=PROMPTS, out=("theirs/test",)), subject)
    rows = answer.rows
    assert (rows.direction, len(set(rows.ids)), rows.clusters_Q.max() + 1) == ("theirs_test", 80, 80)
    assert rows.ids[40] == "theirs/test00000"
    assert values(answer)["theirs_test_auroc_msp"] > 0.9
    uri = str(tmp_path / file_name("ours", "test", "ood", rows.direction))
    write_rows(uri, rows)
    assert read_rows(uri, rows.direction).numbers["msp"].tolist() == rows.numbers["msp"].tolist()
    assert shuffled.rows.direction == rows.direction


def test_out_of_distribution_refuses_what_is_not_out(made, tmp_path):
    subject, _ = made_subject(made, tmp_path, {"near": 20, "test": 20, "train": 20, "val": 20})
    with pytest.raises(EvaluationError, match=r"out 'test': 20 of 20 pairs are in 'test'"):
        out_of_distribution.answer(OutOfDistribution(prompts=PROMPTS, out=("near", "test")), subject)
    with pytest.raises(EvaluationError, match=r"out 'train': 20 of 20 pairs are in 'train'"):
        out_of_distribution.answer(OutOfDistribution(prompts=PROMPTS, out=("train",), fit="train"), subject)
    # without a fit nothing was learned from it
    assert out_of_distribution.answer(OutOfDistribution(prompts=PROMPTS, out=("train",)), subject)


# ---------------------------------------------------------------------------------------------------------- geometry


def captioned(made, tmp_path, images, texts, captions=None):
    entries = [
        made.Entry(f"p{i:04}", "test", {"animal": "ant"}, [("alt", c)] if c else ())
        for i, c in enumerate(captions or [f"text {i}" for i in range(len(images))])
    ]
    pairs = made.Made(tmp_path, entries)
    return made.subject_of(pairs.data(pairs.features(images, {f"text {i}": text for i, text in enumerate(texts)})))


def test_geometry_of_equal_and_of_opposite_modalities(made, tmp_path):
    images = made.unit(np.random.default_rng(0).normal(size=(60, DIM)))
    same, others = geometry.answer(Geometry(), captioned(made, tmp_path, images, images))
    found = values(same)
    assert (found["modality_gap"], found["alignment"]) == (0, 0)
    assert found["image_uniformity"] == pytest.approx(found["text_uniformity"])
    assert others.baseline == "shuffled_captions" and 1.5 < values(others)["alignment"] < 2.5
    opposite, _ = geometry.answer(Geometry(), captioned(made, tmp_path, images, -images))
    assert values(opposite)["alignment"] == pytest.approx(4, rel=1e-6)


def test_geometry_drops_with_a_reason_and_looks_at_some(made, tmp_path, monkeypatch):
    images = made.unit(np.random.default_rng(1).normal(size=(40, DIM)))
    subject = captioned(made, tmp_path, images, images, [f"text {i}" if i else "" for i in range(40)])
    answer, _ = geometry.answer(Geometry(most_pairs=10), subject)
    assert answer.rows.dropped == {"p0000": "no_caption"} and len(answer.rows) == 39
    assert answer.extra["uniformity_pairs"] == 10
    assert len(answer.extra["projection"]["images"]) == len(answer.extra["projection"]["texts"]) == 39
    monkeypatch.setattr(geometry, "_MOST_PAIRS", 25)
    fewer, _ = geometry.answer(Geometry(), subject)
    assert Counter(fewer.rows.dropped.values()) == {"no_caption": 1, "beyond_the_first_by_hash": 14}
    assert set(fewer.rows.ids) < set(answer.rows.ids)


def test_geometry_needs_two_captioned_pairs(made, tmp_path):
    images = made.unit(np.eye(DIM)[:3])
    subject = captioned(made, tmp_path, images, images, ["text 0", "", ""])
    with pytest.raises(EvaluationError, match="1 pairs have a caption of 'alt', geometry needs two"):
        geometry.answer(Geometry(), subject)


def test_the_first_by_hash_do_not_depend_on_the_order():
    uids = [f"u{i}" for i in range(200)]
    assert first_by_hash(uids, 20) == first_by_hash(uids[::-1], 20) == sorted(first_by_hash(uids, 20))
    assert set(first_by_hash(uids, 20)) < set(first_by_hash(uids, 30)) and first_by_hash(uids, 300) == sorted(uids)


# -------------------------------------------------------------------------------------------------- zero-shot metrics


def test_multi_label_pairs_are_scored_by_map_and_a_constant_model_gets_the_prevalence(made, tmp_path):
    random = np.random.default_rng(2)
    truth = random.random((80, 4)) < 0.4
    truth[:, 3] = False
    truth[~truth.any(axis=1), 0] = True
    entries = [
        made.Entry(f"m{i:03}", "test", {"animal": [CLASSES[c] for c in np.flatnonzero(t)]}) for i, t in enumerate(truth)
    ]
    images = made.unit(truth @ np.eye(4, DIM) + 0.4 * random.normal(size=(80, DIM)))
    pairs = made.Made(tmp_path, entries)
    for name, features in (("good", images), ("constant", np.tile(images[:1], (80, 1)))):
        subject = made.subject_of(pairs.data(pairs.features(features, TEXTS, name=name)))
        answer, shuffled = zero_shot.answer(ZeroShot(prompts=PROMPTS), subject)
        assert answer.extra == {"classes": 4, "classes_without_positives": 1}
        found = values(answer)["mAP"]
        if name == "constant":
            assert found == pytest.approx(truth[:, :3].mean())
        else:
            expected = average_precision_score(truth[:, :3], features[:, :3].astype(float), average="macro")
            assert found == pytest.approx(expected, abs=1e-9)
            assert found > values(shuffled)["mAP"] + 0.2


def test_zero_shot_has_macro_f1(made, tmp_path):
    subject, _ = made_subject(made, tmp_path, {"test": 60})
    assert "macro_f1" in values(zero_shot.answer(ZeroShot(prompts=PROMPTS), subject)[0])


# -------------------------------------------------------------------------------------------------------- in the stage


def test_the_stage_writes_them_all_as_plain_json(world):
    prompts = Prompts(field="group", templates=("{c}", "a picture of a {c}"))
    tasks = {
        "sure": Calibration(prompts=prompts, fit="train"), "lie": Geometry(),
        "strange": OutOfDistribution(prompts=prompts, out=("unseen_concepts",), fit="train", select="train"),
    }  # fmt: skip
    checkpoint = world.checkpoint("pretrain", world.select())
    features = world.embed("embed", checkpoint, splits=("unseen_vendor", "unseen_concepts", "train"))
    artifact = world.evaluate("evaluate", features, splits=("unseen_vendor",), tasks=tasks)
    report = json.loads(Path(artifact.at("report.json")).read_text())
    assert "NaN" not in json.dumps(report) and "Infinity" not in json.dumps(report)
    rows = {(row["task"], row["baseline"], row["metric"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"])
    assert rows["sure", "", "ece"]["chance"] is None and rows["sure", "", "nll"]["chance"] == pytest.approx(np.log(4))
    assert rows["sure", "", "ece_scaled"]["chosen"]["chosen_on"] == "train"
    assert rows["lie", "", "modality_gap"]["better"] == "neither"
    strange = rows["strange", "", "unseen_concepts_auroc_ensemble_entropy"]
    assert (strange["chance"], strange["n"], strange["chosen"]["fitted_on"]) == (0.5, 56, "train")
    assert report["extra"]["emoji/unseen_vendor/strange"]["unseen_concepts"]["out"] == 16
    assert len(report["extra"]["emoji/unseen_vendor/sure"][""]["bins_scaled"]) == 15
