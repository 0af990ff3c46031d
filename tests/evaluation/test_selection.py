"""Right captions against wrong ones, Winoground's three scores: hand counts, chance by enumeration, ties, controls."""

from itertools import permutations

import numpy as np
import pytest

from data.errors import EvaluationError
from evaluation.bootstrap import estimate
from evaluation.metrics.selection import GroupMean
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Rows
from evaluation.specs import Bootstrap, CaptionSelection, PairedSelection
from evaluation.tasks import caption_selection, paired_selection

SPEC = CaptionSelection(wrong=("negative",))


def found(answer):
    estimates = estimate(answer.rows, answer.metrics, Bootstrap(resamples=100))
    return {metric.name: one for metric, one in zip(answer.metrics, estimates, strict=True)}


def chances(answer):
    return {metric.name: metric.chance(answer.rows) for metric in answer.metrics}


def asked(made, tmp_path, pictures, **entries):
    """`entries`: uid -> (captions as (source, text, vector), metadata). Pictures are vectors in the same order."""
    rows = [
        made.Entry(uid, meta=meta, captions=[(source, text) for source, text, _ in captions])
        for uid, (captions, meta) in entries.items()
    ]
    texts = {text: vector for captions, _ in entries.values() for _, text, vector in captions}
    world = made.Made(tmp_path, rows)
    return made.subject_of(world.data(world.features(pictures, texts)))


# --------------------------------------------------------------------------------------------------- caption selection


def test_only_more_than_rounding_is_right(made, tmp_path):
    def captions(name, right, *wrong):
        others = [("negative", f"{name} wrong {n}", [score, 0]) for n, score in enumerate(wrong)]
        return [("alt", f"{name} right", [right, 0]), *others], {}

    subject = asked(
        made, tmp_path, np.tile([1, 0], (5, 1)),
        a=captions("a", 0.5, 0.4), b=captions("b", 0.4, 0.5), c=captions("c", 0.5, 0.5),
        d=captions("d", 0.5, 0.5 - TIE_TOLERANCE / 2, 0.1), e=captions("e", 0.5, 0.4, 0.3, 0.2, 0.1),
    )  # fmt: skip
    answer = caption_selection.answer(SPEC, subject)[0]
    numbers = answer.rows.numbers
    assert numbers["correct"].tolist() == [1, 0, 0, 0, 1]
    assert numbers["ties"].tolist() == [0, 0, 1, 1, 0]
    assert numbers["rank"].tolist() == [1, 2, 2, 2, 1]
    assert numbers["margin"] == pytest.approx([0.1, -0.1, 0, TIE_TOLERANCE / 2, 0.1], abs=1e-6)
    assert answer.rows.predictions[:2] == ["a right", "b wrong 0"]
    assert chances(answer)["caption_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1 / 3 + 1 / 5) / 5)


@pytest.mark.parametrize(("wrong", "chance"), [(1, 0.5), (4, 0.2)])
def test_random_scores_are_at_chance_and_equal_scores_get_nothing(made, tmp_path, wrong, chance):
    """SugarCrepe's 50 %, ARO Order's 20 %; first-is-best would give a constant model 100 %."""
    random, size = np.random.default_rng(7), 2000
    spec = CaptionSelection(wrong=tuple(f"negative{n}" for n in range(wrong)))

    def entries(vector):
        return {
            f"p{row}": ([
                ("alt", f"{row} right", vector()), *((f"negative{n}", f"{row} {n}", vector()) for n in range(wrong))
            ], {}) for row in range(size)
        }  # fmt: skip

    subject = asked(made, tmp_path, random.normal(size=(size, 8)), **entries(lambda: random.normal(size=8)))
    answer, control = caption_selection.answer(spec, subject)
    for one in (answer, control):
        # four standard errors of 2,000 draws
        assert found(one)["caption_accuracy"].value == pytest.approx(chance, abs=4 * (0.25 / size) ** 0.5)
        assert chances(one)["caption_accuracy"] == pytest.approx(chance)
    constant = asked(made, tmp_path, np.ones((size, 8)), **entries(lambda: np.ones(8)))
    answer = caption_selection.answer(spec, constant)[0]
    assert (found(answer)["caption_accuracy"].value, answer.rows.ties) == (0, size)


def test_words_alone_are_shown_by_another_picture(made, tmp_path):
    """A text tower that likes right captions, whatever the picture: as good before another picture."""
    likes, sees = {}, {}
    for row in range(4):
        own = np.eye(4)[row]
        likes[f"p{row}"] = ([("alt", f"{row} right", np.ones(4)), ("negative", f"{row} wrong", np.zeros(4))], {})
        sees[f"p{row}"] = ([("alt", f"{row} right", own), ("negative", f"{row} wrong", own[::-1])], {})
    for entries, elsewhere in ((likes, 1), (sees, 0)):
        answer, control = caption_selection.answer(SPEC, asked(made, tmp_path, np.eye(4), **entries))
        assert (answer.baseline, control.baseline) == ("", "other_picture")
        assert found(answer)["caption_accuracy"].value == 1
        assert found(control)["caption_accuracy"].value <= (1 if elsewhere else 0.5)
        assert (found(control)["caption_accuracy"].value == 1) == bool(elsewhere)


def test_pairs_that_cannot_be_asked_are_dropped_with_a_reason(made, tmp_path):
    x, y = [1, 0], [0, 1]
    subject = asked(
        made, tmp_path, np.tile(x, (5, 1)),
        whole=([("alt", "a", x), ("negative", "b", y)], {}),
        no_right=([("negative", "b", y)], {}),
        two_right=([("alt", "a", x), ("alt", "c", x), ("negative", "b", y)], {}),
        no_wrong=([("alt", "a", x)], {}),
        equal=([("alt", "a", x), ("negative", "a", x)], {}),
    )  # fmt: skip
    (answer,) = caption_selection.answer(SPEC, subject)  # one case: there is no other picture
    assert dict(answer.rows.dropped) == {
        "no_right": "no_right_caption", "two_right": "several_right_captions", "no_wrong": "no_wrong_caption",
        "equal": "all_equal",
    }  # fmt: skip
    assert answer.rows.ids == ["whole"]
    with pytest.raises(EvaluationError, match=r"no caption has source 'negativ'; did you mean 'negative'"):
        caption_selection.answer(CaptionSelection(wrong=("negativ",)), subject)
    with pytest.raises(EvaluationError, match=r"no pair of split 'test' can be asked \(no_wrong_caption 3, several_ri"):
        caption_selection.answer(CaptionSelection(right="negative", wrong=("alt",)), asked(
            made, tmp_path, np.tile(x, (4, 1)),
            **{f"p{n}": ([("negative", str(n), x)], {}) for n in range(3)},
            two=([("negative", "a", x), ("negative", "b", x), ("alt", "c", y)], {}),
        ))  # fmt: skip


def test_macro_means_over_relations_with_enough_cases(made, tmp_path):
    """on: 1 of 2, under: 1 of 1, rare ones are counted and left out; a plain mean would say 3 of 5."""
    right, wrong = [1, 0], [0, 1]
    hits = {"a": ("on", 1), "b": ("on", 0), "c": ("under", 1), "d": ("under", 1), "e": ("by", 0)}
    entries = {
        uid: ([("alt", f"{uid}+", right if hit else wrong), ("negative", f"{uid}-", wrong if hit else right)],
              {"relation": relation})
        for uid, (relation, hit) in hits.items()
    }  # fmt: skip
    subject = asked(made, tmp_path, np.tile(right, (5, 1)), **entries)
    spec = CaptionSelection(wrong=("negative",), macro_field="relation", min_cases=2)
    answer = caption_selection.answer(spec, subject)[0]
    value = {name: one.value for name, one in found(answer).items()}
    assert value == pytest.approx({"caption_accuracy": 3 / 5, "macro_relation_caption_accuracy": (1 / 2 + 1) / 2})
    assert chances(answer)["macro_relation_caption_accuracy"] == pytest.approx(0.5)
    assert answer.extra["groups"] == {
        "by": {"n": 1, "correct": 0, "scored": False}, "on": {"n": 2, "correct": 0.5, "scored": True},
        "under": {"n": 2, "correct": 1, "scored": True},
    }  # fmt: skip


def test_blocks_do_not_change_what_is_found(made, tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    entries = {
        f"p{n}": ([("alt", f"{n} right", random.normal(size=4)),
                   *(("negative", f"{n} {k}", random.normal(size=4)) for k in range(1 + n % 3))], {})
        for n in range(11)
    }  # fmt: skip
    subject = asked(made, tmp_path, random.normal(size=(11, 4)), **entries)
    whole = caption_selection.answer(SPEC, subject)
    monkeypatch.setattr(caption_selection, "_BLOCK_PAIRS", 3)
    for one, other in zip(whole, caption_selection.answer(SPEC, subject), strict=True):
        assert one.rows.predictions == other.rows.predictions
        assert all(np.array_equal(one.rows.numbers[name], other.rows.numbers[name]) for name in one.rows.numbers)


# ---------------------------------------------------------------------------------------------------- paired selection


def items(made, tmp_path, scores, meta=lambda item: {}):
    """Items of these scores [picture][caption]: pictures are axes, a caption's vector is its score by picture."""
    entries, pictures = {}, []
    for item, s in enumerate(scores):
        for side in (0, 1):
            vector = [s[0][side], s[1][side]]
            own = {"item": f"{item:04d}", "side": side, **meta(item)}
            entries[f"{item:04d}-{side}"] = ([("alt", f"{item} {side}", vector)], own)
            pictures.append(np.eye(2)[side])
    return asked(made, tmp_path, np.array(pictures), **entries)


def test_all_orders_of_four_scores_win_6_6_and_4_of_24(made, tmp_path):
    orders = [((a, b), (c, d)) for a, b, c, d in permutations((0.1, 0.2, 0.3, 0.4))]
    (answer,) = paired_selection.answer(PairedSelection(), items(made, tmp_path, orders))
    text = [s[0][0] > s[0][1] and s[1][1] > s[1][0] for s in orders]  # each picture prefers its own caption
    image = [s[0][0] > s[1][0] and s[1][1] > s[0][1] for s in orders]  # each caption prefers its own picture
    assert answer.rows.numbers["text_score"].tolist() == text
    assert answer.rows.numbers["image_score"].tolist() == image
    assert answer.rows.numbers["group_score"].tolist() == [a and b for a, b in zip(text, image, strict=True)]
    value = {name: one.value for name, one in found(answer).items()}
    assert value == pytest.approx({"text_score": 6 / 24, "image_score": 6 / 24, "group_score": 4 / 24})
    assert value == pytest.approx(chances(answer))
    assert answer.rows.ties == 0


def test_random_scores_are_at_chance(made, tmp_path):
    size = 3000
    scores = np.random.default_rng(11).normal(size=(size, 2, 2))
    (answer,) = paired_selection.answer(PairedSelection(), items(made, tmp_path, scores))
    for name, chance in (("text_score", 1 / 4), ("image_score", 1 / 4), ("group_score", 1 / 6)):
        assert found(answer)[name].value == pytest.approx(chance, abs=4 * (chance * (1 - chance) / size) ** 0.5)


def test_equal_scores_win_nothing_and_are_counted(made, tmp_path):
    half = TIE_TOLERANCE / 2
    scores = [((1, 1), (1, 1)), ((0.5, 0.5 - half), (0.1, 0.9)), ((0.9, 0.1), (0.1, 0.9))]
    (answer,) = paired_selection.answer(PairedSelection(), items(made, tmp_path, scores))
    assert answer.rows.numbers["ties"].tolist() == [4, 1, 0]
    assert answer.rows.numbers["text_score"].tolist() == [0, 0, 1]
    assert answer.rows.numbers["image_score"].tolist() == [0, 1, 1]
    assert answer.rows.predictions == ["none", "image_score", "text_score+image_score+group_score"]


def test_patterns_are_averaged_and_listed(made, tmp_path):
    good, bad = ((0.9, 0.1), (0.1, 0.9)), ((0.1, 0.9), (0.9, 0.1))
    scores, patterns = [good, bad, bad, good], ["left", "left", "left", "count"]
    subject = items(made, tmp_path, scores, lambda item: {"pattern": patterns[item]})
    (answer,) = paired_selection.answer(PairedSelection(macro_field="pattern"), subject)
    value = {name: one.value for name, one in found(answer).items()}
    assert (value["image_score"], value["macro_pattern_image_score"]) == pytest.approx((2 / 4, (1 / 3 + 1) / 2))
    assert answer.extra["values"]["left"] == pytest.approx(
        {"n": 3, "text_score": 1 / 3, "image_score": 1 / 3, "group_score": 1 / 3}
    )


def test_items_that_are_not_whole_are_dropped_with_a_reason(made, tmp_path):
    x, y = [1, 0], [0, 1]
    subject = asked(
        made, tmp_path, np.tile(x, (11, 1)),
        a0=([("alt", "a", x)], {"item": "whole"}), a1=([("alt", "b", y)], {"item": "whole"}),
        b0=([("alt", "a", x)], {"item": "half"}),
        c0=([("alt", "a", x)], {"item": "three"}), c1=([("alt", "b", x)], {"item": "three"}),
        c2=([("alt", "c", x)], {"item": "three"}),
        d0=([("alt", "a", x)], {"item": "silent"}), d1=([], {"item": "silent"}),
        e0=([("alt", "a", x)], {"item": "same"}), e1=([("alt", "a", x)], {"item": "same"}),
        f0=([("alt", "a", x)], {}),
    )  # fmt: skip
    (answer,) = paired_selection.answer(PairedSelection(), subject)
    assert answer.rows.ids == ["whole"]
    assert dict(answer.rows.dropped) == {
        "half": "not_two_pictures", "three": "not_two_pictures", "silent": "no_caption", "same": "equal_captions",
        "f0": "no_item",
    }  # fmt: skip
    alone = asked(made, tmp_path, np.tile(x, (1, 1)), a=([("alt", "a", x)], {"item": "half"}))
    with pytest.raises(EvaluationError, match=r"has two pictures with a caption each \(not_two_pictures 1\)"):
        paired_selection.answer(PairedSelection(), alone)


# ------------------------------------------------------------------------------------------------------------- metrics


def test_group_means_are_those_of_repeated_samples():
    random = np.random.default_rng(5)
    clusters, groups = random.integers(0, 6, 50), random.integers(-1, 4, 50)
    hits = random.random(50)
    rows = Rows(
        [str(n) for n in range(50)], clusters.astype(str).tolist(), [""] * 50, [""] * 50,
        {"hit": hits, "group": groups},
    )  # fmt: skip
    for weights_G in random.integers(0, 3, (5, 6)).astype(float):
        repeated = np.concatenate([np.flatnonzero(clusters == c).repeat(int(w)) for c, w in enumerate(weights_G)])
        means = [hits[repeated][groups[repeated] == k].mean() for k in range(4) if (groups[repeated] == k).any()]
        for over, expected in (("mean", np.mean(means)), ("worst", min(means))):
            got = GroupMean("m", "hit", "group", over).statistic(rows)(weights_G[None])[0]
            assert got == pytest.approx(expected)
    nobody = Rows(["a"], ["a"], [""], [""], {"hit": np.ones(1), "group": np.full(1, -1)})
    assert np.isnan(GroupMean("m", "hit", "group").statistic(nobody)(np.ones((1, 1))))
