"""Masked words: which are hidden, what may be seen of them, what the picture adds, and that nothing of it stays."""

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

from data.errors import ModelError
from training import specs, surgeries
from training.objectives import Context, build_objective, tiles
from training.specs import MaskedLanguage
from training.surgeries.base import random_inputs
from training.surgeries.masked_language import NO_TARGET, mask_words, mixed, uniform
from training.towers import create_towers, load_towers, save_towers

ALONE = Context(0.0, 0, 1, torch.Generator())
STEPS = 90
WORDS = 62  # of a vocabulary of 64: start is 62, end is 63


def small(world, layers=2):
    return {**world.TINY, "text_cfg": {**world.TINY["text_cfg"], "vocab_size": WORDS + 2, "layers": layers}}


def decoder(world, **fields):
    towers, checks = surgeries.apply(MaskedLanguage(**fields), create_towers(small(world)), {})
    assert all(check.holds for check in checks)
    return towers.eval(), checks


def captions(pairs=20_000, length=8):
    """Start, five words, end, nothing; the mask of its words."""
    ids = torch.randint(1, WORDS, (pairs, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 6], ids[:, 7] = WORDS, WORDS + 1, 0
    place = torch.arange(length)
    return ids, ((place > 0) & (place < 6)).expand(pairs, length)


def test_the_draws_are_split_mix():
    assert int(mixed(torch.tensor(0))) & (1 << 64) - 1 == 0xE220A8397B1DCDAF  # its first number from seed 0
    drawn = uniform(torch.arange(2000)[:, None], torch.arange(8), seed=3, stream=1)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    counts = torch.histc(drawn, 10, 0, 1)
    assert (counts / drawn.numel() - 0.1).abs().max() < 0.01


def test_fifteen_in_a_hundred_words_and_of_them_eighty_ten_ten():
    ids, is_word = captions()
    found = mask_words(ids, is_word, torch.arange(len(ids)), WORDS, 0.15, seed=0)
    is_chosen = found.target != NO_TARGET
    assert float(is_chosen.sum() / is_word.sum()) == pytest.approx(0.15, abs=0.01)
    assert float(found.is_hidden.sum() / is_chosen.sum()) == pytest.approx(0.8, abs=0.02)
    changed = found.ids != ids
    assert float(changed.sum() / is_chosen.sum()) == pytest.approx(0.1 * (WORDS - 2) / (WORDS - 1), abs=0.02)
    assert not (changed & found.is_hidden).any()
    assert torch.equal(found.target[is_chosen], ids[is_chosen])
    assert not is_chosen[~is_word].any()
    assert torch.equal(found.ids[~is_word], ids[~is_word])
    assert set(found.ids[changed].tolist()) == set(range(1, WORDS))


def test_the_mask_is_a_function_of_seed_position_and_column():
    ids, is_word = captions(64)
    position = torch.arange(64) + 10**12
    whole = mask_words(ids, is_word, position, WORDS, 0.5, seed=1)
    parts = [
        mask_words(ids[rows], is_word[rows], position[rows], WORDS, 0.5, 1) for rows in (slice(0, 7), slice(7, 64))
    ]
    assert all(torch.equal(one, torch.cat(two)) for one, two in zip(whole, zip(*parts, strict=True), strict=True))
    for other in (
        mask_words(ids, is_word, position, WORDS, 0.5, seed=2), mask_words(ids, is_word, position + 64, WORDS, 0.5, 1)
    ):  # fmt: skip
        assert not torch.equal(other.is_hidden, whole.is_hidden)
    assert not torch.equal(whole.is_hidden[:, 1], whole.is_hidden[:, 2])


def test_a_hidden_word_cannot_be_seen_and_a_later_one_neither(world):
    towers, _ = decoder(world, mask_fraction=0.5)
    inputs = random_inputs(towers, 32) | {"position": torch.arange(32)}
    with torch.no_grad():
        states, target = (towers(inputs)[name] for name in ("masked_states", "masked_targets"))
    is_word = torch.zeros_like(inputs["text"], dtype=torch.bool)
    is_word[:, 1:-1] = True
    masked = mask_words(inputs["text"], is_word, inputs["position"], WORDS, 0.5, 0)
    assert torch.equal(target, masked.target)
    other = torch.where(inputs["text"] == 5, 6, 5)
    for hidden, same in ((masked.is_hidden, True), (is_word & (target == NO_TARGET), False)):
        with torch.no_grad():
            again = towers({**inputs, "text": torch.where(hidden, other, inputs["text"])})["masked_states"]
        assert torch.equal(again, states) == same
    last = inputs["text"].clone()
    last[:, 5] = torch.where(last[:, 5] == 5, 6, 5)
    with torch.no_grad():
        assert torch.equal(towers({**inputs, "text": last})["masked_states"][:, :5], states[:, :5])


def test_it_starts_without_the_picture_and_learns_to_look(world):
    towers, checks = decoder(world)
    assert {check.name: check.value for check in checks}["the decoder starts without the picture"] == 0
    inputs = random_inputs(towers) | {"position": torch.arange(4)}
    torch.nn.init.normal_(towers.model.aids["masked_language"].fusions[0].attention.out_proj.weight)
    with torch.no_grad():
        one, two = (
            towers({**inputs, "image": image})["masked_states"] for image in (inputs["image"], -inputs["image"])
        )
    assert (one - two).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_logits_begin_with_variance_one_whatever_the_embedding(world, scale):
    plain = create_towers(small(world))
    plain.model.token_embedding.weight.data.mul_(scale)
    towers, _ = surgeries.apply(MaskedLanguage(), plain, {})
    with torch.no_grad():
        outputs = towers.eval()(random_inputs(towers) | {"position": torch.arange(4)})
    logits = outputs["masked_states"] @ outputs["word_embedding"].T
    assert float(logits.detach().std()) == pytest.approx(1, abs=0.2)


def test_the_loss_is_the_mean_over_masked_words(monkeypatch):
    random = torch.Generator().manual_seed(0)
    states, embedding = (torch.randn(*size, 4, generator=random, dtype=torch.float64) for size in ((3, 5), (9,)))
    target = torch.full((3, 5), NO_TARGET)
    target[0, 1], target[0, 2], target[2, 4] = 7, 0, 3
    expected = -sum((states[i] @ embedding.T).log_softmax(0)[w] for i, w in [((0, 1), 7), ((0, 2), 0), ((2, 4), 3)]) / 3
    objective = build_objective(specs.MaskedWords())
    found = []
    for edge in (1024, 2):
        monkeypatch.setitem(tiles.EDGES, "cpu", edge)
        leaves = [value.clone().requires_grad_() for value in (states, embedding)]
        names = {"masked_states": leaves[0], "masked_targets": target, "word_embedding": leaves[1]}
        value, parts = objective(names, ALONE)
        assert float(value.detach()) == pytest.approx(float(expected), abs=1e-12)
        assert int(parts["words"]) == 3
        value.backward()
        found.append([leaf.grad for leaf in leaves])
    flat = [value.clone().requires_grad_() for value in (states, embedding)]
    F.cross_entropy((flat[0] @ flat[1].T).flatten(0, 1), target.flatten(), ignore_index=NO_TARGET).backward()
    for gradients in found:
        torch.testing.assert_close(gradients, [leaf.grad for leaf in flat], atol=1e-12, rtol=0)


def test_without_a_masked_word_the_loss_is_nothing():
    states = torch.randn(2, 3, 4, requires_grad=True)
    names = {"masked_states": states, "masked_targets": torch.full((2, 3), NO_TARGET)}
    value = build_objective(specs.MaskedWords())({**names, "word_embedding": torch.randn(9, 4)}, ALONE).value
    value.backward()
    assert float(value.detach()) == 0
    assert not states.grad.any()


def told_with(world, fusion_layers, shuffled=False):
    """Loss on unseen noise after training on pictures of four brightnesses, whose name is a caption's second word."""
    changes = MaskedLanguage(fusion_layers=fusion_layers, mask_fraction=0.5)
    towers, _ = surgeries.apply(changes, create_towers(small(world, layers=1)), {})
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(towers.parameters(), lr=1e-2)
    objective, losses = build_objective(specs.MaskedWords()), []
    for step in range(STEPS):
        shade = torch.randint(0, 4, (32,), generator=random)
        shown = shade[torch.randperm(32, generator=random)] if shuffled else shade
        image = (shown - 1.5)[:, None, None, None] + 0.1 * torch.randn(32, 3, 16, 16, generator=random)
        text = torch.tensor([WORDS, 5, 0, WORDS + 1, 0, 0, 0, 0]).repeat(32, 1)
        text[:, 2] = 10 + shade
        outputs = towers({"image": image, "text": text, "position": torch.arange(32) + 32 * step})
        value = objective(outputs, ALONE).value
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value.detach()))
    return sum(losses[-20:]) / 20


def test_the_picture_tells_what_the_words_do_not(world):
    blind, fused, torn = told_with(world, 0), told_with(world, 1), told_with(world, 1, shuffled=True)
    unknown = math.log(4) / 2 * 0.9  # half of the masked words are shades, and a tenth of them is left to be seen
    assert blind > 0.9 * unknown
    assert fused < 0.6 * blind
    assert torn > 0.9 * unknown  # the control: another pair's picture tells nothing


def test_nothing_of_it_stays(world, tmp_path):
    plain = create_towers(small(world))
    towers, _ = surgeries.apply(MaskedLanguage(), plain, {})
    towers, _ = surgeries.apply(specs.Tokens(), towers, {})
    assert towers.parameter_count() > plain.parameter_count()
    save_towers(towers, str(tmp_path))
    again = load_towers(str(tmp_path))
    assert again.parameter_count() == plain.parameter_count()
    assert again.layout == ()
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert str(model) == str(plain.eval().model)
    inputs = random_inputs(plain)
    with torch.no_grad():
        expected, found = plain(inputs), again(inputs)
        theirs = model.encode_text(inputs["text"], normalize=True)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    torch.testing.assert_close(theirs, expected["text_features"])


def test_it_stays_where_it_is_kept(world, tmp_path):
    towers, _ = decoder(world, keep=True)
    save_towers(towers, str(tmp_path))
    inputs = random_inputs(towers) | {"position": torch.arange(4)}
    with torch.no_grad():
        assert torch.equal(load_towers(str(tmp_path))(inputs)["masked_states"], towers(inputs)["masked_states"])


def test_pairs_outside_a_run_are_not_masked(world):
    towers, _ = decoder(world)
    assert "masked_states" not in towers(random_inputs(towers))


def test_what_a_second_reading_exposes_is_forgotten(world):
    dense = create_towers(small(world))
    mixed_towers, _ = surgeries.apply(specs.Upcycle(experts=("init",) * 2), dense, {"init": dense.model.state_dict()})
    towers, _ = surgeries.apply(MaskedLanguage(), mixed_towers, {})
    inputs = random_inputs(towers) | {"position": torch.arange(4)}
    with torch.no_grad():
        outputs = [towers.eval()(inputs) for _ in range(2)]
    assert outputs[1]["text_router_probabilities"].shape == outputs[0]["text_router_probabilities"].shape
    assert outputs[1]["image_router_probabilities"].shape == (4, 2, 5, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion_layers": 3}, "fusion_layers 3 is above the text tower's 2 blocks"),
        ({"num_heads": 5}, "num_heads 5 does not divide the text tower's width 32"),
    ],
)
def test_what_does_not_fit_is_refused(world, fields, message):
    with pytest.raises(ModelError, match=message) as caught:
        surgeries.apply(MaskedLanguage(**fields), create_towers(small(world)), {})
    assert "\n" not in str(caught.value)


def test_another_text_tower_is_refused(world):
    towers = create_towers(small(world))
    towers.model.text_pool_type = "last"
    with pytest.raises(ModelError, match="needs open_clip's own causal text tower"):
        surgeries.apply(MaskedLanguage(), towers, {})
