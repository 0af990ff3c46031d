"""What a task is given: splits, labels, captions and features, each refused in one line where it cannot be right."""

import numpy as np
import pytest

from data.errors import ArtifactError, EvaluationError, UserError
from evaluation.subject import NO_LABEL, NOT_EMBEDDED
from training.specs import Prompts

DIM = 4
KIND = Prompts(field="kind")


@pytest.fixture
def pairs(made, tmp_path):
    """Six test pairs (one without a kind), three of val; kinds cat and dog."""
    kinds = ["cat", "dog", "cat", None, "dog", "cat"]
    entries = [
        made.Entry(
            f"t{i}", "test", {"kind": kind, "shelf": f"s{i // 3}"} if kind else {"shelf": "s1"},
            [("alt", f"caption {i}"), ("alt", "shared"), ("rewrite", f"other words {i}")],
        )
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    entries += [made.Entry(f"v{i}", "val", {"kind": "cat"}, [("alt", "  ")]) for i in range(3)]
    return made.Made(tmp_path, entries)


@pytest.fixture
def open_set(made, pairs):
    """Open the set with these features: random ones unless given."""

    def opened(images=None, texts=None, rows=None, **changes):
        random = np.random.default_rng(0)
        images = made.unit(random.normal(size=(9, DIM))) if images is None else images
        texts = texts or {name: made.unit(random.normal(size=DIM)) for name in ("cat", "dog", "a cat", "a dog")}
        return pairs.data(pairs.features(images, texts, rows=rows), **changes)

    return opened


# ------------------------------------------------------------------------------------------------ splits and labels


def test_a_part_holds_what_was_embedded_and_says_what_was_not(open_set):
    part = open_set(rows=[0, 2, 3, 5], cluster_field="shelf").part("test")
    assert part.uids == ["t0", "t2", "t3", "t5"]
    assert part.dropped == {"t1": NOT_EMBEDDED, "t4": NOT_EMBEDDED}
    assert part.clusters == {"t0": "s0", "t2": "s0", "t3": "s1", "t5": "s1"}


def test_without_a_cluster_field_every_pair_is_its_own(open_set):
    part = open_set().part("test")
    assert part.clusters == {uid: uid for uid in part.uids}


def test_a_pair_without_a_value_of_the_cluster_field_is_its_own_cluster(open_set):
    assert open_set(cluster_field="kind").part("test").clusters["t3"] == "t3"


def test_labels_are_numbers_of_sorted_classes(open_set):
    data = open_set(rows=[0, 1, 2, 3, 4])
    found = data.labelled(data.part("test"), KIND)
    assert (found.classes, found.uids) == (["cat", "dog"], ["t0", "t1", "t2", "t4"])
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.names == ["cat", "dog", "cat", "dog"]
    assert found.truth is None
    assert found.dropped == {"t3": NO_LABEL, "t5": NOT_EMBEDDED}


def test_given_classes_keep_their_order_and_may_be_more_than_there_are(open_set):
    data = open_set()
    found = data.labelled(data.part("test"), Prompts(field="kind", classes=("dog", "emu", "cat")))
    assert found.classes == ["dog", "emu", "cat"]
    assert found.labels.tolist() == [2, 0, 2, 0, 2]


def labelled(made, tmp_path, values, classes):
    entries = [made.Entry(f"t{i}", "test", {} if v is None else {"y": v}) for i, v in enumerate(values)]
    pairs = made.Made(tmp_path / "labels", entries)
    data = pairs.data(pairs.features(np.eye(len(values), 8), {"x": np.eye(8)[0]}))
    return data.labelled(data.part("test"), Prompts(field="y", classes=classes))


def test_a_number_is_the_class_of_that_place_and_zero_is_a_class(made, tmp_path):
    found = labelled(made, tmp_path, [2, 0, "a", None], ("a", "b", "c"))
    assert found.labels.tolist() == [2, 0, 0]
    assert found.uids == ["t0", "t1", "t2"]


def test_a_list_makes_a_pair_have_several_classes(made, tmp_path):
    found = labelled(made, tmp_path, [["a", "c"], ["b"], [1, "c"], None, []], ("a", "b", "c"))
    # a picture of none of the classes is a wrong answer for each, not one without a label
    assert found.uids == ["t0", "t1", "t2", "t4"]
    assert found.truth.astype(int).tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert found.names == ["a | c", "b", "b | c", ""]
    assert found.dropped == {"t3": NO_LABEL}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3, 0], r"uid 't0': y 3, but prompts.classes has 3 names"),
        ([0, -1], r"uid 't1': y -1, but prompts.classes has 3 names"),
        (["blu", "red"], r"uid 't0': y 'blu' is not in prompts.classes; did you mean 'blue'"),
        ([["red", "pink"]], r"uid 't0': y 'pink' is not in prompts.classes"),
        ([True, "red"], r"uid 't0': y True is not in prompts.classes"),
    ],
)
def test_a_class_that_the_list_does_not_have_is_an_error(made, tmp_path, values, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        labelled(made, tmp_path, values, ("red", "green", "blue"))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- captions


def test_captions_come_source_by_source_and_blank_ones_are_none(open_set):
    data = open_set()
    assert data.captions(("alt",))["t2"] == ["caption 2", "shared"]
    assert data.captions(("alt", "rewrite"))["t2"] == ["caption 2", "shared", "other words 2"]
    assert data.captions(("rewrite",))["t2"] == ["other words 2"]
    assert "v0" not in data.captions(("alt",))


def test_a_star_stands_for_every_source_that_begins_so(open_set):
    data = open_set()
    assert data.captions(("al*",)) == data.captions(("alt",))
    assert data.captions(("*",)) == data.captions(("alt", "rewrite"))
    with pytest.raises(EvaluationError, match=r"no caption has source 'neg\*'; sources are alt, rewrite"):
        data.captions(("neg*",))


# --------------------------------------------------------------------------------------------------------- features


def test_features_come_in_the_order_asked_whatever_the_block(open_set, monkeypatch):
    random = np.random.default_rng(2)
    images = random.normal(size=(9, DIM)).astype(np.float32)
    data = open_set(images)
    order = ["t4", "t0", "v2", "t1", "t4"]
    assert (data.image_features(order) == images[[4, 0, 8, 1, 4]]).all()
    monkeypatch.setattr("evaluation.subject._BLOCK_PAIRS", 2)
    blocks = list(data.image_blocks(order))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert (np.concatenate(blocks) == images[[4, 0, 8, 1, 4]]).all()


def test_class_features_are_the_normalised_mean_of_the_templates(open_set):
    texts = {"cat": [1, 0, 0, 0], "a cat": [0, 1, 0, 0], "dog": [0, 0, 1, 0], "a dog": [0, 0, 0.8, 0.6]}
    data = open_set(texts=texts)
    found = data.class_features(Prompts(field="kind", templates=("{c}", "a {c}")))
    half = 0.5**0.5
    assert found == pytest.approx(np.array([[half, half, 0, 0], [0, 0, 1.8, 0.6] / np.sqrt(1.8**2 + 0.36)]), abs=1e-6)
    turned = data.class_features(Prompts(field="kind", templates=("a {c}", "{c}")))
    assert found == pytest.approx(turned, abs=1e-7)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_and_never_a_number(open_set, bad):
    images = np.eye(9, DIM, dtype=np.float32)
    images[4, 2] = bad
    data = open_set(images, {"cat": [1, 0, 0, 0], "dog": [0, bad, 0, 0]})
    for ask, message in (
        (lambda: data.image_features(["t0", "t4"]), r"^uid 't4': its feature is not finite \(1 of 2\)"),
        (lambda: list(data.image_blocks(["t0", "t4"])), "^uid 't4'"),
        (lambda: data.texts(["cat", "dog"]), "^text 'dog': its feature is not finite"),
        (lambda: data.class_features(KIND), "^class 'dog': its feature is not finite"),
    ):
        with pytest.raises(EvaluationError, match=message):
            ask()
    assert data.image_features(["t0", "t5"]).shape == (2, DIM)  # what is not asked for does no harm
    assert data.texts(["cat"]).shape == (1, DIM)


def test_templates_that_cancel_out_are_no_class(open_set):
    data = open_set(texts={"cat": [1, 0, 0, 0], "a cat": [-1, 0, 0, 0], "dog": [0, 1, 0, 0], "a dog": [0, 1, 0, 0]})
    with pytest.raises(EvaluationError, match="class 'cat': its templates cancel out"):
        data.class_features(Prompts(field="kind", templates=("{c}", "a {c}")))
    with pytest.raises(EvaluationError, match="class 'cat'"):
        open_set(texts={"cat": [0, 0, 0, 0], "dog": [0, 1, 0, 0]}).class_features(KIND)


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.split_uids("tets"), r"'tets' is not a split of .*; did you mean 'test'"),
        (lambda d: d.values("kin"), "no pair has a metadata field 'kin'; did you mean 'kind'"),
        (lambda d: d.values("zzzz"), "fields are kind, shelf"),
        (lambda d: d.captions(("rewritten",)), "no caption has source 'rewritten'; did you mean 'rewrite'"),
        (lambda d: d.captions(("alt", "zzzz")), "sources are alt, rewrite"),
        (lambda d: d.class_features(Prompts(field="kind", templates=("a pet",))), r"'a pet' has no \{c\}"),
        (lambda d: d.class_features(Prompts(field="kind", templates=("the {c}",))), "text 'the cat' was not embedded"),
        (lambda d: d.image_features(["t0", "zz"]), "uid 'zz' was not embedded"),
        (lambda d: d.texts(["cat", "cow"]), "text 'cow' was not embedded"),
        (lambda d: d.image_features(["t0"], "foggy"), "no views were embedded"),
        (lambda d: d.labelled(d.part("val"), Prompts(field="shelf")), "no pair of split 'val' has a 'shelf'"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line(open_set, ask, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(open_set())
    assert "\n" not in str(caught.value)


def test_a_split_of_which_nothing_was_embedded_is_an_error(open_set):
    with pytest.raises(ArtifactError, match=r"no pair of split 'val'; add it to the embed stage's splits"):
        open_set(rows=[0, 1]).part("val")


def test_one_class_is_not_a_choice(made, tmp_path):
    with pytest.raises(EvaluationError, match=r"'y' has one value \['a'\]; classification needs two"):
        labelled(made, tmp_path, ["a", "a"], None)
