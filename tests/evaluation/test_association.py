"""Concept association bias on closed-form models (its closed-form toy), and WinoGAViL's Jaccard by enumeration."""

from itertools import combinations, permutations

import numpy as np
import pytest

from data.errors import EvaluationError
from evaluation.bootstrap import estimate
from evaluation.metrics.selection import chance_jaccard
from evaluation.specs import Association, Bootstrap, ConceptAssociation
from evaluation.tasks import association, concept_association

COLORS = {"lemon": "yellow", "tomato": "red", "broccoli": "green"}
SPEC = ConceptAssociation()


def found(answer):
    estimates = estimate(answer.rows, answer.metrics, Bootstrap(resamples=100))
    return {metric.name: one for metric, one in zip(answer.metrics, estimates, strict=True)}


# ------------------------------------------------------------------------------------------------- concept association


def pictures(made):
    """One picture of each object, and one of every two in both orders."""
    for name, color in COLORS.items():
        yield made.Entry(name, meta={"layout": "single", "object": name, "color": color})
    for one, other in permutations(COLORS, 2):
        meta = {"object": one, "color": COLORS[one], "other_object": other, "other_color": COLORS[other]}
        yield made.Entry(f"{one}-{other}", meta={"layout": "double", **meta})


def probed(made, tmp_path, image_of, text_of, entries=None):
    """`image_of`: objects of a picture -> vector; `text_of`: object and colour of a prompt -> vector."""
    entries = list(pictures(made)) if entries is None else entries
    objects = [[e.meta[field] for field in ("object", "other_object") if field in e.meta] for e in entries]
    texts = {SPEC.queries([o], [c])[0]: text_of(o, c) for o in COLORS for c in COLORS.values()}
    world = made.Made(tmp_path, entries)
    features = world.features(made.unit([image_of(names) for names in objects]), _unit_values(made, texts))
    (answer,) = concept_association.answer(SPEC, made.subject_of(world.data(features)))
    return answer


def _unit_values(made, texts):
    return dict(zip(texts, made.unit(list(texts.values())), strict=True))


def bag_of_concepts(rho):
    """Orthonormal axes of objects and colours; an object is its axis and `rho` of its colour's."""
    names = [*COLORS, *COLORS.values()]
    axis = dict(zip(names, np.eye(len(names)), strict=True))
    thing = {name: axis[name] + rho * axis[color] for name, color in COLORS.items()}
    image_of = lambda names: sum(thing[name] + axis[COLORS[name]] for name in names)  # noqa: E731
    return image_of, lambda name, color: thing[name] + axis[color]


@pytest.mark.parametrize("rho", [0.2, 0.5, 1.0])
def test_a_bag_of_concepts_names_the_other_colour(made, tmp_path, rho):
    """.7071 for the own colour, .7733, .8498, .9129 for the other: equal dot products, a shorter prompt."""
    image_of, text_of = bag_of_concepts(rho)
    answer = probed(made, tmp_path, image_of, text_of)
    value = {name: one.value for name, one in found(answer).items()}
    assert value == {
        "single_top1": 1, "double_top1": 0, "double_left_top1": 0, "double_right_top1": 0,
        "other_color_single": 0, "other_color_double": 1, "cab": 1,
    }  # fmt: skip
    assert answer.rows.ties == 0
    both, own, other = image_of(["lemon", "tomato"]), text_of("lemon", "yellow"), text_of("lemon", "red")
    cosines = [both @ text / np.linalg.norm(both) / np.linalg.norm(text) for text in (own, other)]
    assert cosines == pytest.approx([0.7071, {0.2: 0.7733, 0.5: 0.8498, 1.0: 0.9129}[rho]], abs=1e-4)


def test_without_association_the_two_colours_tie_and_neither_is_credited(made, tmp_path):
    answer = probed(made, tmp_path, *bag_of_concepts(0.0))
    value = {name: one.value for name, one in found(answer).items()}
    assert (value["single_top1"], value["double_top1"], value["other_color_double"], value["cab"]) == (1, 0, 0, 0)
    doubles = answer.rows.numbers["double"] == 1
    assert answer.rows.numbers["ties"][doubles].tolist() == [1] * 12
    assert {name for name, double in zip(answer.rows.predictions, doubles, strict=True) if double} == {"tie"}


def test_slots_bind_colours_to_objects(made, tmp_path):
    slots = [(name, color) for name in COLORS for color in COLORS.values()]
    axis = dict(zip(slots, np.eye(len(slots)), strict=True))
    answer = probed(
        made, tmp_path, lambda names: sum(axis[name, COLORS[name]] for name in names), lambda n, c: axis[n, c]
    )
    value = {name: one.value for name, one in found(answer).items()}
    assert (value["single_top1"], value["double_top1"], value["cab"]) == (1, 1, 0)


def test_random_encoders_have_no_bias_on_average_and_chance_is_stated(made, tmp_path):
    cabs, singles = [], []
    for seed in range(12):
        random = np.random.default_rng(seed)
        answer = probed(made, tmp_path, lambda _, r=random: r.normal(size=8), lambda *_, r=random: r.normal(size=8))
        estimates = found(answer)
        cabs.append(estimates["cab"].value)
        singles.append(estimates["single_top1"].value)
        assert estimates["cab"].low <= estimates["cab"].value <= estimates["cab"].high
    # 12 encoders of 12 questions: standard error about 0.06
    assert abs(np.mean(cabs)) < 0.2
    assert np.mean(singles) == pytest.approx(1 / 3, abs=0.25)
    chance = {metric.name: metric.chance(answer.rows) for metric in answer.metrics}
    assert (chance["cab"], chance["double_top1"]) == (0, pytest.approx(1 / 3))


def test_cab_is_the_difference_of_its_two_parts_question_by_question(made, tmp_path):
    random = np.random.default_rng(4)
    answer = probed(made, tmp_path, lambda _: random.normal(size=4), lambda *_: random.normal(size=4))
    value = {name: one.value for name, one in found(answer).items()}
    assert value["cab"] == pytest.approx(value["other_color_double"] - value["other_color_single"])
    lemon = answer.rows.predictions[answer.rows.ids.index("lemon/alone")]
    asked = [n for n, name in enumerate(answer.rows.ids) if name.startswith("lemon-") and name.endswith("/left")]
    expected = [float(COLORS[answer.rows.ids[n].split("/")[0].split("-")[1]] == lemon) for n in asked]
    assert answer.rows.numbers["other_alone"][asked].tolist() == expected


def test_pictures_that_cannot_be_asked_are_dropped_with_a_reason(made, tmp_path):
    entries = [
        *pictures(made),
        made.Entry("same", meta={"layout": "double", "object": "lemon", "color": "yellow", "other_object": "sun",
                                 "other_color": "yellow"}),
        made.Entry("triple", meta={"layout": "triple", "object": "lemon", "color": "yellow"}),
        made.Entry("bare", meta={"layout": "single", "object": "lemon"}),
        made.Entry("new", meta={"layout": "double", "object": "lemon", "color": "yellow", "other_object": "plum",
                                "other_color": "red"}),
    ]  # fmt: skip
    answer = probed(made, tmp_path, lambda _: np.ones(3), lambda *_: np.ones(3), entries)
    assert dict(answer.rows.dropped) == {
        "same": "same_color", "triple": "layout_is_triple", "bare": "no_object_or_color",
        "new/right": "no_picture_of_it_alone",
    }  # fmt: skip
    assert "new/left" in answer.rows.ids
    only = [entry for entry in pictures(made) if entry.meta["layout"] == "single"]
    with pytest.raises(EvaluationError, match="other_object"):
        probed(made, tmp_path, lambda _: np.ones(3), lambda *_: np.ones(3), only)


def test_the_prompts_to_embed_are_every_colour_of_every_object():
    found = ConceptAssociation(template="{object}: {color}").queries(["a", "{color}"], ["x", "y"])
    assert found == ("a: x", "a: y", "x: x", "y: y")  # a name with a brace is no format string
    assert Association().queries(["Eagle", "bald", "Ünder"]) == ("An eagle", "A bald", "A ünder")


# ----------------------------------------------------------------------------------------------------------- WinoGAViL


def cues(made, tmp_path, items, split_of=lambda uid: "test", extra=None):
    """`items`: name -> (cue, {uid: (is answer, score)}); every picture is a candidate of one or more items."""
    members: dict[str, dict[str, list]] = {}
    for item, (cue, pictures) in items.items():
        for uid, (is_answer, _) in pictures.items():
            own = members.setdefault(uid, {"item": [], "cue": [], "is_answer": [], **(extra or {})})
            for field, value in (("item", item), ("cue", cue), ("is_answer", is_answer)):
                own[field].append(value)
    axes = dict(zip(items, np.eye(len(items)), strict=True))
    vectors = [
        sum(axes[item] * pictures[uid][1] for item, (_, pictures) in items.items() if uid in pictures)
        for uid in members
    ]  # fmt: skip
    texts = {Association().queries([cue])[0]: axes[item] for item, (cue, _) in items.items()}
    world = made.Made(tmp_path, [made.Entry(uid, split_of(uid), meta) for uid, meta in members.items()])
    return made.subject_of(world.data(world.features(vectors, texts)))


def test_jaccard_by_hand_and_pictures_of_several_items(made, tmp_path):
    items = {
        "1": ("bald", {"eagle": (True, 0.9), "ash": (True, 0.8), "teepee": (False, 0.1), "metal": (False, 0.2)}),
        "2": ("West", {"eagle": (True, 0.9), "teepee": (True, 0.1), "ash": (False, 0.5), "metal": (False, 0.4)}),
        "3": ("own", {"eagle": (True, 0.1), "ash": (False, 0.5), "teepee": (False, 0.4)}),
    }
    (answer,) = association.answer(Association(), cues(made, tmp_path, items))
    assert answer.rows.ids == ["1", "2", "3"]
    assert answer.rows.numbers["jaccard"] == pytest.approx([1, 1 / 3, 0])
    assert answer.rows.predictions == ["ash | eagle", "ash | eagle", "ash"]
    assert answer.rows.labels == ["ash | eagle", "eagle | teepee", "eagle"]
    (metric,) = answer.metrics
    assert metric.chance(answer.rows) == pytest.approx((2 * chance_jaccard(4, 2) + chance_jaccard(3, 1)) / 3)


def test_chance_is_the_mean_over_all_picks():
    for candidates, answers in ((5, 2), (6, 3), (10, 2), (12, 5), (4, 1)):
        right = set(range(answers))
        picks = [set(pick) for pick in combinations(range(candidates), answers)]
        expected = np.mean([len(pick & right) / len(pick | right) for pick in picks])
        assert chance_jaccard(candidates, answers) == pytest.approx(expected)


def test_random_scores_are_at_chance_and_equal_scores_get_nothing(made, tmp_path):
    random, size = np.random.default_rng(2), 150

    def items(score):
        return {f"{n:03d}": (f"cue {n}", {f"{n}-{k}": (k < 2, score()) for k in range(5 + n % 2)}) for n in range(size)}

    (answer,) = association.answer(Association(), cues(made, tmp_path, items(random.normal)))
    estimates = found(answer)["jaccard"]
    assert estimates.value == pytest.approx(answer.metrics[0].chance(answer.rows), abs=0.1)
    (answer,) = association.answer(Association(), cues(made, tmp_path, items(lambda: 1.0)))
    assert found(answer)["jaccard"].value == 0
    assert answer.rows.ties == size


def test_a_tie_at_the_border_goes_to_the_wrong_picture(made, tmp_path):
    items = {"1": ("bald", {"a": (True, 0.9), "b": (True, 0.5), "c": (False, 0.5), "d": (False, 0.1)})}
    (answer,) = association.answer(Association(), cues(made, tmp_path, items))
    assert answer.rows.numbers["jaccard"] == pytest.approx([1 / 3])
    assert answer.rows.numbers["ties"].tolist() == [1]
    assert answer.rows.predictions == ["a | c"]


def test_few_and_many_candidates_are_shown_apart(made, tmp_path):
    items = {
        name: (f"cue {name}", {f"{name}{k}": (k == 0, float(k == best)) for k in range(count)})
        for name, count, best in (("five", 5, 0), ("six", 6, 1), ("ten", 10, 0), ("twelve", 12, 0))
    }
    (answer,) = association.answer(Association(), cues(made, tmp_path, items))
    value = {name: one.value for name, one in found(answer).items()}
    assert value == {"jaccard": 0.75, "jaccard_5-6": 0.5, "jaccard_10-12": 1}


def test_items_that_are_not_whole_are_dropped_with_a_reason(made, tmp_path):
    items = {
        "whole": ("a", {"p": (True, 1), "q": (False, 0)}), "none": ("b", {"p": (False, 1), "q": (False, 0)}),
        "all": ("c", {"p": (True, 1), "q": (True, 0)}), "torn": ("d", {"p": (True, 1), "away": (False, 0)}),
        "elsewhere": ("e", {"away": (True, 1), "far": (False, 0)}),
    }  # fmt: skip
    where = lambda uid: "train" if uid in ("away", "far") else "test"  # noqa: E731
    (answer,) = association.answer(Association(), cues(made, tmp_path, items, where))
    assert answer.rows.ids == ["whole"]
    assert dict(answer.rows.dropped) == {"none": "no_answer", "all": "all_are_answers", "torn": "missing_candidate"}
    # a picture that was never read leaves an item smaller than its file says
    short = {"1": ("a", {"p": (True, 1), "q": (False, 0)})}
    with pytest.raises(EvaluationError, match=r"no item of split 'test' is whole \(missing_candidate 1\)"):
        association.answer(Association(), cues(made, tmp_path, short, extra={"candidates": [5]}))


def test_columns_of_other_lengths_are_one_line(made, tmp_path):
    world = made.Made(tmp_path, [made.Entry("p", meta={"item": ["1", "2"], "cue": ["a"], "is_answer": [True, False]})])
    subject = made.subject_of(world.data(world.features([[1.0]], {"A a": [1.0]})))
    with pytest.raises(EvaluationError, match=r"uid 'p': item, cue and is_answer have 2, 1, 2 values; give one of ea"):
        association.answer(Association(), subject)
