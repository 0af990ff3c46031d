"""LightCLIP's soft targets: against the formula written out, InfoNCE as the limit, and what must not matter."""

import math

import pytest
import torch
import torch.nn.functional as F

from training import specs
from training.objectives import Context, build_objective, tiles
from training.objectives.soft_contrast import soft_targets, softness

NAMES = ("image_features", "text_features", "logit_scale")


def context(progress):
    return Context(progress, 0, 1, torch.Generator())


def features(rows=7, width=5, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(rows, width, generator=random, dtype=dtype), dim=1) for _ in range(2))
    return {"image_features": image, "text_features": text, "logit_scale": torch.tensor(6.0, dtype=dtype)}


def learned(loss, names):
    """Value and gradients of loss(names)."""
    leaves = {key: value.clone().requires_grad_() for key, value in names.items()}
    value = loss(leaves)
    value.backward()
    return value.detach(), [leaves[key].grad for key in NAMES]


def of_spec(progress, **fields):
    objective = build_objective(specs.SoftInfoNCE(**fields))
    return lambda names: objective(names, context(progress)).value


def written_out(share, weighs_with_gradient=False):
    """-(1/2B) sum_ij Y_ij log P_ij of both directions, Y_ij = (1 - a) [i = j] + a w_ij [i != j]."""

    def loss(names):
        logits = names["logit_scale"] * names["image_features"] @ names["text_features"].T
        total = 0.0
        for rows in (logits, logits.T):
            others = rows if weighs_with_gradient else rows.detach()
            weights = torch.stack([
                torch.cat([row[:i].exp(), torch.zeros(1, dtype=row.dtype), row[i + 1 :].exp()]) for i, row in
                enumerate(others)
            ])  # fmt: skip
            weights = weights / weights.sum(1, keepdim=True)
            target = (1 - share) * torch.eye(len(rows), dtype=rows.dtype) + share * weights
            total = total - (target * rows.log_softmax(1)).sum() / len(rows)
        return total / 2

    return loss


@pytest.mark.parametrize(("ramp", "share"), [("linear", 0.25 * 0.4), ("cosine", (1 - math.cos(math.pi / 4)) / 2 * 0.4)])
def test_it_is_the_formula_written_out(ramp, share):
    names = features()
    value, gradients = learned(of_spec(0.25, max_softness=0.4, ramp=ramp), names)
    expected, by_autograd = learned(written_out(share), names)
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients, by_autograd, atol=1e-6, rtol=0)


def test_the_weights_are_constants():
    names = features()
    _, gradients = learned(of_spec(1.0, max_softness=0.4), names)
    _, moving = learned(written_out(0.4, weighs_with_gradient=True), names)
    assert (gradients[0] - moving[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("max_softness", "progress"), [(0.0, 0.0), (0.0, 1.0), (0.5, 0.0)])
def test_without_softness_it_is_info_nce_to_the_bit(max_softness, progress):
    names = features(dtype=torch.float32)
    hard = build_objective(specs.InfoNCE())
    value, gradients = learned(of_spec(progress, max_softness=max_softness), names)
    expected, parents = learned(lambda given: hard(given, context(progress)).value, names)
    assert torch.equal(value, expected)
    assert all(map(torch.equal, gradients, parents))


def test_soft_targets_by_hand():
    logits = torch.tensor([[5.0, 0.0, math.log(3)], [0.0, 0.0, 0.0], [math.log(4), 0.0, -7.0]])
    found = soft_targets(logits, torch.arange(3))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.25, 0.75], [0.5, 0.0, 0.5], [0.8, 0.2, 0.0]]))
    assert torch.allclose(found.sum(1), torch.ones(3))


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
def test_softness_rises_from_nothing_to_its_end(ramp):
    spec = specs.SoftInfoNCE(max_softness=0.3, ramp=ramp)
    values = [softness(spec, step / 10) for step in range(11)]
    assert values[0] == 0
    assert values[5] == pytest.approx(0.15)
    assert values[-1] == pytest.approx(0.3)
    assert values == sorted(values)


def test_row_order_does_not_matter():
    names, order = features(), torch.tensor([3, 1, 6, 5, 0, 2, 4])
    moved = {key: value[order] if value.ndim else value for key, value in names.items()}
    loss = of_spec(1.0, max_softness=0.5)
    torch.testing.assert_close(loss(moved), loss(names), atol=1e-12, rtol=0)
    wrong = {**moved, "text_features": names["text_features"]}  # the control: pairs torn apart
    assert abs(float(loss(wrong) - loss(names))) > 1e-2


def test_slices_give_what_one_gives(monkeypatch):
    names, loss = features(), of_spec(1.0, max_softness=0.5)
    whole = learned(loss, names)
    monkeypatch.setitem(tiles.EDGES, "cpu", 3)
    sliced = learned(loss, names)
    torch.testing.assert_close(sliced[0], whole[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(sliced[1], whole[1], atol=1e-12, rtol=0)


def test_a_lone_pair_has_nothing_to_give_away():
    names = features(rows=1)
    assert float(of_spec(1.0, max_softness=0.5)(names)) == 0


def test_the_parts_say_how_soft_it_is():
    parts = build_objective(specs.SoftInfoNCE(max_softness=0.4))(features(), context(0.5)).parts
    assert float(parts["softness"]) == pytest.approx(0.2)
    value = build_objective(specs.SoftInfoNCE(max_softness=0.4))(features(), context(0.5)).value
    assert float(parts["i2t"] + parts["t2i"]) / 2 == pytest.approx(float(value))
