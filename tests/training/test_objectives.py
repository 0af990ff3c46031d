"""Objectives against hand-made references, limiting cases and identities."""

import math

import pytest
import torch
import torch.nn.functional as F

from data.errors import ModelError
from training import specs
from training.objectives import Context, WeightedSum, build_objective
from training.objectives.routing import load_balancing_loss


def context(seed=0):
    return Context(0.0, 0, 1, torch.Generator().manual_seed(seed))


def features(rows=6, width=8, seed=0, prefix="", grad=False):
    random = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(rows, width, generator=random), dim=1) for _ in range(2))
    named = {"image_features": image, "text_features": text, "logit_scale": torch.tensor(10.0)}
    return {prefix + key: value.clone().requires_grad_(grad) for key, value in named.items()}


def gradients(spec, names):
    build_objective(spec)(names, context()).value.backward()
    return torch.cat([names[key].grad.flatten() for key in ("image_features", "text_features")])


def test_info_nce_is_the_symmetric_cross_entropy():
    names = features()
    logits = 10 * names["image_features"] @ names["text_features"].T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(build_objective(specs.InfoNCE())(names, context()).value, expected)


def test_label_smoothing_is_torchs():
    names = features()
    logits = 10 * names["image_features"] @ names["text_features"].T
    target = torch.arange(6)
    expected = sum(F.cross_entropy(rows, target, label_smoothing=0.1) for rows in (logits, logits.T)) / 2
    assert torch.allclose(build_objective(specs.InfoNCE(label_smoothing=0.1))(names, context()).value, expected)


@pytest.mark.parametrize("kind", [specs.InfoNCE, specs.SigLIP])
def test_multi_positive_without_equal_captions_is_the_plain_loss(kind):
    names = {**features(), "text_id": torch.arange(6), "logit_bias": torch.tensor(-10.0)}
    plain = build_objective(kind())(names, context()).value
    assert torch.equal(build_objective(kind(multi_positive=True))(names, context()).value, plain)


def test_multi_positive_does_not_punish_the_twin():
    names = features(4, 8)
    names["text_features"] = names["image_features"][[0, 0, 2, 3]]
    names["image_features"] = names["text_features"].clone()
    names["text_id"] = torch.tensor([7, 7, 8, 9])
    names["logit_scale"] = torch.tensor(100.0)
    value = build_objective(specs.InfoNCE(multi_positive=True))(names, context()).value
    assert value < math.log(2) / 2 + 1e-3  # the two twins share their target: ln 2 each, over 4 rows
    assert torch.allclose(value, torch.tensor(math.log(2) / 2), atol=1e-3)


def test_siglip_by_hand():
    names = {**features(3, 4), "logit_bias": torch.tensor(-2.0)}
    logits = 10 * names["image_features"] @ names["text_features"].T - 2.0
    expected = (
        sum(math.log1p(math.exp(-(1 if i == j else -1) * float(logits[i, j]))) for i in range(3) for j in range(3)) / 3
    )
    assert float(build_objective(specs.SigLIP())(names, context()).value) == pytest.approx(expected, rel=1e-5)


def test_hycd_with_hard_targets_has_info_nces_gradient():
    one, two = ({**features(grad=True), **features(prefix="t.", seed=5)} for _ in range(2))
    assert torch.allclose(
        gradients(specs.HybridDistillation(teacher="t", hard=1.0), one), gradients(specs.InfoNCE(), two), atol=1e-7
    )


@pytest.mark.parametrize(
    "spec", [specs.HybridDistillation(teacher="t", hard=0.0), specs.SimilarityRows(teacher="t", temperature=2.0)]
)
def test_a_student_equal_to_its_teacher_learns_nothing(spec):
    names = {**features(grad=True), **features(prefix="t.")}
    assert gradients(spec, names).abs().max() < 5e-7
    assert abs(float(build_objective(spec)({k: v.detach() for k, v in names.items()}, context()).value)) < 1e-6


def test_feature_cosine_is_zero_for_equal_and_one_for_orthogonal():
    spec = build_objective(specs.FeatureCosine(teacher="t"))
    same = {**features(), **features(prefix="t.")}
    assert abs(float(spec(same, context()).value)) < 1e-6
    eye = torch.eye(4)
    other = {
        "image_features": eye[:2],
        "text_features": eye[:2],
        "t.image_features": eye[2:],
        "t.text_features": eye[2:],
    }
    assert float(spec(other, context()).value) == pytest.approx(1.0)


@pytest.mark.parametrize("normalised", [True, False])
def test_rafa_is_a_quarter_alignment_plus_the_midpoints_pull(normalised):
    names = features(5, 8)
    value = build_objective(specs.RandomReference(normalised=normalised))(names, context(3)).value
    drawn = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    reference = F.normalize(drawn, dim=1) if normalised else drawn
    image, text = names["image_features"], names["text_features"]
    identity = (image - text).square().sum(1) / 4 + ((image + text) / 2 - reference).square().sum(1)
    assert torch.allclose(value, identity.mean(), atol=1e-6)


def test_balance_is_k_for_a_uniform_router_and_e_for_a_collapsed_one():
    uniform = torch.full((10, 2, 3, 4), 0.25)
    collapsed = torch.zeros(10, 2, 3, 4)
    collapsed[..., 1] = 1
    assert float(load_balancing_loss(uniform, 2)) == pytest.approx(2.0)
    assert float(load_balancing_loss(collapsed, 1)) == pytest.approx(4.0)


@pytest.mark.parametrize("spec", [specs.InfoNCE(), specs.SigLIP(), specs.SimilarityRows(teacher="t")])
def test_row_order_does_not_matter(spec):
    names = {**features(), **features(prefix="t.", seed=3), "logit_bias": torch.tensor(-1.0)}
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = {key: value[order] if value.ndim else value for key, value in names.items()}
    assert torch.allclose(
        build_objective(spec)(names, context()).value, build_objective(spec)(moved, context()).value, atol=1e-6
    )


def test_weight_zero_leaves_the_parents_gradient_bit_identical():
    parent = {"contrast": specs.Term(loss=specs.InfoNCE())}
    child = {**parent, "reference": specs.Term(weight=0.0, loss=specs.RandomReference())}
    found = []
    for terms in (parent, child):
        names = features(grad=True)
        WeightedSum(terms)(names, context()).value.backward()
        found.append(names["image_features"].grad)
    assert torch.equal(*found)


def test_a_weight_moves_linearly_over_the_phase():
    terms = WeightedSum({"contrast": specs.Term(weight=2.0, end_weight=0.0, loss=specs.InfoNCE())})
    names = features()
    whole = float(terms(names, Context(0.0, 0, 1, torch.Generator())).value)
    assert float(terms(names, Context(0.75, 0, 1, torch.Generator())).value) == pytest.approx(whole / 4)


def test_a_missing_name_is_one_line_with_the_need():
    terms = WeightedSum({"kd": specs.Term(loss=specs.FeatureCosine(teacher="big"))})
    with pytest.raises(ModelError, match=r"objective 'kd' needs 'big.image_features'") as caught:
        terms.verify(features())
    assert "\n" not in str(caught.value)
