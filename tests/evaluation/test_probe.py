"""The probe task: what it learns from, full and few-shot results, its baselines and its refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from threadpoolctl import threadpool_limits

from data.errors import EvaluationError
from data.features import FeatureSet, write_features
from evaluation import specs
from evaluation.bootstrap import estimate
from evaluation.heads.linear_probe import LinearProbe
from evaluation.heads.nearest_neighbours import NearestNeighbours
from evaluation.scores import softmax
from evaluation.specs import Bootstrap
from evaluation.tasks.probe import answer, shot_places
from training.specs import Prompts

DIM, KINDS = 16, ("ant", "bee", "cat", "dog", "elk", "fox")
PROMPTS = Prompts(field="kind")
KNN = specs.NearestNeighbours(ks=(1, 3, 9))
LINEAR = specs.LinearProbe(weight_decays=(1e-4, 1.0))
BASELINES = ("zero_shot", "majority", "shuffled_labels", "nearest_neighbours")
COUNTS = {"train": 60, "val": 30, "test": 90}


@pytest.fixture(autouse=True)
def one_thread():
    # threads that wait for each other's three microseconds of work take seconds
    with threadpool_limits(1):
        yield


class Zoo:
    """Pictures near their kind, texts that know the kinds only roughly, and a set to ask."""

    def __init__(self, made, root, change=lambda entry: entry, noise=0.6, rough=3.0):
        self.made, random = made, np.random.default_rng(0)
        kinds = random.normal(size=(len(KINDS), DIM))
        self.entries, images = [], []
        for split, count in COUNTS.items():
            for number in range(count):
                kind = number % len(KINDS)
                self.entries.append(change(made.Entry(f"{split}-{number:03}", split, {"kind": KINDS[kind]})))
                images.append(kinds[kind] + noise * random.normal(size=DIM))
        self.images = made.unit(images)
        self.texts = {
            name: made.unit(kinds[row] + rough * random.normal(size=DIM)) for row, name in enumerate(KINDS)
        }  # fmt: skip
        self.pairs = made.Made(root, self.entries)

    def subject(self, images=None, splits=("test",), views=None, **features):
        images = self.images if images is None else images
        data = self.pairs.data(self.pairs.features(images, self.texts, **features), splits)
        data.views = views
        return self.made.subject_of(data)

    def views(self, **views):
        order = np.argsort([e.uid for e in self.entries])
        uids, none = [self.entries[row].uid for row in order], np.zeros((0, DIM), np.float32)
        ordered = {name: images[order] for name, images in views.items()}
        return FeatureSet(
            self.pairs.put(
                "views", "feature_set", {"pairs": self.pairs.shard_set},
                lambda uri: write_features(uri, uids, self.images[order], [], none, views=ordered),
            )
        )  # fmt: skip

    def numbers(self, split):
        return np.array([KINDS.index(e.meta["kind"]) for e in self.entries if e.split == split and "kind" in e.meta])

    def of(self, split):
        return self.images[[e.split == split for e in self.entries]]


@pytest.fixture
def zoo(made, tmp_path):
    return Zoo(made, tmp_path)


def spec(head=KNN, **changes):
    return specs.Probe(**{"prompts": PROMPTS, "head": head} | changes)


def answers(*arguments, **changes):
    return {one.baseline: one for one in answer(*arguments, **changes)}


def value(found, name):
    metric = next(metric for metric in found.metrics if metric.name == name)
    return float(metric.statistic(found.rows)(np.ones((1, int(found.rows.clusters_Q.max()) + 1)))[0])


def changed(test):
    """Change the entries that `test` names."""
    return lambda entry: replace(entry, **test(entry)) if test(entry) else entry


# -------------------------------------------------------------------------------------------------------- full probes


def test_a_probe_is_its_head_on_the_fit_split_chosen_on_the_select_split(zoo):
    found = answers(spec(), zoo.subject())[""]
    head = NearestNeighbours(KNN)
    texts = np.stack([zoo.texts[name] for name in KINDS])
    chosen = head.fit(zoo.of("train"), zoo.numbers("train"), texts, (zoo.of("val"), zoo.numbers("val")))
    predicted = head.logits(zoo.of("test")).argmax(axis=1)
    truth = zoo.numbers("test")
    assert found.rows.ids == sorted(e.uid for e in zoo.entries if e.split == "test")
    assert found.rows.predictions == [KINDS[row] for row in predicted]
    assert value(found, "top1") == pytest.approx((predicted == truth).mean())
    assert value(found, "mean_per_class_recall") == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert (found.chosen["k"], found.chosen["select_top1"]) == (chosen["k"], chosen["select_top1"])
    assert found.extra["candidates"] == chosen["candidates"]
    assert "candidates" not in found.chosen
    expected = {
        "fit_on": "train", "fit_pairs": 60, "chosen_on": "val", "select_pairs": 30, "left_out_scored_pictures": 0,
        "scored_classes_without_fit_pair": 0, "scored_pairs_of_such_classes": 0,
    }  # fmt: skip
    assert {name: found.chosen[name] for name in expected} == expected


def test_a_linear_probe_learns_from_both_splits_once_it_has_chosen(zoo):
    found = answers(spec(LINEAR), zoo.subject())[""]
    head = LinearProbe(LINEAR)
    head.fit(zoo.of("train"), zoo.numbers("train"), np.eye(6, DIM), (zoo.of("val"), zoo.numbers("val")), refit=True)
    assert found.chosen["refit_on_both"]
    assert found.rows.predictions == [KINDS[row] for row in head.logits(zoo.of("test")).argmax(axis=1)]


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (KNN, ["", "zero_shot", "majority", "shuffled_labels"]),
        (LINEAR, ["", "zero_shot", "majority", "shuffled_labels", "nearest_neighbours"]),
        (specs.GDA(), ["", "zero_shot", "majority", "shuffled_labels", "nearest_neighbours"]),
        (
            specs.TipAdapter(alphas=(1.0, 100.0), steps=3),
            ["", "zero_shot", "majority", "shuffled_labels", "nearest_neighbours"],
        ),
    ],
    ids=lambda one: getattr(one, "head", ""),
)
def test_baselines_stand_beside_every_head_and_shuffled_labels_lose(zoo, head, names):
    found = answers(spec(head), zoo.subject())
    assert list(found) == names
    top1 = {name: value(one, "top1") for name, one in found.items()}
    texts = np.stack([zoo.texts[name] for name in KINDS])
    zero_shot = (zoo.of("test") @ texts.T).argmax(axis=1) == zoo.numbers("test")
    assert top1["zero_shot"] == pytest.approx(zero_shot.mean())
    assert top1["majority"] == pytest.approx(1 / 6)
    assert top1[""] > top1["zero_shot"] + 0.2
    assert top1["shuffled_labels"] < top1[""] - 0.3
    assert top1.get("nearest_neighbours", 1) > 0.6
    for one in found.values():
        assert json.loads(json.dumps([dict(one.chosen), dict(one.extra)])) == [one.chosen, one.extra]
        assert all(np.isfinite(e.value) for e in estimate(one.rows, one.metrics, Bootstrap(resamples=100)))


@pytest.mark.parametrize("head", [KNN, LINEAR], ids=lambda head: head.head)
def test_shuffled_labels_are_at_chance_over_shuffles(zoo, head):
    subject = zoo.subject()
    found = [value(answers(spec(head, seed=seed), subject)["shuffled_labels"], "top1") for seed in range(6)]
    assert len(set(found)) > 1
    assert abs(np.mean(found) - 1 / 6) < 0.13


def test_the_same_spec_gives_the_same_rows(zoo):
    first, second = (answers(spec(LINEAR, shots=(2,), draws=2), zoo.subject()) for _ in range(2))
    for name, one in first.items():
        assert one.rows.predictions == second[name].rows.predictions
        assert dict(one.chosen) == dict(second[name].chosen)


def test_a_constant_model_gets_no_more_than_the_majority(zoo):
    images = np.tile(zoo.images[:1], (len(zoo.images), 1))
    for head in (KNN, LINEAR, specs.GDA(), specs.TipAdapter(steps=2)):
        found = answers(spec(head), zoo.subject(images))[""]
        assert value(found, "top1") <= 1 / 6


# ----------------------------------------------------------------------------------------------------------- few-shot


def test_shots_are_the_first_of_each_class_by_a_hash_and_nested():
    uids = [f"u{i}" for i in range(40)]
    labels = np.array([i % 3 if i < 38 else 3 for i in range(40)])
    place = shot_places(uids, labels, 0, 0)
    for label in range(4):
        assert sorted(place[labels == label]) == list(range((labels == label).sum()))
    order = np.random.default_rng(1).permutation(40)
    assert (shot_places([uids[row] for row in order], labels[order], 0, 0) == place[order]).all()
    assert (shot_places(uids, labels, 0, 1) != place).any()
    assert (shot_places(uids, labels, 1, 0) != place).any()


def test_few_shot_is_the_mean_over_draws_of_the_head_on_those_shots(zoo):
    found = answers(spec(shots=(1, 4), draws=2), zoo.subject())[""]
    uids = [e.uid for e in zoo.entries if e.split == "train"]
    texts, truth = np.stack([zoo.texts[name] for name in KINDS]), zoo.numbers("test")
    for shots in (1, 4):
        hits = []
        for draw in (0, 1):
            kept = shot_places(uids, zoo.numbers("train"), 0, draw) < shots
            assert kept.sum() == shots * len(KINDS)
            head = NearestNeighbours(KNN)
            head.fit(zoo.of("train")[kept], zoo.numbers("train")[kept], texts, (zoo.of("val"), zoo.numbers("val")))
            hits.append(head.logits(zoo.of("test")).argmax(axis=1) == truth)
        assert found.rows.numbers[f"correct_{shots}"] == pytest.approx(np.mean(hits, axis=0))
        assert value(found, f"top1_at_{shots}") == pytest.approx(np.mean(hits))
        assert found.extra["by_draw"][f"top1_at_{shots}"] == pytest.approx([hit.mean() for hit in hits])
        assert len(found.chosen[f"k_at_{shots}"]) == 2
    assert [metric.name for metric in found.metrics] == ["top1_at_1", "top1_at_4"]
    assert [metric.chance(found.rows) for metric in found.metrics] == pytest.approx([1 / 6] * 2)
    assert value(found, "top1_at_4") > value(found, "top1_at_1")


def test_few_shot_baselines_answer_at_every_number_of_shots(zoo):
    found = answers(spec(specs.GDA(), shots=(1, 2), draws=2), zoo.subject())
    full = answers(spec(specs.GDA()), zoo.subject())
    for name in ("zero_shot", "majority"):
        at_k = [value(found[name], f"top1_at_{k}") for k in (1, 2)]
        assert at_k == pytest.approx([value(full[name], "top1")] * 2)
    # one picture a class has no spread: GDA is zero-shot there
    assert value(found[""], "top1_at_1") == pytest.approx(value(found["zero_shot"], "top1_at_1"))
    assert value(found["nearest_neighbours"], "top1_at_2") > value(found["zero_shot"], "top1_at_2")


def test_few_shot_never_learns_from_the_select_split(zoo):
    found = answers(spec(LINEAR, shots=(2,), draws=2), zoo.subject())[""]
    assert found.chosen["refit_on_both_at_2"] == [False, False]


def test_classes_with_fewer_pairs_use_all_and_are_counted(made, tmp_path):
    rare = changed(
        lambda e: {"meta": {}} if e.split == "train" and e.meta["kind"] == "ant" and e.uid > "train-013" else {}
    )
    found = answers(spec(shots=(2, 4, 99)), Zoo(made, tmp_path, rare).subject())[""]
    assert found.chosen["fit_pairs"] == 53
    assert [found.chosen[f"classes_with_fewer_than_{k}"] for k in (2, 4, 99)] == [0, 1, 6]


@pytest.mark.parametrize("head", [specs.GDA(), specs.TipAdapter(alphas=(9.0, 9.0), steps=1)], ids=lambda one: one.head)
def test_augmented_shots_are_also_seen_in_cropped_views_only(zoo, head):
    random = np.random.default_rng(3)
    crops = [zoo.made.unit(zoo.images + 0.1 * random.normal(size=zoo.images.shape)) for _ in range(2)]
    fog = np.tile(zoo.images[:1], (len(zoo.images), 1))
    views = zoo.views(cropped_a=crops[0], cropped_b=crops[1], fog_5=fog)
    found = answers(spec(head, shots=(1,), draws=1, augmented=True), zoo.subject(views=views))[""]
    assert found.chosen["views"] == 3
    kept = shot_places([f"train-{number:03}" for number in range(60)], zoo.numbers("train"), 0, 0) < 1
    seen = np.concatenate([images[:60][kept] for images in (zoo.images, *crops)])
    texts, labels = np.stack([zoo.texts[name] for name in KINDS]), np.tile(zoo.numbers("train")[kept], 3)
    same = head.build()
    same.fit(seen, labels, texts, (zoo.of("val"), zoo.numbers("val")), pictures_N=np.tile(np.arange(6), 3))
    logits = same.logits(zoo.of("test"))
    assert found.rows.predictions == [KINDS[row] for row in logits.argmax(axis=1)]
    assert found.rows.numbers["confidence"] == pytest.approx(softmax(logits).max(axis=1), rel=1e-4)


def test_views_are_what_makes_one_shot_gda_more_than_zero_shot(zoo):
    random = np.random.default_rng(3)
    crop = zoo.made.unit(zoo.images + 0.1 * random.normal(size=zoo.images.shape))
    asked = spec(specs.GDA(), shots=(1,), draws=1, augmented=True)
    found = answers(asked, zoo.subject(views=zoo.views(cropped_a=crop)))
    assert value(found[""], "top1_at_1") > value(found["zero_shot"], "top1_at_1") + 0.1


# ----------------------------------------------------------------------------------------------------------- refusals


def test_scored_splits_are_refused_to_fit_and_choose(zoo):
    with pytest.raises(EvaluationError, match="set/test: 90 of 90 pairs are scored"):
        answer(spec(fit="test"), zoo.subject())
    with pytest.raises(EvaluationError, match="set/val: 30 of 30 pairs are scored"):
        answer(spec(), zoo.subject(splits=("test", "val")))
    with pytest.raises(EvaluationError, match="select: 'train' is also what the head fits on"):
        answer(spec(select="train"), zoo.subject())


def test_scored_pictures_under_another_uid_are_left_out_and_counted(made, tmp_path):
    same = changed(lambda e: {"picture": b"same"} if e.uid in {"train-000", "train-006", "val-001", "test-000"} else {})
    found = answers(spec(), Zoo(made, tmp_path, same).subject(contents=True))[""]
    assert (found.chosen["left_out_scored_pictures"], found.chosen["fit_pairs"]) == (3, 58)
    assert found.chosen["select_pairs"] == 29


def test_a_class_that_no_fit_pair_has_is_counted(made, tmp_path):
    gone = changed(lambda e: {"meta": {}} if e.split == "train" and e.meta["kind"] == "fox" else {})
    found = answers(spec(), Zoo(made, tmp_path, gone).subject())[""]
    assert found.chosen["scored_classes_without_fit_pair"] == 1
    assert found.chosen["scored_pairs_of_such_classes"] == 15
    assert "fox" not in found.rows.predictions


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_lists_of_classes_and_splits_without_the_field_are_refused(made, tmp_path, split):
    several = changed(lambda e: {"meta": {"kind": ["ant", "bee"]}} if e.split == split else {})
    with pytest.raises(EvaluationError, match=f"'kind' has lists of classes in split '{split}'; a probe needs one"):
        answer(spec(), Zoo(made, tmp_path, several).subject())
    none = changed(lambda e: {"meta": {}} if e.split == split else {})
    with pytest.raises(EvaluationError, match=f"no pair of split '{split}' has a 'kind'"):
        answer(spec(), Zoo(made, tmp_path, none).subject())


def test_one_class_to_fit_on_is_refused(made, tmp_path):
    one = changed(lambda e: {"meta": {"kind": "ant"}} if e.split == "train" else {})
    for shots in ((), (2,)):
        with pytest.raises(EvaluationError, match="of 1 class; fit a head on at least two classes"):
            answer(spec(shots=shots), Zoo(made, tmp_path, one).subject())


def test_augmented_without_cropped_views_is_refused(zoo):
    with pytest.raises(EvaluationError, match=r"augmented: set has no view whose name starts with 'cropped'.*none"):
        answer(spec(augmented=True), zoo.subject())


def test_a_feature_that_is_not_a_number_raises(zoo):
    for row in (0, 65, 100):  # one of train, val and test
        images = zoo.images.copy()
        images[row] = np.nan
        with pytest.raises(EvaluationError, match=f"{zoo.entries[row].uid}.* not finite"):
            answer(spec(), zoo.subject(images))
