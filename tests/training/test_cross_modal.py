"""DCLIP's teacher: the block against the equations written pair by pair, what is left out, crops, and the surgery."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from data.errors import ModelError
from training import specs, surgeries
from training.surgeries import cross_modal
from training.surgeries.cross_modal import Fusion, crops, pooled, region_tokens
from training.towers import create_towers, load_towers, save_towers

WIDTH, HEADS = 8, 2
REGIONS = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 1]], dtype=torch.bool)
WORDS = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)


def fusion(**changes):
    return Fusion(specs.CrossModal(num_heads=HEADS, **changes), WIDTH).double()


def tokens(grad=False):
    random = torch.Generator().manual_seed(1)
    region, word = (torch.randn(*there.shape, WIDTH, generator=random).double() for there in (REGIONS, WORDS))
    region, word = region * REGIONS[..., None], word * WORDS[..., None]
    return region.requires_grad_(grad), word.requires_grad_(grad)


def attended(block, own, other):
    """LN(X + MHA(X, Y, Y)) of one pair, head by head, from the weights' definition."""
    attention, width = block.attention, own.shape[1] // HEADS
    query, key, value = (
        rows @ weight.T + bias
        for rows, weight, bias in zip(
            (own, other, other), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
        )
    )
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        heads.append(torch.exp(scores) / torch.exp(scores).sum(dim=1, keepdim=True) @ value[:, part])
    summed = own + torch.cat(heads, dim=1) @ attention.out_proj.weight.T + attention.out_proj.bias
    centred = summed - summed.mean(dim=1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(dim=1, keepdim=True) + block.norm.eps)
    return scaled * block.norm.weight + block.norm.bias


def pool_formula(rows, temperature):
    mean = rows.mean(dim=0)
    weights = torch.exp(rows @ mean / rows.norm(dim=1) / mean.norm() / temperature)
    return (weights / weights.sum()) @ rows


def formula(block, region, word, region_there, word_there):
    """Section 10's g of every pair; what is not there is not in the sums at all."""
    found, temperature = [], block.spec.pool_temperature
    for number in range(len(region)):
        r, w = region[number][region_there[number]], word[number][word_there[number]]
        if block.words is None:
            g = pool_formula(attended(block.regions, r, r), temperature)
        else:
            sides = attended(block.words, w, r), attended(block.regions, r, w)
            g = sum(pool_formula(side, temperature) for side in sides) / 2
        found.append(g / g.norm())
    return torch.stack(found)


@pytest.mark.parametrize("parts", ["both", "image"])
@pytest.mark.parametrize("padding", ["masked", "zero"])
@pytest.mark.parametrize("temperature", [2.0, 0.1])
def test_the_fused_vector_is_the_formula_with_its_gradients(parts, padding, temperature):
    there = (REGIONS, WORDS) if padding == "masked" else (torch.ones_like(REGIONS), torch.ones_like(WORDS))
    found = []
    for compute in (Fusion.fused, formula):
        block, (region, word) = fusion(parts=parts, pool_temperature=temperature), tokens(grad=True)
        given = (block, region, there[0], word, there[1]) if compute is Fusion.fused else (block, region, word, *there)
        value = compute(*given)
        (value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum().backward()
        inputs = [region.grad] if parts == "image" else [region.grad, word.grad]
        found.append([value.detach(), *inputs, *(parameter.grad for parameter in block.parameters())])
    for mine, expected in zip(*found, strict=True):
        assert_close(mine, expected, atol=1e-9, rtol=1e-9)
        assert mine.any()


def test_one_region_and_one_word_by_hand():
    block = fusion()
    for side in (block.regions, block.words):
        torch.nn.init.zeros_(side.attention.out_proj.weight)
    row = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1]).double()  # mean 0, variance 1: its own LayerNorm
    other = torch.tensor([1.0, 1, -1, -1, 1, 1, -1, -1]).double()
    there = torch.ones(1, 1, dtype=torch.bool)
    value = block.fused(3 * row[None, None], there, 5 * other[None, None], there)
    expected = torch.tensor([1.0, 0, 0, -1, 1, 0, 0, -1]).double() / 2  # (row + other) / 2 at length 1
    assert_close(value[0], expected, atol=1e-5, rtol=0)


def test_pooling_weighs_by_the_cosine_to_the_mean():
    rows, there = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]), torch.ones(1, 2, dtype=torch.bool)
    weights = torch.tensor([0.6, 0.8]).softmax(0)  # cosines to (1.5, 2)
    assert_close(pooled(rows, there, 1.0)[0], torch.tensor([3 * weights[0], 4 * weights[1]]))
    assert_close(pooled(rows, there, 1e6)[0], torch.tensor([1.5, 2.0]))
    assert_close(pooled(rows, torch.tensor([[True, False]]), 1.0)[0], torch.tensor([3.0, 0.0]))
    assert not pooled(rows, torch.zeros(1, 2, dtype=torch.bool), 1.0).any()


def more_places(rows, there, count):
    return F.pad(rows, (0, 0, 0, count)), F.pad(there, (0, count))


@pytest.mark.parametrize("parts", ["both", "image"])
def test_empty_places_change_nothing_masked_and_something_as_zeros(parts):
    region, word = tokens()
    for padding in ("masked", "zero"):
        block, is_zero = fusion(parts=parts, padding=padding), padding == "zero"  # then every place counts
        found = []
        for count in (0, 4):
            (region_more, region_there), (word_more, word_there) = (
                more_places(rows, there, count) for rows, there in ((region, REGIONS), (word, WORDS))
            )
            found.append(block.fused(region_more, region_there | is_zero, word_more, word_there | is_zero))
        difference = float((found[0] - found[1]).detach().abs().max())
        assert difference < 1e-12 if padding == "masked" else difference > 1e-3


@pytest.mark.parametrize("parts", ["both", "image"])
def test_a_pair_without_regions_or_words_gives_numbers(parts):
    block, (region, word) = fusion(parts=parts), tokens()
    region_there, word_there = REGIONS.clone(), WORDS.clone()
    region_there[0], word_there[1], region_there[2], word_there[2] = False, False, False, False
    region, word = (region * region_there[..., None]).requires_grad_(), (word * word_there[..., None]).requires_grad_()
    value = block.fused(region, region_there, word, word_there)
    loss = (20 * value @ F.normalize(torch.ones_like(value), dim=1).T).logsumexp(dim=1).sum()
    loss.backward()
    found = [value, region.grad, word.grad, *(parameter.grad for parameter in block.parameters())]
    assert all(part is None or part.isfinite().all() for part in found)
    assert not value[2].any()
    if parts == "both":
        alone = pool_formula(block.words.norm(word[0][WORDS[0]]), 2.0)
        assert_close(value[0], F.normalize(alone, dim=0), atol=1e-9, rtol=0)


def test_pairs_do_not_see_each_other_and_only_the_full_teacher_sees_the_caption():
    region, word = tokens()
    order = torch.tensor([2, 0, 3, 1])
    for parts in ("both", "image"):
        block = fusion(parts=parts)
        value = block.fused(region, REGIONS, word, WORDS)
        moved = block.fused(region[order], REGIONS[order], word[order], WORDS[order])
        assert_close(moved, value[order], atol=1e-12, rtol=0)
        wrong = block.fused(region, REGIONS, word[order], WORDS[order])
        assert torch.equal(wrong, value) == (parts == "image")


def test_the_whole_picture_is_its_own_crop_and_a_part_is_interpolated():
    size = 8
    ramp = torch.arange(size, dtype=torch.float32).expand(1, 3, size, size).contiguous()
    whole = torch.tensor([[0.0, 0, 0, size, size]])
    assert torch.equal(crops(ramp, whole), ramp)
    left, right = 2.0, 6.0
    part = crops(ramp, torch.tensor([[0, left, 1.0, right, 7.0]]))[0, 0]
    expected = left + (torch.arange(size) + 0.5) * (right - left) / size - 0.5  # pixel k is at k + 0.5
    assert_close(part, expected.expand(size, size))


@pytest.fixture
def towers(world):
    return create_towers(world.TINY).eval()


def test_regions_are_embedded_by_the_image_tower_without_gradient(towers, monkeypatch):
    image = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    half, whole = [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]
    boxes = torch.tensor([[whole, half], [half, [0.0] * 4], [[0.0] * 4] * 2])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    found = region_tokens(towers.model, image, boxes, valid, 16)
    assert not found.requires_grad
    assert_close(found[0, 0], towers.model.encode_image(image)[0].detach(), atol=1e-6, rtol=0)
    assert not found[~valid].any()
    assert (found[0, 0] - found[0, 1]).abs().max() > 1e-3
    monkeypatch.setattr(cross_modal, "CROPS", 1)
    assert_close(region_tokens(towers.model, image, boxes, valid, 16), found, atol=1e-6, rtol=0)
    assert not region_tokens(towers.model, image, boxes, torch.zeros_like(valid), 16).any()


def batch(towers, captions=("a red dot", "blue", "")):
    boxes = torch.tensor([[[0.0, 0, 0.5, 0.5], [0.5, 0, 1, 1]]] * 3)
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    image = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"image": image, "text": towers.tokenizer(list(captions)), "boxes": boxes, "box_valid": valid}


def test_the_surgery_leaves_the_towers_and_is_kept_unless_it_is_not(towers, tmp_path):
    spec = specs.CrossModal(num_heads=HEADS, seed=3)
    beside, (check,) = surgeries.apply(spec, towers, {})
    assert check.holds
    inputs = batch(towers)
    before, after = towers(inputs), beside.eval()(inputs)
    assert all(torch.allclose(after[name], value, atol=1e-6) for name, value in before.items())
    assert after["fused_features"].shape == (3, 16)
    assert_close(after["fused_features"][:2].norm(dim=1), torch.ones(2))
    assert not after["fused_features"][2].any()  # neither regions nor words
    save_towers(beside, str(tmp_path / "kept"))
    again = load_towers(str(tmp_path / "kept"))
    assert torch.equal(again(inputs)["fused_features"], after["fused_features"])
    dropped, _ = surgeries.apply(spec.model_copy(update={"keep": False}), towers, {})
    save_towers(dropped, str(tmp_path / "dropped"))
    assert load_towers(str(tmp_path / "dropped")).model.state_dict().keys() == towers.model.state_dict().keys()


def test_weights_depend_on_the_seed_alone_and_no_gradient_reaches_the_towers(towers):
    made = [surgeries.apply(specs.CrossModal(num_heads=HEADS, seed=seed), towers, {})[0] for seed in (3, 3, 4)]
    one, same, other = (each.eval()(batch(towers))["fused_features"] for each in made)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-3)
    one[:2].sum().backward()
    reached = {name for name, weight in made[0].model.named_parameters() if weight.grad is not None}
    assert reached
    assert all(name.startswith("aids.cross_modal.") for name in reached)


def test_without_regions_there_is_no_fused_vector(towers):
    beside, _ = surgeries.apply(specs.CrossModal(num_heads=HEADS), towers, {})
    assert "fused_features" not in beside({name: batch(towers)[name] for name in ("image", "text")})


RESNET = {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}


@pytest.mark.parametrize(
    ("changes", "spec", "words"),
    [
        ({}, specs.CrossModal(num_heads=3), "num_heads 3 does not divide embed_dim 16; use 2"),
        (RESNET, specs.CrossModal(num_heads=2), "surgery `cross_modal`: needs open_clip's own ViT"),
    ],
)
def test_towers_that_cannot_have_it_are_refused_in_one_line(world, changes, spec, words):
    with pytest.raises(ModelError, match=words) as caught:
        surgeries.apply(spec, create_towers({**world.TINY, **changes}), {})
    assert "\n" not in str(caught.value)


def test_a_second_block_is_refused(towers):
    beside, _ = surgeries.apply(specs.CrossModal(num_heads=HEADS), towers, {})
    with pytest.raises(ModelError, match="have such a block already; remove the surgery"):
        surgeries.apply(specs.CrossModal(num_heads=HEADS), beside, {})
