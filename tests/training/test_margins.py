"""Angular margins to classes and captions, against the formulas written with angles, and in their limits."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from data.errors import ModelError
from training import specs, surgeries
from training.objectives import Context, build_objective
from training.objectives.margins import with_margin
from training.towers import create_towers, load_towers, save_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
LABELS = torch.tensor([2, 0, -1, 4, 2, 1, -1, 3])
SLOTS = ("text_features", "text_features.second", "text_features.third")


def context(rank=0, world_size=1):
    return Context(0.0, rank, world_size, torch.Generator())


def unit(rows, width=6, seed=0):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def names(grad=False):
    weights = 3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(9)).double()
    found = {"image_features": unit(8), "class_weights": weights}
    found |= {name: unit(8, seed=number + 1) for number, name in enumerate(SLOTS)}
    return {**{name: value.requires_grad_(grad) for name, value in found.items()}, "label": LABELS}


def arc_formula(named, scale, margin):
    """-log softmax over classes of s cos(angle), with s cos(angle + m) for the own class; mean over labelled pairs."""
    losses = []
    weights = named["class_weights"] / named["class_weights"].norm(dim=1, keepdim=True)
    for image, label in zip(named["image_features"], named["label"].tolist(), strict=True):
        if label >= 0:
            angles = torch.acos(weights @ image)
            own = torch.exp(scale * torch.cos(angles[label] + margin))
            others = sum(torch.exp(scale * torch.cos(angles[c])) for c in range(len(weights)) if c != label)
            losses.append(-torch.log(own / (own + others)))
    return torch.stack(losses).mean()


def caption_formula(named, scale, margin, slots):
    """Section 14's MCArcMargin: a caption of the picture against all captions of the others."""
    image, captions = named["image_features"], torch.stack([named[slot] for slot in slots], dim=1)
    terms = []
    for i in range(len(image)):
        angles = torch.acos(torch.einsum("d,jkd->jk", image[i], captions))
        others = sum(torch.exp(scale * torch.cos(angles[j])).sum() for j in range(len(image)) if j != i)
        own = torch.exp(scale * torch.cos(angles[i] + margin))
        terms.append(-torch.log(own / (own + others)))
    return torch.stack(terms).mean()


def compare(value, expected, mine, reference, keys):
    assert torch.allclose(value, expected, atol=1e-6, rtol=0)
    value.backward()
    expected.backward()
    for key in keys:
        assert torch.allclose(mine[key].grad, reference[key].grad, atol=1e-6, rtol=0), key


@pytest.mark.parametrize(("scale", "margin"), [(30.0, 0.3), (8.0, 0.0), (5.0, 0.7)])
def test_arc_margin_is_the_formula_with_angles_and_its_gradients(scale, margin):
    mine, reference = names(grad=True), names(grad=True)
    value = build_objective(specs.ArcMargin(scale=scale, margin=margin))(mine, context()).value
    expected = arc_formula(reference, scale, margin)
    compare(value, expected, mine, reference, ("image_features", "class_weights"))


def test_margin_0_is_the_plain_softmax_bit_for_bit():
    named = names()
    is_labelled = LABELS >= 0
    cosines = named["image_features"] @ F.normalize(named["class_weights"], dim=1).T
    losses = F.cross_entropy(30.0 * cosines, LABELS.clamp_min(0), reduction="none")
    value = build_objective(specs.ArcMargin(scale=30.0, margin=0.0))(named, context()).value
    assert torch.equal(value, (losses * is_labelled).sum() / is_labelled.sum())


def test_the_loss_rises_with_the_margin():
    losses = [
        float(build_objective(specs.ArcMargin(margin=margin))(names(), context()).value) for margin in (0, 0.1, 0.3, 1)
    ]
    assert losses == sorted(set(losses))


def test_the_margin_by_hand():
    at_60_degrees = torch.tensor([0.5], dtype=torch.float64)
    assert float(with_margin(at_60_degrees, math.pi / 6)) == pytest.approx(0.0, abs=1e-12)  # cos 90
    assert float(with_margin(at_60_degrees, math.pi / 3)) == pytest.approx(-0.5)  # cos 120


def test_the_margined_cosine_falls_with_the_angle_up_to_180_degrees_and_has_a_slope_everywhere():
    angle = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    cosine = angle.cos().requires_grad_()
    value = with_margin(cosine, 0.5)
    assert (value.diff() < 0).all()
    beyond = angle > math.pi - 0.5
    assert torch.allclose(value[beyond], angle.cos()[beyond] - 0.5 * math.sin(0.5), atol=1e-12)
    value.sum().backward()
    assert cosine.grad.isfinite().all()
    assert (cosine.grad > 0).all()


def test_pairs_without_label_take_no_part():
    named = names()
    kept = LABELS >= 0
    fewer = {**named, "image_features": named["image_features"][kept], "label": LABELS[kept]}
    objective = build_objective(specs.ArcMargin())
    assert torch.allclose(objective(named, context()).value, objective(fewer, context()).value, atol=1e-12)
    nothing = {**names(grad=True), "label": torch.full((8,), -1)}
    value = objective(nothing, context()).value
    value.backward()
    assert float(value.detach()) == 0
    assert not nothing["image_features"].grad.any()


def test_a_label_beyond_the_classes_is_one_line_with_the_fix():
    named = {**names(), "label": LABELS + 1}
    with pytest.raises(ModelError, match=r"label 5 is beyond the 5 classes .* raise its `classes` to 6") as caught:
        build_objective(specs.ArcMargin())(named, context())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slots", [(), ("second",), ("second", "third")])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_caption_margin_is_the_formula_with_angles_and_its_gradients(slots, margin):
    mine, reference, used = names(grad=True), names(grad=True), SLOTS[: 1 + len(slots)]
    spec = specs.CaptionArcMargin(texts=slots, scale=12.0, margin=margin)
    value = build_objective(spec)(mine, context()).value
    compare(value, caption_formula(reference, 12.0, margin, used), mine, reference, ("image_features", *used))


def test_one_caption_and_margin_0_are_half_of_info_nce():
    named = names()
    value = build_objective(specs.CaptionArcMargin(scale=30.0, margin=0.0))(named, context()).value
    contrast = build_objective(specs.InfoNCE(scale=30.0))(named, context())
    assert float(value) == pytest.approx(float(contrast.parts["i2t"]), abs=1e-6)


def test_captions_of_the_same_picture_are_no_negatives():
    named = names()
    named["text_features.second"] = named["text_features"]
    twice = build_objective(specs.CaptionArcMargin(texts=("second",), scale=400.0, margin=0.0))
    named["image_features"] = named["text_features"]
    assert float(twice(named, context()).value) < 1e-9  # as negatives the twins would cost ln 2 each


def test_a_lone_picture_has_nothing_to_be_told_from():
    named = {name: value[:1] for name, value in names().items()}
    named["image_features"] = named["image_features"].clone().requires_grad_()
    value = build_objective(specs.CaptionArcMargin())(named, context()).value
    value.backward()
    assert float(value.detach()) == 0
    assert not named["image_features"].grad.any()


@pytest.mark.parametrize("spec", [specs.ArcMargin(), specs.CaptionArcMargin(texts=("second",))])
def test_row_order_does_not_matter_and_wrong_partners_do(spec):
    named, order = names(), torch.tensor([3, 1, 5, 0, 2, 4, 7, 6])
    objective = build_objective(spec)
    moved = {name: value if name == "class_weights" else value[order] for name, value in named.items()}
    value = objective(named, context()).value
    assert torch.allclose(objective(moved, context()).value, value, atol=1e-12)
    mismatched = {**moved, "image_features": named["image_features"]}
    assert not torch.allclose(objective(mismatched, context()).value, value, atol=1e-3)


RANKED = {"arc": specs.ArcMargin(), "captions": specs.CaptionArcMargin(texts=("second", "third"))}
WEIGHTS = "class_weights"


def on_ranks(rank, world_size, folder):
    for label, spec in RANKED.items():
        whole = names()
        mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
        named = {key: value if key == WEIGHTS else value[mine] for key, value in whole.items()}
        named = {key: value.clone().requires_grad_(key != "label") for key, value in named.items()}
        value = build_objective(spec)(named, context(rank, world_size)).value
        value.backward()
        found = {key: value.grad for key, value in named.items() if value.grad is not None}
        torch.save((value.detach(), found), folder / f"{label}-{rank}.pt")


@pytest.mark.parametrize("label", RANKED)
def test_two_ranks_have_the_mean_and_gradients_of_one(label, tmp_path):
    ranks.together(on_ranks, 2, tmp_path / "store", tmp_path)
    parts = [torch.load(tmp_path / f"{label}-{rank}.pt") for rank in range(2)]
    named = names(grad=True)
    value = build_objective(RANKED[label])(named, context()).value
    value.backward()
    assert torch.allclose((parts[0][0] + parts[1][0]) / 2, value, atol=1e-9)
    for key in parts[0][1]:
        both = [part[1][key] for part in parts]
        whole = (both[0] + both[1]) / 2 if key == WEIGHTS else torch.cat(both) / 2
        assert torch.allclose(whole, named[key].grad, atol=1e-9), key


def test_the_classifier_leaves_the_towers_and_is_left_out_of_the_result(world, tmp_path):
    towers = create_towers(world.TINY).eval()
    with_classes, _ = surgeries.apply(specs.Classifier(classes=7, seed=3), towers, {})
    batch = {"image": torch.zeros(2, 3, 16, 16), "text": torch.ones(2, 8, dtype=torch.int64)}
    before, after = towers(batch), with_classes.eval()(batch)
    assert after["class_weights"].shape == (7, 16)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    save_towers(with_classes, str(tmp_path))
    assert load_towers(str(tmp_path)).model.state_dict().keys() == towers.model.state_dict().keys()


def test_kept_class_weights_come_back_from_disk_and_depend_on_the_seed_alone(world, tmp_path):
    made = [
        surgeries.apply(specs.Classifier(classes=7, seed=seed, keep=True), create_towers(world.TINY), {})[0]
        for seed in (3, 3, 4)
    ]
    one, same, other = (towers.model.state_dict()["aids.classifier.weight"] for towers in made)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    save_towers(made[0], str(tmp_path))
    assert torch.equal(load_towers(str(tmp_path)).model.state_dict()["aids.classifier.weight"], one)


def test_a_second_classifier_is_refused(world):
    towers, _ = surgeries.apply(specs.Classifier(classes=7), create_towers(world.TINY), {})
    with pytest.raises(ModelError, match="have class weights already; remove the surgery"):
        surgeries.apply(specs.Classifier(classes=7), towers, {})
