"""Who may learn from what: scored pairs by id and by picture, behind heads, selections and other people's pools."""

import numpy as np
import pytest

from data.errors import EvaluationError

SAME = b"the same picture"


def entries(made, prefix="", copies=()):
    """Four pairs each of train, val and test; those in `copies` show the same picture."""
    return [
        made.Entry(f"{prefix}{split}{i}", split, {"kind": "a"}, picture=SAME if f"{split}{i}" in copies else b"")
        for split in ("train", "val", "test") for i in range(4)
    ]  # fmt: skip


def features(pairs, **changes):
    return pairs.features(np.eye(len(pairs.entries), 16), {"x": np.eye(16)[0]}, **changes)


@pytest.fixture
def pairs(made, tmp_path):
    return made.Made(tmp_path, entries(made, copies=("train1", "test2")))


def uids(pairs, split):
    return [entry.uid for entry in pairs.entries if entry.split == split]


# ------------------------------------------------------------------------------------------------------------- heads


def test_a_head_may_not_learn_from_what_is_scored(made, pairs):
    subject = made.subject_of(pairs.data(features(pairs)))
    assert subject.fitting("train").uids == uids(pairs, "train")
    assert subject.fitting("val").uids == uids(pairs, "val")
    with pytest.raises(EvaluationError, match=r"^set/test: 4 of 4 pairs are scored .* e\.g\. 'test0'") as caught:
        subject.fitting("test")
    assert "\n" not in str(caught.value)


def test_what_another_task_scores_is_scored(made, pairs):
    subject = made.subject_of(pairs.data(features(pairs), splits=("test", "val")))
    with pytest.raises(EvaluationError, match=r"^set/val: 4 of 4"):
        subject.fitting("val")


def test_one_scored_pair_among_many_is_enough(made, pairs):
    policy = made.policy_of(data := pairs.data(features(pairs)))
    with pytest.raises(EvaluationError, match=r"^here: 1 of 5 pairs .* 'test3'"):
        policy.guard("here", [*uids(pairs, "train"), "test3"], data)
    policy.guard("here", uids(pairs, "train"), data)


def test_the_same_pairs_under_another_name_are_still_scored(made, pairs):
    scored, other = pairs.data(features(pairs)), pairs.data(features(pairs, name="embed2"), ("val",), name="other")
    policy = made.policy_of(scored, other)
    with pytest.raises(EvaluationError, match="'test1'"):
        policy.guard("other/fit", ["train0", "test1"], other)


def test_equal_uids_of_other_pairs_are_other_pairs(made, pairs, tmp_path):
    others = made.Made(tmp_path, [made.Entry("test1", "train"), made.Entry("x", "test")], "others")
    data = pairs.data(features(pairs)), others.data(features(others), name="others")
    made.policy_of(*data).guard("fit", ["test1"], data[1])


def test_a_scored_picture_in_a_fit_is_left_out_and_counted(made, pairs):
    data = pairs.data(features(pairs, contents=True))
    kept, left_out = made.policy_of(data).without_scored_pictures(uids(pairs, "train"), data)
    assert (kept, left_out) == (["train0", "train2", "train3"], 1)
    assert made.policy_of(data).without_scored_pictures(uids(pairs, "val"), data) == (uids(pairs, "val"), 0)


def test_a_picture_that_another_set_scores_is_left_out_too(made, pairs, tmp_path):
    others = made.Made(tmp_path, entries(made, "o", copies=("val0", "val3")), "others")
    scored, fit = pairs.data(features(pairs, contents=True)), others.data(features(others, contents=True), name="other")
    kept, left_out = made.policy_of(scored, fit).without_scored_pictures(uids(others, "val"), fit)
    assert (kept, left_out) == (["oval1", "oval2"], 2)


def test_scored_pairs_that_were_not_embedded_do_not_stop_the_comparison(made, pairs):
    rows = [i for i, entry in enumerate(pairs.entries) if entry.uid != "test0"]
    data = pairs.data(features(pairs, contents=True, rows=rows))
    assert made.policy_of(data).without_scored_pictures(["train0", "train1"], data) == (["train0"], 1)


# ---------------------------------------------------------------------------------------------------------- training


def checked(made, *sets):
    return made.policy_of(*sets).check_training()


def test_a_model_that_saw_nothing_has_nothing_to_check(made, pairs):
    found = checked(made, pairs.data(features(pairs)))
    assert found == {
        "selections": 0, "unchecked_selections": 0, "pretrained_elsewhere": [], "scored_pictures_trained_on": None,
    }  # fmt: skip


def test_a_scored_pair_in_a_training_selection_is_refused(made, pairs):
    leaky = pairs.selection([*uids(pairs, "train"), "test2"])
    data = pairs.data(features(pairs, checkpoint=pairs.checkpoint(selection=leaky)))
    with pytest.raises(EvaluationError, match=r"^set: split 'test': 1 of 4 pairs .* e\.g\. 'test2'") as caught:
        checked(made, data)
    assert "\n" not in str(caught.value)
    # the same pair in a split that is not scored is no leak
    assert checked(made, pairs.data(features(pairs, checkpoint=pairs.checkpoint(selection=leaky)), ("val",)))


def test_a_selection_behind_a_teacher_counts(made, pairs):
    teacher = pairs.checkpoint("teacher", pairs.selection(["test0"], name="leaky"))
    parents = {"teachers.t": teacher, "selection": pairs.selection(["train0"])}
    student = pairs.put("student", "checkpoint", parents, lambda uri: None)
    with pytest.raises(EvaluationError, match="'test0'"):
        checked(made, pairs.data(features(pairs, checkpoint=student)))


def test_a_pair_that_the_selection_dropped_is_no_leak(made, pairs):
    data = pairs.data(features(pairs, checkpoint=pairs.checkpoint(selection=pairs.selection(["train0"]))))
    assert checked(made, data)["selections"] == 1


def test_scored_pictures_that_were_trained_on_under_another_uid_are_counted(made, pairs):
    inspection = pairs.inspection()
    for kept, number in ((["train0", "train1"], 1), (["train0", "train2"], 0)):
        selection = pairs.selection(kept, inspection)
        data = pairs.data(features(pairs, checkpoint=pairs.checkpoint(selection=selection), contents=True))
        assert checked(made, data) == {
            "selections": 1, "unchecked_selections": 0, "pretrained_elsewhere": [], "scored_pictures_trained_on": number
        }  # fmt: skip


def elsewhere(made, tmp_path, inspected):
    """A model trained on pairs of another pool, two of which show a scored picture."""
    pool = made.Made(tmp_path, entries(made, "pool-", copies=("train0", "train3", "val1")), "pool")
    kept = [entry.uid for entry in pool.entries if entry.split == "train"]
    return pool.checkpoint(selection=pool.selection(kept, pool.inspection() if inspected else None))


def test_a_selection_of_other_pairs_is_checked_by_its_pictures(made, pairs, tmp_path):
    data = pairs.data(features(pairs, checkpoint=elsewhere(made, tmp_path, True), contents=True))
    found = checked(made, data)
    assert (found["selections"], found["unchecked_selections"], found["scored_pictures_trained_on"]) == (1, 0, 2)


@pytest.mark.parametrize(("inspected", "contents"), [(False, True), (True, False)])
def test_what_has_no_checksums_to_compare_is_said_to_be_unchecked(made, pairs, tmp_path, inspected, contents):
    data = pairs.data(features(pairs, checkpoint=elsewhere(made, tmp_path, inspected), contents=contents))
    found = checked(made, data)
    assert (found["selections"], found["unchecked_selections"], found["scored_pictures_trained_on"]) == (0, 1, None)


@pytest.mark.parametrize("own_first", [True, False])
def test_a_selection_is_checked_only_if_it_is_for_every_set(made, pairs, tmp_path, own_first):
    checkpoint = pairs.checkpoint(selection=pairs.selection(["train0"]))
    others = made.Made(tmp_path, [made.Entry("o", "test")], "others")
    own = pairs.data(features(pairs, checkpoint=checkpoint))
    other = others.data(features(others, checkpoint=checkpoint), name="other")
    found = checked(made, *((own, other) if own_first else (other, own)))
    assert (found["selections"], found["unchecked_selections"]) == (0, 1)


def test_weights_from_elsewhere_are_named(made, pairs):
    first = pairs.checkpoint("first", pretrained="openai")
    second = pairs.put("second", "checkpoint", {"init": first}, lambda uri: None)
    assert checked(made, pairs.data(features(pairs, checkpoint=second)))["pretrained_elsewhere"] == ["openai"]


@pytest.mark.parametrize("what", ["features", "views"])
def test_features_of_other_pairs_are_refused(made, pairs, tmp_path, what):
    from data.features import FeatureSet

    others = made.Made(tmp_path, entries(made)[:-1], "others")
    data = pairs.data(features(pairs))
    setattr(data, what, FeatureSet(features(others)))
    with pytest.raises(EvaluationError, match=r"was made with pairs .*, the evaluation with .*; use the same pairs"):
        checked(made, data)
