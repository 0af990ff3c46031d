"""Heads against scikit-learn, brute force and their limiting cases (sections 7.I and 11.I of the methods)."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from data.errors import EvaluationError
from evaluation import specs
from evaluation.heads import gda, linear_probe, nearest_neighbours, tip_adapter
from evaluation.heads.base import NEVER
from evaluation.heads.selection import Candidate, best_of, coarse_to_fine, count_correct

CLASSES, DIM = 5, 16
PROBE = specs.LinearProbe(weight_decays=(1e-4, 1.0))  # weaker ones take longer
HEADS = (
    specs.NearestNeighbours(), PROBE, specs.GDA(), specs.TipAdapter(steps=4),
    specs.GDA(alphas=(1e2,)), specs.TipAdapter(alphas=(50.0, 50.0), steps=1),
)  # fmt: skip


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Toy:
    """Classes around directions in a cone; zero-shot knows the directions only roughly."""

    def __init__(self, seed=0, noise=1.0, classes=CLASSES, dim=DIM, rough=1.0):
        self.random = np.random.default_rng(seed)
        self.dim, self.noise, self.classes = dim, noise, classes
        self.cone = 2 * self.random.normal(size=dim)
        self.means = self.random.normal(size=(classes, dim))
        self.text = unit(self.means + rough * self.random.normal(size=(classes, dim)))

    def pairs(self, count, balanced=False):
        labels = np.arange(count) % self.classes if balanced else self.random.integers(0, self.classes, count)
        noise = self.noise * self.random.normal(size=(count, self.dim))
        return unit(self.cone + self.means[labels] + noise), labels.astype(np.int64)


@pytest.fixture(autouse=True)
def one_thread():
    # threads that wait for each other's three microseconds of work take seconds
    with threadpool_limits(1):
        yield


@pytest.fixture
def toy():
    return Toy()


def fitted(spec, fit, classes, select, **more):
    head = spec.build()
    return head, head.fit(*fit, classes, select, **more)


def top1(head, pairs):
    images, labels = pairs
    return (head.logits(images).argmax(axis=1) == labels).mean()


# -------------------------------------------------------------------------------------------------------- all heads


@pytest.mark.parametrize("spec", HEADS, ids=lambda spec: spec.head)
def test_scores_do_not_depend_on_blocks_and_fits_repeat(spec, toy):
    fit, select, (images, _) = toy.pairs(60), toy.pairs(30), toy.pairs(17)
    head, chosen = fitted(spec, fit, toy.text, select)
    again, same = fitted(spec, fit, toy.text, select)
    whole = head.logits(images)
    assert whole.shape == (17, CLASSES)
    assert whole.dtype == np.float64
    assert np.array_equal(whole, again.logits(images))
    assert dict(chosen) == dict(same)
    parts = np.concatenate([head.logits(images[at : at + 5]) for at in range(0, 17, 5)])
    assert np.abs(whole - parts).max() < head.tolerance


@pytest.mark.parametrize("spec", HEADS[:4], ids=lambda spec: spec.head)
def test_small_inner_blocks_change_nothing(spec, toy, monkeypatch):
    fit, select, (images, _) = toy.pairs(60), toy.pairs(30), toy.pairs(17)
    head, chosen = fitted(spec, fit, toy.text, select)
    for module, name in (
        (nearest_neighbours, "_BLOCK_SCORES"), (tip_adapter, "_BLOCK_SCORES"), (linear_probe, "_BLOCK_SCORES"),
        (gda, "_BLOCK_PAIRS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 100 if module is linear_probe else 7)
    small, same = fitted(spec, fit, toy.text, select)
    assert chosen["candidates"] == same["candidates"]
    assert head.logits(images) == pytest.approx(small.logits(images), abs=2e-2)
    assert (head.logits(images).argmax(axis=1) == small.logits(images).argmax(axis=1)).all()


@pytest.mark.parametrize("spec", HEADS, ids=lambda spec: spec.head)
def test_a_head_learns_what_zero_shot_does_not_know(spec):
    toy = Toy(noise=0.7, rough=5.0)
    test = toy.pairs(400)
    head, chosen = fitted(spec, toy.pairs(300), toy.text, toy.pairs(100))
    zero_shot = ((test[0] @ toy.text.T).argmax(axis=1) == test[1]).mean()
    assert top1(head, test) > zero_shot + 0.2
    assert chosen["select_top1"] == max(candidate[-1] for candidate in chosen["candidates"])


@pytest.mark.parametrize("spec", [HEADS[0], HEADS[1]], ids=lambda spec: spec.head)
def test_shuffled_labels_fall_to_chance(spec):
    found = []
    for seed in range(4):
        # many classes: with few, a shuffle often maps some of them right
        toy = Toy(seed, classes=20, dim=32)
        (images, labels), (asked, truth) = toy.pairs(200), toy.pairs(50)
        shuffled = (images, toy.random.permutation(labels)), toy.text, (asked, toy.random.permutation(truth))
        found.append(top1(fitted(spec, *shuffled)[0], toy.pairs(400, balanced=True)))
        assert top1(fitted(spec, (images, labels), toy.text, (asked, truth))[0], toy.pairs(400)) > 0.3
    assert abs(np.mean(found) - 1 / 20) < 0.035


@pytest.mark.parametrize("spec", HEADS[:4], ids=lambda spec: spec.head)
def test_a_head_refuses_what_nothing_can_be_learned_from(spec, toy):
    (images, labels), select = toy.pairs(20), toy.pairs(5)
    with pytest.raises(EvaluationError, match="20 pairs of 1 class; fit a head on at least two classes"):
        spec.build().fit(images, np.full_like(labels, 3), toy.text, select)
    with pytest.raises(EvaluationError, match="0 pairs of 0 classes"):
        spec.build().fit(images[:0], labels[:0], toy.text, select)
    with pytest.raises(EvaluationError, match="select: no pair to choose hyper-parameters on"):
        spec.build().fit(images, labels, toy.text, (images[:0], labels[:0]))


@pytest.mark.parametrize("spec", [HEADS[0], HEADS[1]], ids=lambda spec: spec.head)
def test_a_class_without_pairs_is_never_predicted_by_heads_without_zero_shot(spec, toy):
    images, labels = toy.pairs(100)
    head, _ = fitted(spec, (images[labels != 2], labels[labels != 2]), toy.text, toy.pairs(40), refit=False)
    logits = head.logits(images)
    assert np.isfinite(logits).all()
    assert (logits.argmax(axis=1) != 2).all()
    assert (logits[:, 2] <= logits.min(axis=1)).all()


@pytest.mark.parametrize("spec", [specs.GDA(), specs.TipAdapter()], ids=lambda spec: spec.head)
def test_a_class_without_pairs_is_still_found_by_heads_with_zero_shot(spec):
    toy = Toy(noise=0.7, rough=0.3)
    keep = lambda pairs: tuple(column[pairs[1] != 2] for column in pairs)  # noqa: E731
    head, _ = fitted(spec, keep(toy.pairs(200)), toy.text, toy.pairs(100))
    images, labels = toy.pairs(300)
    zero_shot = (images @ toy.text.T).argmax(axis=1)
    found = head.logits(images).argmax(axis=1)
    assert (found[labels == 2] == 2).mean() > 0.8 * (zero_shot[labels == 2] == 2).mean() > 0.4
    assert (found == labels)[labels != 2].mean() >= (zero_shot == labels)[labels != 2].mean()


# -------------------------------------------------------------------------------------------------------- selection


def test_ties_and_wrong_classes_are_not_credited():
    logits = np.array([[3.0, 1, 1], [2, 2, 1], [0, 1, 5], [2, 2 - 1e-9, 0]])
    assert count_correct(logits, np.array([0, 0, 2, 0]), 1e-6) == 2
    assert count_correct(logits, np.array([0, 0, 2, 0]), 0.0) == 3
    assert count_correct(logits, np.array([1, 1, 1, 1]), 1e-6) == 0


def test_the_first_of_equals_is_chosen():
    assert best_of([Candidate((1,), 0.5), Candidate((2,), 0.7), Candidate((3,), 0.7)]).values == (2,)


@pytest.mark.parametrize("peak", [1e-8, 3e-6, 0.04, 1.0])
def test_coarse_to_fine_finds_the_peak_of_97_points_in_15_trials(peak):
    tried = coarse_to_fine((1e-8, 1.0), lambda value: -abs(np.log10(value) - np.log10(peak)))
    assert len(tried) <= 15
    values = [candidate.values[0] for candidate in tried]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (pytest.approx(1.0), pytest.approx(1e-8))
    # the grid has 12 points a decade, so the best is at most half a step away
    assert abs(np.log10(best_of(tried).values[0] / peak)) <= 1 / 24 + 1e-9


def test_of_equal_strengths_the_strongest_is_chosen():
    assert best_of(coarse_to_fine((1e-8, 1.0), lambda value: 0.5)).values == (1.0,)


# ------------------------------------------------------------------------------------------------------ linear probe


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3, 1e-5])
def test_the_optimum_is_that_of_scikit_learn(toy, weight_decay):
    images, labels = toy.pairs(200)
    images = images.astype(np.float64)
    own = linear_probe.Problem(images, labels, CLASSES).solve(weight_decay, 2000)
    other = LogisticRegression(C=1 / (len(images) * weight_decay), tol=1e-10, max_iter=20000).fit(images, labels)
    size = np.abs(other.coef_).max()
    assert own.converged
    assert np.abs(own.weights.T - other.coef_).max() < 2e-4 * size
    assert np.abs(own.bias - own.bias.mean() - other.intercept_ + other.intercept_.mean()).max() < 2e-4 * max(1, size)
    test, _ = toy.pairs(500)
    ours, theirs = own.logits(test), other.decision_function(test.astype(np.float64))
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def test_float32_features_and_a_warm_start_lead_to_the_same_optimum(toy):
    images, labels = toy.pairs(200)
    exact = linear_probe.Problem(images.astype(np.float64), labels, CLASSES).solve(1e-4, 2000)
    problem = linear_probe.Problem(images, labels, CLASSES)
    cold, warm = problem.solve(1e-4, 2000), problem.solve(1e-4, 2000, problem.solve(1e-2, 2000))
    test, _ = toy.pairs(200)
    spread = exact.logits(test).std()
    assert np.abs(cold.logits(test) - exact.logits(test)).max() < 0.02 * spread
    assert np.abs(warm.logits(test) - exact.logits(test)).max() < 0.02 * spread


def test_fewer_pairs_than_dimensions_has_the_same_optimum():
    toy = Toy(dim=64)
    images, labels = toy.pairs(15, balanced=True)
    images = images.astype(np.float64)
    own = linear_probe.Problem(images, labels, CLASSES).solve(1e-3, 2000)
    other = LogisticRegression(C=1 / (15 * 1e-3), tol=1e-10, max_iter=20000).fit(images, labels)
    assert np.abs(own.weights.T - other.coef_).max() < 2e-4 * np.abs(other.coef_).max()


def test_the_slopes_are_those_of_the_loss(toy):
    images, labels = toy.pairs(40)
    problem = linear_probe.Problem(images.astype(np.float64), labels, CLASSES)
    weights, bias = toy.random.normal(size=(DIM, CLASSES)), toy.random.normal(size=CLASSES)
    _, slopes, bias_slopes = problem._cross_entropy(weights, bias)
    for row, column in ((0, 0), (3, 2), (15, 4)):
        step = np.zeros_like(weights)
        step[row, column] = 1e-5
        up, down = problem._cross_entropy(weights + step, bias)[0], problem._cross_entropy(weights - step, bias)[0]
        assert (up - down) / 2e-5 == pytest.approx(slopes[row, column], rel=1e-5, abs=1e-9)
    step = 1e-5 * np.eye(CLASSES)[1]
    up, down = problem._cross_entropy(weights, bias + step)[0], problem._cross_entropy(weights, bias - step)[0]
    assert (up - down) / 2e-5 == pytest.approx(bias_slopes[1], rel=1e-5)


def test_a_warm_start_is_where_the_last_solution_was(toy):
    images, labels = toy.pairs(40)
    problem = linear_probe.Problem(images.astype(np.float64), labels, CLASSES)
    weights, bias = toy.random.normal(size=(DIM, CLASSES)), toy.random.normal(size=CLASSES)
    again = problem._rotated(problem._restored(weights, bias, True))
    assert again[0] == pytest.approx(weights)
    assert again[1] == pytest.approx(bias)


def test_features_that_are_all_alike_give_the_frequencies(toy):
    images = np.tile(toy.text[:1], (40, 1))
    labels = np.repeat([0, 1, 3], [10, 10, 20])
    weights = linear_probe.Problem(images, labels, CLASSES).solve(1e-4, 100)
    assert (weights.weights == 0).all()
    assert np.exp(weights.bias[[0, 1, 3]]) / np.exp(weights.bias[[0, 1, 3]]).sum() == pytest.approx([0.25, 0.25, 0.5])
    assert (weights.bias[[2, 4]] == NEVER).all()


def test_refit_learns_from_both_splits_and_without_it_from_one(toy):
    fit, select = toy.pairs(100), toy.pairs(60)
    with_both, chosen = fitted(PROBE, fit, toy.text, select)
    alone, same = fitted(PROBE, fit, toy.text, select, refit=False)
    assert (chosen["refit_on_both"], same["refit_on_both"]) == (True, False)
    assert chosen["weight_decay"] == same["weight_decay"]
    decay, test = chosen["weight_decay"], toy.pairs(50)[0]
    both = [np.concatenate(parts) for parts in zip(fit, select, strict=True)]
    for head, (images, labels) in ((with_both, both), (alone, fit)):
        model = LogisticRegression(C=1 / (len(images) * decay), tol=1e-9, max_iter=20000).fit(images, labels)
        wrong = np.abs(_centred(head.logits(test)) - _centred(model.decision_function(test)))
        assert wrong.max() < 0.02 * model.decision_function(test).std()


def test_refit_gives_a_class_back_that_only_the_select_split_has(toy):
    (images, labels), select = toy.pairs(150), toy.pairs(100)
    head, _ = fitted(PROBE, (images[labels != 2], labels[labels != 2]), toy.text, select)
    test = toy.pairs(200)
    assert (head.logits(test[0]).argmax(axis=1) == 2).any()
    assert (head.logits(test[0]) > NEVER / 2).all()


def test_running_out_of_iterations_and_the_end_of_the_grid_are_said(toy):
    fit, select = toy.pairs(100), toy.pairs(60)
    _, chosen = fitted(specs.LinearProbe(max_iterations=1), fit, toy.text, select)
    assert chosen["not_converged"] > 0
    _, chosen = fitted(PROBE, fit, toy.text, select)
    assert (chosen["not_converged"], chosen["at_end_of_grid"]) == (0, False)
    easy = np.concatenate([toy.text] * 4), np.tile(np.arange(CLASSES), 4)
    _, chosen = fitted(PROBE, easy, toy.text, easy)
    assert (chosen["weight_decay"], chosen["at_end_of_grid"]) == (pytest.approx(1.0), True)


def _centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------- knn


@pytest.mark.parametrize("k", [1, 4, 60])
def test_votes_are_those_of_scikit_learn(toy, k):
    (images, labels), (test, _) = toy.pairs(60), toy.pairs(25)
    head, chosen = fitted(specs.NearestNeighbours(ks=(k,), temperature=0.1), (images, labels), toy.text, toy.pairs(9))
    weights = lambda distance: np.exp((1 - distance) / 0.1)  # noqa: E731
    other = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute").fit(images, labels)
    assert chosen["k"] == k
    assert np.exp(head.logits(test)) == pytest.approx(other.predict_proba(test), abs=1e-5)


def test_one_vote_by_hand():
    images, labels = unit(np.array([[1.0, 0], [0, 1], [1, 1]])), np.array([0, 1, 1])
    head, _ = fitted(specs.NearestNeighbours(ks=(2,), temperature=1), (images, labels), np.eye(2), (images, labels))
    votes = np.exp([1.0, 1 / np.sqrt(2)])  # the first picture asks: itself, then the diagonal
    assert np.exp(head.logits(images[:1]))[0] == pytest.approx(votes / votes.sum(), abs=1e-6)


def test_k_above_the_pairs_is_skipped_and_equal_ks_give_the_largest(toy):
    images, labels = unit(np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])), np.array([0, 0, 1, 1])
    _, chosen = fitted(specs.NearestNeighbours(ks=(1, 2, 5)), (images, labels), np.eye(2), (images, labels))
    assert [candidate[0] for candidate in chosen["candidates"]] == [2, 1]
    assert chosen["k"] == 2
    with pytest.raises(EvaluationError, match=r"nearest_neighbours.ks: 9 is the smallest, but there are 4 pairs"):
        fitted(specs.NearestNeighbours(ks=(20, 9)), (images, labels), np.eye(2), (images, labels))


def test_a_tiny_temperature_neither_overflows_nor_loses_the_nearest(toy):
    head, _ = fitted(specs.NearestNeighbours(temperature=1e-4), toy.pairs(60), toy.text, toy.pairs(9))
    images, _ = toy.pairs(20)
    assert np.isfinite(head.logits(images)).all()
    nearest = head._labels_N[(images @ head._images_ND.T).argmax(axis=1)]
    assert (head.logits(images).argmax(axis=1) == nearest).all()


# ---------------------------------------------------------------------------------------------------------------- GDA


def test_gda_without_weight_is_zero_shot(toy):
    head, _ = fitted(specs.GDA(alphas=(0.0,)), toy.pairs(60), toy.text, toy.pairs(30), scale=100.0)
    images, _ = toy.pairs(40)
    assert head.logits(images) == pytest.approx(100 * images @ toy.text.T, abs=1e-4)


def test_the_exact_inverse_is_scikit_learns_discriminant_analysis(toy):
    images, labels = toy.pairs(200, balanced=True)
    means = gda.class_means(images, labels, CLASSES)
    exact = np.linalg.inv(gda.within_covariance(images, labels, means))
    weights, bias = gda.discriminant(means, exact)
    test, _ = toy.pairs(2000)
    other = LinearDiscriminantAnalysis("lsqr", priors=np.full(CLASSES, 1 / CLASSES)).fit(images, labels)
    assert ((test @ weights + bias).argmax(axis=1) == other.predict(test)).all()


def test_a_round_precision_is_the_nearest_class_mean(toy):
    images, labels = toy.pairs(60)
    means = gda.class_means(images, labels, CLASSES)
    weights, bias = gda.discriminant(means, 3 * np.eye(DIM))
    test, _ = toy.pairs(300)
    nearest = ((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert ((test @ weights + bias).argmax(axis=1) == nearest).all()


def test_exact_inverse_is_affine_invariant(toy):
    images, labels = (column.astype(np.float64) if column.ndim == 2 else column for column in toy.pairs(100))
    test, change = toy.pairs(100)[0].astype(np.float64), toy.random.normal(size=(DIM, DIM))
    scores = []
    for fit, asked in ((images, test), (images @ change + 3, test @ change + 3)):
        means = gda.class_means(fit, labels, CLASSES)
        weights, bias = gda.discriminant(means, np.linalg.inv(gda.within_covariance(fit, labels, means)))
        scores.append(_centred(asked @ weights + bias))
    assert scores[0] == pytest.approx(scores[1], rel=1e-6, abs=1e-6)


def test_one_view_of_one_picture_a_class_is_zero_shot_and_two_views_are_not(toy):
    images, labels = toy.pairs(CLASSES, balanced=True)
    test, _ = toy.pairs(100)
    head, _ = fitted(specs.GDA(alphas=(1e2,)), (images, labels), toy.text, toy.pairs(9))
    zero_shot = 100 * test @ toy.text.T
    assert _centred(head.logits(test)) == pytest.approx(_centred(zero_shot), abs=1e-4)
    views = np.concatenate([images, unit(images + 0.05 * toy.random.normal(size=images.shape))])
    more, _ = fitted(specs.GDA(alphas=(1e2,)), (views, np.tile(labels, 2)), toy.text, toy.pairs(9))
    assert (more.logits(test).argmax(axis=1) != zero_shot.argmax(axis=1)).any()


def test_rounding_of_means_is_no_spread(toy):
    images, labels = toy.pairs(CLASSES, balanced=True)
    equal, labels = np.concatenate([images] * 7).astype(np.float64) / 3, np.tile(labels, 7)
    covariance = gda.within_covariance(equal, labels, gda.class_means(equal, labels, CLASSES))
    assert np.trace(covariance) > 0
    assert (gda.ridge_precision(covariance, len(labels)) == 0).all()


def test_a_class_without_pairs_gets_the_mean_of_the_other_means():
    images, labels = np.array([[1.0, 0], [3, 0], [4, 2], [4, 2], [4, 2]]), np.array([0, 0, 2, 2, 2])
    assert gda.class_means(images, labels, 3).tolist() == [[2, 0], [3, 1], [4, 2]]


def test_covariance_and_precision_by_hand():
    images, labels = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]]), np.array([0, 0, 1, 1])
    means = gda.class_means(images, labels, 3)
    assert means.tolist() == [[0, 0], [0, 0], [0, 0]]
    covariance = gda.within_covariance(images, labels, means)
    assert covariance == pytest.approx(np.diag([2 / 3, 8 / 3]))
    # (N - 1) S = diag(2, 8), trace of S 10 / 3, D = 2
    assert gda.ridge_precision(covariance, 4) == pytest.approx(2 * np.diag([1 / (2 + 10 / 3), 1 / (8 + 10 / 3)]))


def test_fewer_pairs_than_dimensions_stay_finite():
    toy = Toy(dim=64)
    head, _ = fitted(specs.GDA(alphas=(1e2,)), toy.pairs(10, balanced=True), toy.text, toy.pairs(9))
    assert np.isfinite(head.logits(toy.pairs(20)[0])).all()


def test_of_equal_alphas_the_smallest_is_chosen(toy):
    # a perfect zero-shot model leaves nothing to choose
    images = np.concatenate([toy.text] * 4)
    labels = np.tile(np.arange(CLASSES), 4)
    _, chosen = fitted(specs.GDA(alphas=(1e-2, 1e-4, 1e-3)), (images, labels), toy.text, (images, labels))
    assert chosen["alpha"] == 1e-4


# -------------------------------------------------------------------------------------------------------- Tip-Adapter


def tip(alpha, beta):
    return specs.TipAdapter(alphas=(alpha, alpha), betas=(beta, beta), steps=1)


@pytest.mark.parametrize("absent", [None, 0, 2])
def test_tip_adapter_is_its_formula(toy, absent):
    (images, labels), (test, _) = toy.pairs(40), toy.pairs(15)
    images, labels = images[labels != absent], labels[labels != absent]
    head, _ = fitted(tip(1.17, 5.5), (images, labels), toy.text, toy.pairs(9), scale=100.0)
    votes = np.exp(-5.5 * (1 - test @ images.T)) @ np.eye(CLASSES)[labels]
    assert head.logits(test) == pytest.approx(100 * test @ toy.text.T + 1.17 * votes, abs=1e-3)


def test_tip_adapter_without_weight_is_zero_shot(toy):
    head, _ = fitted(tip(0.0, 5.5), toy.pairs(40), toy.text, toy.pairs(9))
    test, _ = toy.pairs(15)
    assert head.logits(test) == pytest.approx(100 * test @ toy.text.T, abs=1e-4)


def test_tip_adapter_with_beta_0_and_balanced_shots_is_zero_shot(toy):
    test, _ = toy.pairs(200)
    zero_shot = (test @ toy.text.T).argmax(axis=1)
    balanced, _ = fitted(tip(1e3, 0.0), toy.pairs(4 * CLASSES, balanced=True), toy.text, toy.pairs(9))
    assert (balanced.logits(test).argmax(axis=1) == zero_shot).all()
    images, labels = toy.pairs(4 * CLASSES, balanced=True)
    uneven, _ = fitted(tip(1e3, 0.0), (images[1:], labels[1:]), toy.text, toy.pairs(9))
    assert (uneven.logits(test).argmax(axis=1) != 0).all()


def test_tip_adapter_with_large_beta_is_the_nearest_shot(toy):
    (images, labels), (test, _) = toy.pairs(40), toy.pairs(50)
    # beta 50 leaves e^-5 at a distance of 0.1, where float32 still tells the nearest
    head, _ = fitted(tip(1e9, 500.0), (images, labels), np.zeros_like(toy.text), toy.pairs(9))
    apart = np.sort(test @ images.T, axis=1)
    clear = apart[:, -1] - apart[:, -2] > 0.01
    assert clear.sum() > 10
    assert (head.logits(test).argmax(axis=1) == labels[(test @ images.T).argmax(axis=1)])[clear].all()


def test_keys_are_means_over_the_views_of_a_picture():
    views = np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    keys, labels = tip_adapter.mean_keys(views, np.array([7, 8, 7, 8]), np.array([0, 1, 0, 1]))
    assert keys == pytest.approx(np.array([[np.sqrt(0.5), np.sqrt(0.5)], [0, 1]]))
    assert labels.tolist() == [7, 8]
    with pytest.raises(EvaluationError, match="cancel out"):
        tip_adapter.mean_keys(np.array([[1, 0], [-1, 0]], np.float32), np.array([0, 0]), np.array([0, 0]))


@pytest.mark.parametrize("absent", [None, 0, 2])
def test_the_grid_of_tip_adapter_is_searched_as_by_brute_force(toy, absent):
    fit, (images, labels) = toy.pairs(30), toy.pairs(40)
    fit = fit[0][fit[1] != absent], fit[1][fit[1] != absent]
    _, chosen = fitted(specs.TipAdapter(alphas=(0.1, 3.0), betas=(1.0, 7.0), steps=3), fit, toy.text, (images, labels))
    assert [candidate[:2] for candidate in chosen["candidates"]] == [
        pytest.approx([alpha, beta]) for alpha in (0.1, 1.55, 3.0) for beta in (1.0, 4.0, 7.0)
    ]
    for alpha, beta, found in chosen["candidates"]:
        votes = np.exp(-beta * (1 - images @ fit[0].T)) @ np.eye(CLASSES)[fit[1]]
        assert found == ((100 * images @ toy.text.T + alpha * votes).argmax(axis=1) == labels).mean()
