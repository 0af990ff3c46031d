"""Zero-shot on some of the classes: the same as on a set that has only these; pairs of others are dropped."""

import numpy as np
import pytest

from data.errors import EvaluationError
from evaluation.specs import ZeroShot
from training.specs import Prompts

CLASSES = tuple(f"class {i}" for i in range(6))
PROMPTS = Prompts(field="kind", classes=CLASSES)
SOME = ("class 4", "class 1", "class 3")


@pytest.fixture
def world(made):
    """Forty random pictures, their labels, and a text a class."""
    random = np.random.default_rng(1)
    images, texts = made.unit(random.normal(size=(40, 8))), made.unit(random.normal(size=(6, 8)))
    return images, random.integers(0, 6, 40).tolist(), dict(zip(CLASSES, texts, strict=True))


@pytest.fixture
def ask(made, tmp_path):
    def asked(spec, images, labels, texts, split="test"):
        entries = [
            made.Entry(f"u{i:03d}", split, {"kind": label if isinstance(label, list) else CLASSES[label], "by": i % 2})
            for i, label in enumerate(labels)
        ]
        pairs = made.Made(tmp_path, entries)
        return spec.build()(spec, made.subject_of(pairs.data(pairs.features(images, texts)), split))

    return asked


def test_it_is_the_answer_of_a_set_with_these_classes_only(ask, world):
    images, labels, texts = world
    answers = ask(ZeroShot(prompts=PROMPTS, only_classes=SOME), images, labels, texts)
    inside = [row for row, label in enumerate(labels) if CLASSES[label] in SOME]
    alone = ask(
        ZeroShot(prompts=Prompts(field="kind", classes=SOME)), images[inside], [labels[row] for row in inside], texts
    )
    assert [answer.baseline for answer in answers] == [answer.baseline for answer in alone]
    for one, other in zip(answers, alone, strict=True):
        assert one.rows.labels == other.rows.labels
        assert one.rows.predictions == other.rows.predictions
        assert one.rows.numbers.keys() == other.rows.numbers.keys()
        for name, column in one.rows.numbers.items():
            np.testing.assert_allclose(column, other.rows.numbers[name], rtol=1e-6)
        assert [m.name for m in one.metrics] == [m.name for m in other.metrics]


def test_pairs_of_other_classes_are_dropped_with_a_reason_and_others_are_never_predicted(ask, world):
    images, labels, texts = world
    rows = ask(ZeroShot(prompts=PROMPTS, only_classes=SOME), images, labels, texts)[0].rows
    others = {f"u{row:03d}" for row, label in enumerate(labels) if CLASSES[label] not in SOME}
    assert others and rows.dropped == dict.fromkeys(others, "other_class")
    assert set(rows.predictions) | set(rows.labels) == set(SOME)
    assert set(rows.numbers["candidates"].tolist()) == {3}


def test_all_classes_are_the_plain_task(ask, world):
    images, labels, texts = world
    plain, every = (
        ask(ZeroShot(prompts=PROMPTS, only_classes=only), images, labels, texts)[0].rows for only in (None, CLASSES)
    )
    assert every.predictions == plain.predictions and every.dropped == {} == plain.dropped
    assert every.numbers["rank"].tolist() == plain.numbers["rank"].tolist()


def test_a_class_in_the_way_counts_only_where_it_may_be_chosen(ask):
    # the picture of class 0 looks like class 2, which is not asked about
    images, texts = np.array([[0.6, 0.0, 0.8], [0, 1, 0]]), dict(zip(CLASSES[:3], np.eye(3), strict=True))
    prompts = Prompts(field="kind", classes=CLASSES[:3])
    plain, two = (
        ask(ZeroShot(prompts=prompts, only_classes=only), images, [0, 1], texts)[0].rows for only in (None, CLASSES[:2])
    )
    assert plain.numbers["correct"].tolist() == [0, 1]
    assert two.numbers["correct"].tolist() == [1, 1]


def test_groups_go_along(ask, world):
    images, labels, texts = world
    rows = ask(ZeroShot(prompts=PROMPTS, only_classes=SOME, group_field="by"), images, labels, texts)[0].rows
    inside = [row for row, label in enumerate(labels) if CLASSES[label] in SOME]
    assert rows.numbers["group"].tolist() == [row % 2 for row in inside]


@pytest.mark.parametrize(
    ("only", "labels", "words"),
    [
        (("class 1", "class 99"), [0, 1], "only_classes: 'class 99' is no class of 'test'"),
        (("class 4", "class 5"), [0, 1], "no pair of split 'test' has one of these 2"),
        (("class 1", "class 2"), [["class 1"], ["class 2"]], "pairs have lists of classes"),
    ],
)
def test_what_cannot_be_asked_is_one_line(ask, world, only, labels, words):
    with pytest.raises(EvaluationError, match=words) as caught:
        ask(ZeroShot(prompts=PROMPTS, only_classes=only), world[0][:2], labels, world[2])
    assert "\n" not in str(caught.value)
