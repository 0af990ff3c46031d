"""Paired tests: against McNemar and brute force, at their nominal level, and what happens without clusters."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from data.errors import EvaluationError
from evaluation.comparison import EXACT, WALD, align, flip_test, holm, paired_test, wald_test
from evaluation.rows import Rows


def rows(correct, clusters=None, ids=None, **numbers):
    correct = np.asarray(correct, np.int64)
    ids = ids or [f"s{number}" for number in range(len(correct))]
    clusters = clusters or ids
    return Rows(ids, clusters, [""] * len(ids), [""] * len(ids), {"correct": correct, **numbers})


@pytest.mark.parametrize(("ours", "theirs"), [(9, 1), (3, 3), (0, 7), (40, 21), (1, 0), (300, 241)])
def test_without_clusters_it_is_mcnemars_exact_test(ours, theirs):
    differences = np.array([1] * ours + [-1] * theirs + [0] * 17)
    assert flip_test(differences) == pytest.approx(stats.binomtest(ours, ours + theirs).pvalue, rel=1e-9)


@pytest.mark.parametrize("differences", [[1], [2, -1, 1], [3, 3, -1, 0, 2], [5, -4, -4, 1, 1, 1, 2], [0, 0]])
def test_clusters_flip_whole_as_brute_force_says(differences):
    sums = [np.dot(signs, differences) for signs in product((-1, 1), repeat=len(differences))]
    expected = np.mean(np.abs(sums) >= abs(sum(differences)))
    assert flip_test(np.array(differences)) == pytest.approx(expected, abs=1e-12)


def test_equal_answers_are_no_evidence():
    assert flip_test(np.zeros(50, np.int64)) == 1.0


def test_samples_are_paired_by_name_whatever_their_order():
    ours = rows([1, 1, 1, 0, 1, 1], ids=list("abcdef"))
    theirs = rows([0, 0, 0, 0, 0, 1], ids=list("fedcba"))
    found = paired_test(ours, theirs, "top1", (5 / 6, 1 / 6))
    assert (found.test, found.only_ours, found.only_theirs) == (EXACT, 4, 0)
    assert found.p == pytest.approx(2 * 0.5**4)
    assert align(ours, theirs).tolist() == [5, 4, 3, 2, 1, 0]


def test_a_metric_that_is_no_share_of_right_samples_has_no_exact_test():
    """A name alone is not trusted: the share must reproduce the value."""
    ours, theirs = rows([1, 1, 0, 0]), rows([1, 0, 0, 0])
    assert paired_test(ours, theirs, "mean_per_class_recall", (0.61, 0.25)) is None
    assert paired_test(rows([0, 0]), rows([0, 0]), "ece", (0.1, 0.2)) is None
    shares = rows([1, 0], hit=np.array([0.5, 0.25]))
    assert paired_test(shares, shares, "hit", (0.375, 0.375)) is None


def test_ranks_are_cut_at_the_metrics_own_k():
    ours = rows([0, 0, 1, 0], rank=np.array([2, 3, 1, 9]))
    theirs = rows([0, 0, 0, 0], rank=np.array([9, 9, 9, 9]))
    found = paired_test(ours, theirs, "image_to_text_R@5", (0.75, 0.0))
    assert (found.only_ours, found.only_theirs, found.p) == (3, 0, pytest.approx(0.25))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (rows([1, 0], ids=["s0", "other"]), "differ in e.g. 's1'"),
        (rows([1, 0, 1]), "answered 2 and 3 samples"),
        (rows([1, 0], clusters=["one", "one"]), "different clusters"),
    ],
)
def test_other_samples_or_clusters_are_refused(theirs, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        align(rows([1, 1]), theirs)
    assert "\n" not in str(caught.value)


def test_holm_by_hand_and_in_any_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_wald_is_the_normal_tail_and_undefined_is_none():
    draws = np.random.default_rng(0).normal(0.2, 0.1, 4000)
    found = wald_test(0.2, draws)
    assert found.test == WALD
    assert found.p == pytest.approx(2 * stats.norm.sf(0.2 / draws.std(ddof=1)))
    assert wald_test(0.2, np.full(10, np.nan)) is None
    assert wald_test(0.0, np.zeros(10)).p == 1.0
    assert wald_test(0.5, np.full(99, 0.5)).p == pytest.approx(0.02)


def test_the_level_holds_with_clusters_and_not_if_they_are_ignored():
    """Negative control: forty clusters of ten alike samples, two equal models."""
    random = np.random.default_rng(1)
    whole, ignored = [], []
    for _ in range(300):
        difference_G = random.choice([-1, 0, 1], 40)
        whole.append(flip_test(10 * difference_G))
        ignored.append(flip_test(np.repeat(difference_G, 10)))
    assert np.mean(np.array(whole) < 0.05) <= 0.08
    assert np.mean(np.array(ignored) < 0.05) > 0.3


def test_the_family_errs_as_rarely_as_holm_promises():
    """Ten true nulls a family: about one in twenty families has a false finding, not four in ten."""
    random = np.random.default_rng(2)
    ps = [[flip_test(random.choice([-1, 1], 200)) for _ in range(10)] for _ in range(200)]
    corrected = np.mean([min(holm(family)) < 0.05 for family in ps])
    plain = np.mean([min(family) < 0.05 for family in ps])
    assert corrected <= 0.08
    assert plain > 0.25
