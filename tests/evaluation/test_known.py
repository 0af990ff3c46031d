"""Models of which the answer is known: one that knows everything, nothing, always the same, or no number at all."""

import numpy as np
import pytest

from data.errors import EvaluationError
from evaluation.bootstrap import estimate
from evaluation.specs import Bootstrap, Retrieval, ZeroShot
from training.specs import Prompts

CLASSES = tuple(f"class {i}" for i in range(8))
ZERO_SHOT = ZeroShot(prompts=Prompts(field="kind", templates=("{c}", "a {c}"), classes=CLASSES))
RETRIEVAL = Retrieval(ks=(1, 5))
TEXTS = [*CLASSES, *(f"a {name}" for name in CLASSES)]


def values(answers, baseline="", resamples=100):
    """Metric -> (estimate, chance, ties) of the answers of a task."""
    return {
        metric.name: (found, metric.chance(answer.rows), answer.rows.ties)
        for answer in answers if answer.baseline == baseline
        for metric, found in zip(
            answer.metrics, estimate(answer.rows, answer.metrics, Bootstrap(resamples=resamples)), strict=True
        )
    }  # fmt: skip


def numbers(answers, baseline=""):
    return {name: found.value for name, (found, _, _) in values(answers, baseline).items()}


@pytest.fixture
def answers(made, tmp_path):
    """Answers of a task on pairs with one label and some captions each."""

    def answered(spec, images, texts, labels=None, captions=None):
        entries = [
            made.Entry(
                f"u{i:05d}", "test", {"kind": CLASSES[labels[i]]} if labels is not None else {},
                [("alt", caption) for caption in captions[i]] if captions is not None else (),
            )
            for i in range(len(images))
        ]  # fmt: skip
        pairs = made.Made(tmp_path, entries)
        return spec.build()(spec, made.subject_of(pairs.data(pairs.features(images, texts))))

    return answered


def own_captions(count, each=1):
    return [[f"caption {i}-{j}" for j in range(each)] for i in range(count)]


def joined(captions):
    return [caption for own in captions for caption in own]


def same_for_all(rows, vector):
    return np.tile(np.asarray(vector, np.float32), (rows, 1))


# -------------------------------------------------------------------------------------------------- knows everything


def test_identity_finds_everything_first(answers):
    eye, captions = np.eye(12), own_captions(12)
    found = values(answers(RETRIEVAL, eye, dict(zip(joined(captions), eye, strict=True)), captions=captions))
    for direction in ("image_to_text", "text_to_image"):
        for k, chance in ((1, 1 / 12), (5, 5 / 12)):
            one, by_chance, ties = found[f"{direction}_R@{k}"]
            assert (one.value, one.high, ties) == (1, 1, 0)
            assert one.low == pytest.approx(0.025 ** (1 / 12))
            assert by_chance == pytest.approx(chance)
        assert found[f"{direction}_median_rank"][0].value == 1


def test_the_reverse_of_identity_finds_everything_last(answers):
    eye, captions = np.eye(12), own_captions(12)
    found = numbers(answers(RETRIEVAL, -eye, dict(zip(joined(captions), eye, strict=True)), captions=captions))
    assert found["image_to_text_R@5"] == found["text_to_image_R@5"] == 0
    assert found["image_to_text_median_rank"] == 12


def test_pictures_on_their_class_are_all_right(answers):
    eye = np.eye(8)
    labels = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
    texts = dict(zip(TEXTS, [*eye, *eye], strict=True))
    found = numbers(answers(ZERO_SHOT, eye[labels], texts, labels))
    assert (found["top1"], found["top5"], found["mean_per_class_recall"]) == (1, 1, 1)


# --------------------------------------------------------------------------------------------------- always the same


@pytest.mark.parametrize("dim", [1, 3, 96])
def test_a_constant_model_is_never_credited(answers, dim):
    vector = np.full(dim, dim**-0.5)
    captions = own_captions(40)
    texts = dict.fromkeys([*TEXTS, *joined(captions)], vector)
    images, labels = same_for_all(40, vector), [i % 8 for i in range(40)]
    for spec in (ZERO_SHOT, RETRIEVAL):
        found = values(answers(spec, images, texts, labels, captions))
        assert {ties for _, _, ties in found.values()} == {40}
        for name, (one, chance, _) in found.items():
            if "rank" in name:
                assert one.value == 40
            elif "macro" not in name:
                assert one.value == 0 < chance, name


def test_even_when_all_have_the_class_that_stands_first(answers):
    # what takes the first of equal scores is right in 100 % here
    images, texts = same_for_all(30, [1, 0]), {text: [1, 0] for text in TEXTS}
    found = numbers(answers(ZERO_SHOT, images, texts, [0] * 30))
    assert found["top1"] == found["top5"] == found["mean_per_class_recall"] == 0


@pytest.mark.parametrize("side", ["images", "texts"])
def test_zero_vectors_are_ties(answers, side):
    eye, captions = np.eye(12), own_captions(12)
    images, texts = eye.copy(), eye.copy()
    (images if side == "images" else texts)[:3] = 0
    found = values(answers(RETRIEVAL, images, dict(zip(joined(captions), texts, strict=True)), captions=captions))
    for direction in ("image_to_text", "text_to_image"):
        # the three that point nowhere are not found; the others tie with nothing that is right
        assert found[f"{direction}_R@1"][0].value == pytest.approx(9 / 12)
        assert found[f"{direction}_R@1"][2] == 3


# ----------------------------------------------------------------------------------------------------- knows nothing


def test_random_features_are_at_chance(answers, made):
    random = np.random.default_rng(11)
    labels = random.choice(8, 3000, p=np.array([8, 4, 2, 2, 1, 1, 1, 1]) / 20)
    images = made.unit(random.normal(size=(3000, 64)))
    texts = dict(zip(TEXTS, made.unit(random.normal(size=(16, 64))), strict=True))
    found = values(answers(ZERO_SHOT, images, texts, labels.tolist()), resamples=400)
    for name, expected in (("top1", 1 / 8), ("top5", 5 / 8), ("mean_per_class_recall", 1 / 8)):
        one, chance, ties = found[name]
        assert chance == pytest.approx(expected)
        assert one.low <= chance <= one.high, name
        assert one.high - one.low < 0.1
        assert ties == 0


def test_random_features_retrieve_at_chance(answers, made):
    random = np.random.default_rng(12)
    captions = own_captions(300, 5)
    images = made.unit(random.normal(size=(300, 64)))
    texts = dict(zip(joined(captions), made.unit(random.normal(size=(1500, 64))), strict=True))
    found = values(answers(Retrieval(ks=(10, 50)), images, texts, captions=captions), resamples=400)
    for name, expected in (
        ("image_to_text_R@10", 1 - np.prod((1490 - np.arange(5)) / (1500 - np.arange(5)))),
        ("text_to_image_R@10", 10 / 300), ("text_to_image_R@50", 50 / 300),
    ):  # fmt: skip
        one, chance, _ = found[name]
        assert chance == pytest.approx(expected), name
        assert one.low <= chance <= one.high, name


def test_controls_know_what_they_say(answers, made):
    random = np.random.default_rng(13)
    labels = random.choice(8, 2000, p=np.array([8, 4, 2, 2, 1, 1, 1, 1]) / 20).tolist()
    eye = np.eye(8)
    found = answers(ZERO_SHOT, eye[labels], dict(zip(TEXTS, [*eye, *eye], strict=True)), labels)
    share = np.bincount(labels, minlength=8) / 2000
    assert numbers(found)["top1"] == 1
    majority = numbers(found, "majority")
    assert majority["top1"] == pytest.approx(share.max())
    assert majority["mean_per_class_recall"] == pytest.approx(1 / 8)
    shuffled = numbers(found, "shuffled_labels")
    # a perfect model against shuffled labels: two draws of the same frequencies agree by sum p^2
    assert shuffled["top1"] == pytest.approx((share**2).sum(), abs=0.03)
    assert shuffled["mean_per_class_recall"] == pytest.approx(1 / 8, abs=0.04)


# ------------------------------------------------------------------------------------------------- hits and fractions


def test_two_of_five_captions_among_the_first_k_are_one_hit(answers):
    # cosines of picture 0: its captions are 3rd, 4th and far behind; three of picture 1 lie before them
    cosines = {"0": [0.7, 0.6, 0.1, 0.05, 0.0], "1": [0.9, 0.8, 0.5, 0.4, 0.3]}
    captions = [[f"{i}-{j}" for j in range(5)] for i in range(2)]
    texts = {
        f"{i}-{j}": [cosine, np.sqrt(1 - cosine**2), 0] for i in range(2) for j, cosine in enumerate(cosines[str(i)])
    }
    images = [[1, 0, 0], [0, 0, 1]]  # nothing looks like picture 1: all ten captions tie
    found = {k: numbers(answers(Retrieval(ks=(k,)), images, texts, captions=captions)) for k in (2, 3, 4)}
    by_hand = {2: 0, 3: 1, 4: 1}  # the fraction of five captions found would be 0, 0.2 and 0.4
    for k, hit in by_hand.items():
        assert found[k][f"image_to_text_R@{k}"] == pytest.approx((hit + 0) / 2)


def test_equal_captions_are_one_candidate_with_several_pictures(answers):
    captions = [["cat"], ["cat"], ["dog"], ["dog", "cat"]]
    images = [[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]]
    (to_text, to_image) = answers(RETRIEVAL, images, {"cat": [1, 0], "dog": [0, 1]}, captions=captions)
    assert to_text.rows.numbers["candidates"].tolist() == [2] * 4
    assert to_image.rows.ids == ["cat", "dog"]
    assert to_image.rows.numbers["positives"].tolist() == [3, 2]
    assert to_text.rows.numbers["rank"].tolist() == [1, 1, 1, 1]
    assert to_image.rows.numbers["rank"].tolist() == [1, 1]


# ---------------------------------------------------------------------------------------------------------- invariants


def random_world(made, count=50):
    random = np.random.default_rng(21)
    captions = [[f"{i}-{j}" for j in range(1 + i % 3)] for i in range(count)]
    names = [*TEXTS, *joined(captions)]
    images, texts = made.unit(random.normal(size=(count, 16))), made.unit(random.normal(size=(len(names), 16)))
    return images, dict(zip(names, texts, strict=True)), random.integers(0, 8, count).tolist(), captions


@pytest.mark.parametrize("spec", [ZERO_SHOT, RETRIEVAL], ids=["zero_shot", "retrieval"])
def test_turning_all_features_together_changes_no_rank(answers, made, spec):
    images, texts, labels, captions = random_world(made)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0]
    before = answers(spec, images, texts, labels, captions)
    after = answers(spec, images @ turn, {name: v @ turn for name, v in texts.items()}, labels, captions)
    for one, other in zip(before, after, strict=True):
        assert (one.rows.numbers["rank"] == other.rows.numbers["rank"]).all()


@pytest.mark.parametrize("spec", [ZERO_SHOT, RETRIEVAL], ids=["zero_shot", "retrieval"])
def test_the_size_of_a_block_changes_nothing(answers, made, spec, monkeypatch):
    world = random_world(made)
    whole = answers(spec, world[0], world[1], world[2], world[3])
    monkeypatch.setattr("evaluation.subject._BLOCK_PAIRS", 1)
    monkeypatch.setattr("evaluation.ranks._BLOCK_SCORES", 1)
    for one, other in zip(whole, answers(spec, world[0], world[1], world[2], world[3]), strict=True):
        assert (one.rows.ids, one.rows.predictions) == (other.rows.ids, other.rows.predictions)
        assert (one.rows.numbers["rank"] == other.rows.numbers["rank"]).all()


# ------------------------------------------------------------------------------------------------------- not a number


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("spec", "where", "message"),
    [
        (ZERO_SHOT, "image", "^uid 'u00003': its feature is not finite"),
        (ZERO_SHOT, "a class 2", "^class 'class 2': its feature is not finite"),
        (RETRIEVAL, "image", "^uid 'u00003': its feature is not finite"),
        (RETRIEVAL, "5-1", "^text '5-1': its feature is not finite"),
    ],
    ids=["zero_shot-image", "zero_shot-text", "retrieval-image", "retrieval-text"],
)
def test_what_is_not_a_number_is_named_and_never_scored(answers, made, spec, where, message, bad):
    images, texts, labels, captions = random_world(made)
    row = images[3] if where == "image" else texts[where]
    row[5] = bad
    with pytest.raises(EvaluationError, match=message) as caught:
        answers(spec, images, texts, labels, captions)
    assert "\n" not in str(caught.value)


def test_a_feature_of_a_pair_that_is_not_scored_does_no_harm(answers, made):
    images, texts, labels, captions = random_world(made)
    texts["not asked for"] = np.full(16, np.nan)
    assert 0 <= numbers(answers(RETRIEVAL, images, texts, labels, captions))["image_to_text_R@1"] <= 1
