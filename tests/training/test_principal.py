"""Long-CLIP's short branch: the cut by hand and by SVD, its gradient, its limits, one rank or two, and its trap."""

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from training import specs
from training.objectives import Context, build_objective
from training.objectives.principal import principal

together = runpy.run_path(str(Path(__file__).with_name("ranks.py")))["together"]
LEARNED = ("image_features", "text_features.short", "logit_scale")
PAIRS, WIDTH = 12, 8


def rows(pairs=PAIRS, width=WIDTH, seed=0):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(pairs, width, generator=random, dtype=torch.float64), dim=1)


def batch(pairs=PAIRS, dtype=torch.float64):
    named = {"image_features": rows(pairs, seed=1), "text_features.short": rows(pairs, seed=2)}
    return {**{key: value.to(dtype) for key, value in named.items()}, "logit_scale": torch.tensor(9.0, dtype=dtype)}


def context(rank=0, ranks=1):
    return Context(0.0, rank, ranks, torch.Generator())


def by_svd(rows_ND, components):
    """The paper's branch in plain torch."""
    mean = rows_ND.mean(0)
    directions = torch.linalg.svd(rows_ND - mean, full_matrices=False)[2][:components]
    return (rows_ND - mean) @ directions.T @ directions + mean


def plain(names, components, smoothing):
    logits = names["logit_scale"] * by_svd(names["image_features"], components) @ names["text_features.short"].T
    target = torch.arange(len(logits))
    return sum(F.cross_entropy(line, target, label_smoothing=smoothing) for line in (logits, logits.T)) / 2


def value_and_gradients(loss, names):
    leaves = {key: names[key].clone().requires_grad_() for key in LEARNED}
    value = loss(leaves)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves.values())]


def ours(spec, where=None):
    return lambda names: build_objective(spec)(names, where or context()).value


# --------------------------------------------------------------------------------------------------------- the cut


def test_points_by_hand():
    points = torch.tensor(
        [[4.0, 1.0], [-2.0, 1.0], [1.0, 2.0], [1.0, 0.0]]
    )  # about (1, 1): 3 and -3 across, 1 and -1 up
    assert torch.allclose(principal(points, 0), torch.ones(4, 2))
    assert torch.allclose(principal(points, 1), torch.tensor([[4.0, 1.0], [-2.0, 1.0], [1.0, 1.0], [1.0, 1.0]]))
    assert principal(points, 2) is points


@pytest.mark.parametrize("shape", [(40, 8), (6, 30)])
@pytest.mark.parametrize("components", [0, 1, 3])
def test_value_and_gradient_are_those_of_autograd_through_the_svd(shape, components):
    found = []
    for cut in (principal, by_svd):
        leaf = rows(*shape).requires_grad_()
        made = cut(leaf, components)
        (made * rows(*shape, seed=7)).sum().backward()  # any direction
        found.append((made.detach(), leaf.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_gradients_by_finite_differences():
    assert torch.autograd.gradcheck(lambda leaf: principal(leaf, 2), rows(7, 5).requires_grad_())


def test_it_is_idempotent_keeps_the_mean_and_shrinks():
    whole = rows(40, 16)
    once = principal(whole, 5)
    torch.testing.assert_close(principal(once, 5), once, atol=1e-12, rtol=0)
    torch.testing.assert_close(once.mean(0), whole.mean(0), atol=1e-14, rtol=0)
    assert once.norm(dim=1).mean() < whole.norm(dim=1).mean()  # not brought back to length 1


def test_components_of_equal_strength_on_both_sides_of_the_cut_leave_the_gradient_finite():
    leaf = torch.cat([torch.eye(4), -torch.eye(4)]).requires_grad_()  # every direction is as strong
    (principal(leaf, 2) * rows(8, 4).float()).sum().backward()
    assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() < 10


def test_equal_pictures_have_the_gradient_of_the_mean():
    leaf = torch.ones(8, 4).requires_grad_()
    principal(leaf, 2)[:, 0].sum().backward()
    torch.testing.assert_close(leaf.grad.sum(0), torch.tensor([8.0, 0, 0, 0]))


def test_float32_keeps_the_digits_of_features_close_to_each_other():
    close = 1 + 1e-3 * rows(64, 16)
    assert (principal(close.float(), 6).double() - by_svd(close.float().double(), 6)).abs().max() < 2e-7


# ---------------------------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("components", [0, 3])
def test_the_formula_with_every_gradient(components, smoothing):
    spec = specs.PrincipalInfoNCE(components=components, label_smoothing=smoothing)
    found = [value_and_gradients(loss, batch()) for loss in (ours(spec), lambda n: plain(n, components, smoothing))]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("components", [WIDTH, 100])
def test_all_components_are_info_nce_to_the_bit(components):
    spec = specs.PrincipalInfoNCE(components=components, label_smoothing=0.1)
    parent = specs.InfoNCE(text="text_features.short", label_smoothing=0.1)
    for one, other in zip(*(value_and_gradients(ours(each), batch()) for each in (spec, parent)), strict=True):
        assert torch.equal(one, other)


def test_a_rank_of_no_more_pairs_than_components_cuts_nothing_and_says_so():
    """The trap: 32 components of a rank of 32 pairs are all there is."""
    few, more = batch(5), batch(12)
    spec = specs.PrincipalInfoNCE(components=4, scope="rank")
    trapped, honest = (build_objective(spec)(names, context()) for names in (few, more))
    assert float(trapped.parts["kept"]) == 1.0 and float(honest.parts["kept"]) < 0.95
    parent = build_objective(specs.InfoNCE(text="text_features.short", label_smoothing=0.1))
    assert torch.equal(trapped.value, parent(few, context()).value)
    assert abs(float(honest.value - parent(more, context()).value)) > 1e-3


def test_the_order_of_pairs_does_not_matter():
    names, order = batch(), torch.randperm(PAIRS, generator=torch.Generator().manual_seed(4))
    moved = {key: value[order] if value.ndim else value for key, value in names.items()}
    one, other = (ours(specs.PrincipalInfoNCE(components=3))(each) for each in (names, moved))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_short_captions_of_other_pictures_cost_more():
    names = batch()
    names["text_features.short"] = names["image_features"]
    turned = {**names, "text_features.short": names["image_features"].roll(1, 0)}
    right, wrong = (float(ours(specs.PrincipalInfoNCE(components=5))(each)) for each in (names, turned))
    assert right + 1 < wrong


# -------------------------------------------------------------------------------------------------------- two ranks


def half(names, rank, ranks):
    mine = slice(rank * PAIRS // ranks, (rank + 1) * PAIRS // ranks)
    return {key: value[mine] if value.ndim else value for key, value in names.items()}


def on_rank(rank, ranks, spec, folder):
    """What data-parallel training makes of a rank's loss: the mean over ranks, and its gradient."""
    found = value_and_gradients(ours(spec, context(rank, ranks)), half(batch(), rank, ranks))
    torch.save(found, folder / f"{rank}.pt")


def mean_over_ranks(spec, folder, ranks=2):
    together(on_rank, ranks, folder / "store", spec, folder)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
    value, image, text, scale = zip(*found, strict=True)
    return [sum(value) / ranks, torch.cat(image) / ranks, torch.cat(text) / ranks, sum(scale) / ranks]


def test_components_of_all_ranks_are_those_of_one(tmp_path):
    spec = specs.PrincipalInfoNCE(components=3)
    found = mean_over_ranks(spec, tmp_path)
    for one, other in zip(value_and_gradients(ours(spec), batch()), found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def per_rank(names, components, smoothing):
    """The released form: two ranks' own components, then one contrast over all pairs."""
    cut = torch.cat([by_svd(part, components) for part in names["image_features"].chunk(2)])
    logits = names["logit_scale"] * cut @ names["text_features.short"].T
    target = torch.arange(PAIRS)
    return sum(F.cross_entropy(line, target, label_smoothing=smoothing) for line in (logits, logits.T)) / 2


def test_components_of_each_rank_are_the_released_form_and_differ_from_all_ranks(tmp_path):
    spec = specs.PrincipalInfoNCE(components=3, scope="rank")
    found = mean_over_ranks(spec, tmp_path)
    expected = value_and_gradients(lambda names: per_rank(names, 3, 0.1), batch())
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    assert abs(float(found[0] - ours(spec)(batch()))) > 1e-4
