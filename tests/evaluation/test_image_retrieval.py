"""Retrieval among pictures: by hand, models of which the answer is known, ties, and scikit-learn where it agrees."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from data import storage
from data.errors import EvaluationError
from evaluation.bootstrap import estimate
from evaluation.specs import Bootstrap, ImageRetrieval, ReportSpec, Shown
from evaluation.tasks.image_retrieval import average_precision
from evaluation.words import sentence

SPEC = ImageRetrieval(field="kind", ks=(1, 2))


@pytest.fixture
def ask(made, tmp_path):
    """The answer for these features and labels; None is a picture without a label."""

    def asked(images, labels, spec=SPEC, groups=None):
        metas = [{} if label is None else {"kind": label} for label in labels]
        entries = [
            made.Entry(f"u{i:05d}", meta={**meta, "group": str(groups[i] if groups else i)})
            for i, meta in enumerate(metas)
        ]
        pairs = made.Made(tmp_path, entries)
        data = pairs.data(pairs.features(images, {}), cluster_field="group")
        (answer,) = spec.build()(spec, made.subject_of(data))
        return answer

    return asked


def values(answer, resamples=100):
    found = estimate(answer.rows, answer.metrics, Bootstrap(resamples=resamples))
    return {metric.name: one for metric, one in zip(answer.metrics, found, strict=True)}


def chances(answer):
    return {metric.name: metric.chance(answer.rows) for metric in answer.metrics}


def on_circle(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_by_hand(ask):
    # nearest first: u0 sees u1 (b), u2 (a), u4 (b), u3 (a); and so on by angle
    answer = ask(on_circle(0, 10, 30, 100, 60), ["a", "b", "a", "a", "b"])
    by_hand = [
        (1 / 2 + 2 / 4) / 2,  # u0: b a b a
        1 / 3,  # u1: a a b a
        (1 / 3 + 2 / 4) / 2,  # u2: b (20) b or a (30): u1, then u0 and u4 both at 30 degrees
        (1 / 2 + 2 / 4) / 2,  # u3: b a b a
        1 / 3,  # u4: a (30), a (40), b (50), a (60)
    ]
    assert answer.rows.numbers["average_precision"].tolist() == pytest.approx(by_hand)
    assert answer.rows.numbers["rank"].tolist() == [2, 3, 3, 2, 3]
    assert answer.rows.numbers["ties"].tolist() == [0, 0, 1, 0, 0]  # u0 and u4 are as near to u2
    found = values(answer)
    assert found["mAP"].value == pytest.approx(np.mean(by_hand))
    assert (found["R@1"].value, found["R@2"].value) == (0, 2 / 5)
    assert answer.rows.predictions[:2] == ["u00001", "u00000"]


def test_chance_is_the_mean_over_all_orders(ask):
    # 2 relevant of 4 for a, 1 of 4 for b: all 24 orders of the candidates are equally likely
    answer = ask(on_circle(0, 10, 30, 100, 60), ["a", "b", "a", "a", "b"], ImageRetrieval(field="kind", ks=(1, 3)))
    scores = [np.array(order, np.float64) for order in permutations(range(4))]
    mean = {p: np.mean([average_precision(order[:p], order[p:])[0] for order in scores]) for p in (1, 2)}
    assert answer.rows.numbers["chance"].tolist() == pytest.approx([mean[2], mean[1], mean[2], mean[2], mean[1]])
    expected = chances(answer)
    assert expected["mAP"] == pytest.approx((3 * mean[2] + 2 * mean[1]) / 5)
    assert expected["R@1"] == pytest.approx((3 * 2 / 4 + 2 * 1 / 4) / 5)
    assert expected["R@3"] == pytest.approx((3 * 1 + 2 * 3 / 4) / 5)


def test_labels_that_are_apart_are_all_found_and_their_reverse_last(ask):
    eye, labels = np.eye(4), [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    found = values(ask(eye[labels], labels))
    assert (found["mAP"].value, found["R@1"].value, found["mAP"].high) == (1, 1, 1)
    # two of a label are opposite, the other label lies between: the relevant one comes last of three
    worst = ask(on_circle(0, 180, 90, 270), ["a", "a", "b", "b"])
    assert worst.rows.numbers["rank"].tolist() == [3] * 4
    assert values(worst)["mAP"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize("dim", [1, 3, 96])
def test_a_constant_model_is_never_credited(ask, dim):
    labels = [i % 4 for i in range(40)]
    answer = ask(np.full((40, dim), dim**-0.5), labels)
    found = values(answer)
    assert found["R@1"].value == found["R@2"].value == 0
    assert answer.rows.ties == 40
    # 9 relevant behind all 30 others: the lowest average precision there is, below chance
    lowest = np.mean([i / (30 + i) for i in range(1, 10)])
    assert found["mAP"].value == pytest.approx(lowest)
    assert lowest < chances(answer)["mAP"]


def test_random_features_are_at_chance(ask, made):
    random = np.random.default_rng(3)
    labels = random.choice(8, 1200, p=np.array([8, 4, 2, 2, 1, 1, 1, 1]) / 20).tolist()
    answer = ask(made.unit(random.normal(size=(1200, 64))), labels)
    expected = chances(answer)
    # an interval over queries does not hold the luck of the gallery that they share: allow twice of it
    for name, one in values(answer, 400).items():
        assert abs(one.value - expected[name]) < one.high - one.low, name


def test_shuffled_labels_lose_what_was_found(ask, made):
    random = np.random.default_rng(4)
    labels = np.arange(400) % 10
    images = made.unit(random.normal(size=(10, 32))[labels] + random.normal(size=(400, 32)))
    right = ask(images, labels.tolist())
    shuffled = ask(images, random.permutation(labels).tolist())
    chance = chances(right)["mAP"]
    assert values(right)["mAP"].low > 4 * chance
    assert values(shuffled)["mAP"].value < 1.5 * chance


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns_where_no_scores_are_equal(seed):
    random = np.random.default_rng(seed)
    scores, right = random.normal(size=60), random.random(60) < 0.3
    mine, rank, ties = average_precision(scores[right], scores[~right])
    assert mine == pytest.approx(average_precision_score(right, scores), abs=1e-12)
    assert (rank, ties) == (1 + (scores[~right] > scores[right].max()).sum(), 0)
    # equal scores: theirs credits a part of the tie, ours none
    scores = np.round(scores)
    assert average_precision(scores[right], scores[~right])[0] < average_precision_score(right, scores)


def test_rounding_is_a_tie():
    one = np.float32(0.5)
    mine = average_precision(np.array([one]), np.array([one - np.float32(3e-6), 0.1], np.float32))
    assert mine == (0.5, 2, 1)
    assert average_precision(np.array([one]), np.array([one - np.float32(6e-6), 0.1], np.float32)) == (1.0, 1, 0)


def test_what_is_not_asked_has_a_reason_and_what_is_alone_is_still_in_the_way(ask):
    labels = ["a", "a", ["a", "b"], None, "lonely", ["a"], []]
    # u4 is nearest to u0; u2 would be, were it not left out
    answer = ask(on_circle(0, 20, 1, 2, 5, 30, 3), labels)
    assert answer.rows.ids == ["u00000", "u00001", "u00005"]  # a list of one label is that label
    assert answer.rows.dropped == {
        "u00002": "several_labels", "u00003": "no_label", "u00004": "no_other_of_its_label", "u00006": "no_label"
    }  # fmt: skip
    assert answer.rows.numbers["candidates"].tolist() == [3, 3, 3]
    assert answer.rows.predictions[0] == "u00004"
    assert answer.rows.numbers["rank"].tolist() == [2, 1, 1]


def test_numbers_are_labels_too_and_are_not_taken_for_positions(ask):
    answer = ask(on_circle(0, 10, 90), [7, 7, 900])
    assert answer.rows.labels == ["7", "7"]


def test_turning_all_features_and_the_size_of_a_block_change_nothing(ask, made, monkeypatch):
    random = np.random.default_rng(5)
    images, labels = made.unit(random.normal(size=(60, 16))), (np.arange(60) % 7).tolist()
    whole = ask(images, labels).rows
    turn = np.linalg.qr(random.normal(size=(16, 16)))[0]
    monkeypatch.setattr("evaluation.tasks.image_retrieval._BLOCK_SCORES", 1)
    for other in (ask(images, labels).rows, ask(images @ turn, labels).rows):
        assert (other.ids, other.predictions) == (whole.ids, whole.predictions)
        for name, column in whole.numbers.items():
            np.testing.assert_array_equal(other.numbers[name], column)


def test_the_order_of_pictures_changes_nothing(ask, made):
    random = np.random.default_rng(6)
    images, labels = made.unit(random.normal(size=(40, 8))), (np.arange(40) % 5).tolist()
    order = random.permutation(40)
    one = ask(images, labels).rows.numbers["average_precision"]
    other = ask(images[order], [labels[i] for i in order]).rows.numbers["average_precision"]
    np.testing.assert_allclose(other, one[order])


def test_intervals_resample_clusters_of_queries(ask, made):
    random = np.random.default_rng(7)
    labels = np.arange(60) % 5
    images = made.unit(random.normal(size=(5, 16))[labels] + 1.5 * random.normal(size=(60, 16)))
    # every picture four times: four times the queries know no more
    images, labels, groups = (np.repeat(one, 4, axis=0) for one in (images, labels, np.arange(60)))
    alone = values(ask(images, labels.tolist()), 400)["mAP"]
    together = values(ask(images, labels.tolist(), groups=groups.tolist()), 400)["mAP"]
    assert together.value == pytest.approx(alone.value)
    assert 1.6 < (together.high - together.low) / (alone.high - alone.low) < 2.4


@pytest.mark.parametrize(
    ("labels", "words"),
    [(["a", "b", "c"], "no two pictures of split 'test' have one value of 'kind'"), ([None, None, None], "'kind'")],
)
def test_nothing_to_find_is_one_line(ask, labels, words):
    with pytest.raises(EvaluationError, match=words) as caught:
        ask(np.eye(3), labels)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_number_is_named(ask):
    images = np.eye(4)
    images[2, 1] = np.nan
    with pytest.raises(EvaluationError, match=r"^uid 'u00002': its feature is not finite"):
        ask(images, list("aabb"))


def test_k_is_at_least_one():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ImageRetrieval(field="kind", ks=(0,))


def test_a_headline_says_what_came_first():
    row = {"metric": "R@5", "direction": "", "kind": "image_retrieval", "task": "looks"}
    assert sentence(row) == ("another picture of its label comes among the first 5 for", "of the pictures")


def test_a_report_compares_two_models_by_it(world):
    spec, parts = ImageRetrieval(field="group", ks=(1, 5)), {"sets.emoji.pairs": world.shard_set}
    for label, skill in (("weak", 0.0), ("strong", 3.0)):
        features = world.embed(f"embed-{label}", world.checkpoint(label, world.select()), skill)
        parts[f"evaluations.{label}"] = world.evaluate(
            f"evaluate-{label}", features, tasks={"looks": ImageRetrieval(field="base", ks=(1, 5)), "kinds": spec},
            splits=("unseen_concepts",),
        )  # fmt: skip
    entries = storage.read_json(parts["evaluations.strong"].at("report.json"))["rows"]
    assert [row["metric"] for row in entries if row["task"] == "looks"] == ["mAP", "R@1", "R@5"]
    assert all(row["low"] <= row["value"] <= row["high"] and 0 < row["chance"] < 1 for row in entries)
    report = ReportSpec(
        title="Looks", evaluations={"weak": "w", "strong": "s"}, compare={"strong": "weak"},
        sets={"emoji": Shown(pairs="p")}, headline=("emoji", "unseen_concepts", "looks", "mAP"),
    )  # fmt: skip
    made = world.run("report", report, **parts)
    facts = storage.read_json(made.at("report.json"))
    (change,) = [one for one in facts["differences"] if (one["task"], one["metric"]) == ("looks", "mAP")]
    assert (change["family"], change["verdict"]) == ("headline", "helped")
    assert [axis["name"] for axis in facts["axes"]] == ["image retrieval"]
    assert "mAP" in storage.read_text(made.at("report.html"))
