"""Matched patches and words: by hand, against loops and brute force, the relaxation's bound, and its limits."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from data.errors import ModelError
from training import specs, surgeries
from training.objectives import Context, build_objective, tiles
from training.objectives.token_matching import BEST, assigned, matched_similarities
from training.specs import Tokens
from training.surgeries.base import random_inputs
from training.towers import create_towers

ALONE = Context(0.0, 0, 1, torch.Generator())
KINDS = [{"takers": "words"}, {"takers": "patches"}, {"takers": "both"}, {"matching": "exact"}]


def tokens(pairs=4, patches=5, words=6, width=3, seed=0, counts=(3, 4, 1, 2)):
    """Named tensors: the first place is the start's, then `counts` words, then nothing."""
    random = torch.Generator().manual_seed(seed)
    image, text = (
        F.normalize(torch.randn(pairs, many, width, generator=random, dtype=torch.float64), dim=-1)
        for many in (patches, words)
    )
    place = torch.arange(words)
    mask = (place > 0) & (place <= torch.tensor(counts)[:, None])
    scale = torch.tensor(4.0, dtype=torch.float64)
    return {"image_tokens": image, "text_tokens": text, "text_mask": mask, "logit_scale": scale}


def learned(loss, names):
    leaves = {key: v.clone().requires_grad_() if v.is_floating_point() else v for key, v in names.items()}
    value = loss(leaves)
    value.backward()
    return value.detach(), [leaves[key].grad for key in ("image_tokens", "text_tokens", "logit_scale")]


def of_spec(**fields):
    objective = build_objective(specs.TokenMatching(**fields))
    return lambda names: objective(names, ALONE).value


def one_similarity(patches, words, kind):
    """Of one picture and one text (only its words), in plain loops."""
    table = patches @ words.T
    by_word = sum(table[:, w].max() for w in range(len(words))) / len(words)
    by_patch = sum(table[p].max() for p in range(len(patches))) / len(patches)
    if kind.get("matching") == "exact":
        few, many = min(table.shape), max(table.shape)
        short = table if len(patches) <= len(words) else table.T
        return max(sum(short[a, b] for a, b in enumerate(order)) for order in permutations(range(many), few)) / few
    return {"words": by_word, "patches": by_patch, "both": (by_word + by_patch) / 2}[kind["takers"]]


def written_out(kind):
    def loss(names):
        pairs = range(len(names["image_tokens"]))
        table = torch.stack([
            torch.stack([
                one_similarity(names["image_tokens"][i], names["text_tokens"][j][names["text_mask"][j]], kind)
                for j in pairs
            ]) for i in pairs
        ])  # fmt: skip
        logits, target = names["logit_scale"] * table, torch.arange(len(table))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return loss


@pytest.mark.parametrize("counts", [(3, 4, 1, 2), (5, 5, 5, 4)])
@pytest.mark.parametrize("patches", [2, 5])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_the_loops_and_the_brute_force(kind, patches, counts):
    names = tokens(patches=patches, counts=counts)
    value, gradients = learned(of_spec(**kind), names)
    expected, by_autograd = learned(written_out(kind), names)
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients, by_autograd, atol=1e-6, rtol=0)


def test_two_patches_and_two_words_by_hand():
    similarity = torch.tensor([[0.9, 0.8], [0.1, 0.5]])[None, :, None, :]  # both words like the first patch
    is_word = torch.ones(1, 2, dtype=torch.bool)
    found = {takers: float(match(similarity, is_word)) for takers, match in BEST.items()}
    assert found == pytest.approx({"words": (0.9 + 0.8) / 2, "patches": (0.9 + 0.5) / 2, "both": (0.85 + 0.7) / 2})
    assert float(assigned(similarity, is_word)) == pytest.approx((0.9 + 0.5) / 2)  # not 0.8 + 0.1


@pytest.mark.parametrize(("takers", "patches", "counts"), [("words", 5, (3, 4, 1, 5)), ("patches", 2, (3, 4, 2, 5))])
def test_relaxed_is_never_below_exact(takers, patches, counts):
    for seed in range(20):
        names = tokens(patches=patches, counts=counts, seed=seed)
        given = names["image_tokens"], names["text_tokens"], names["text_mask"]
        gap = matched_similarities(*given, BEST[takers]) - matched_similarities(*given, assigned)
        assert gap.min() > -1e-12
        assert gap.max() > 1e-3  # the control: they are not the same thing


def test_they_are_equal_where_no_two_words_want_one_patch():
    patches = torch.eye(6)[None, :4]
    words = F.normalize(patches[:, [2, 0, 3]] + 0.05 * torch.eye(6)[[4, 5, 4]], dim=-1)
    given = patches, words, torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(matched_similarities(*given, BEST["words"]), matched_similarities(*given, assigned))
    crowded = words[:, [0, 0, 2]]
    relaxed, exact = (matched_similarities(patches, crowded, given[2], match) for match in (BEST["words"], assigned))
    assert float(relaxed - exact) > 0.1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_patch_and_one_word_are_info_nce(kind):
    names = tokens(patches=1, words=2, counts=(1, 1, 1, 1))
    plain = {
        "image_features": names["image_tokens"][:, 0], "text_features": names["text_tokens"][:, 1],
        "logit_scale": names["logit_scale"],
    }  # fmt: skip
    expected = build_objective(specs.InfoNCE())(plain, ALONE).value
    torch.testing.assert_close(of_spec(**kind)(names), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_only_words_matter(kind):
    names = tokens()
    noise = names["text_tokens"] + ~names["text_mask"][..., None] * 9.0
    assert torch.equal(of_spec(**kind)({**names, "text_tokens": noise}), of_spec(**kind)(names))
    noise = names["text_tokens"] + names["text_mask"][..., None] * 9.0
    assert not torch.equal(of_spec(**kind)({**names, "text_tokens": noise}), of_spec(**kind)(names))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_text_without_words_is_like_nothing(kind):
    for counts in ((3, 0, 1, 2), (0, 0, 0, 0)):
        value, gradients = learned(of_spec(**kind), tokens(counts=counts))
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)
    assert float(value) == pytest.approx(float(torch.log(torch.tensor(4.0))))  # all alike: chance


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_slices_and_row_order_do_not_matter(kind, monkeypatch):
    names, order = tokens(), torch.tensor([2, 0, 3, 1])
    moved = {key: value[order] if value.ndim else value for key, value in names.items()}
    whole = learned(of_spec(**kind), names)
    torch.testing.assert_close(of_spec(**kind)(moved), whole[0], atol=1e-12, rtol=0)
    monkeypatch.setitem(tiles.EDGES, "cpu", 5)  # two pictures at a time, which are computed again going backwards
    torch.testing.assert_close(learned(of_spec(**kind), names), whole, atol=1e-12, rtol=0)


def test_a_fixed_scale_is_not_learnt():
    value, gradients = learned(of_spec(scale=4.0), tokens())
    assert gradients[2] is None
    torch.testing.assert_close(value, of_spec()(tokens()), atol=1e-12, rtol=0)
    assert "logit_scale" not in build_objective(specs.TokenMatching(scale=4.0)).needs


def test_the_surgery_tells_tokens_and_leaves_the_features(world):
    plain = create_towers(world.TINY).eval()
    changed, checks = surgeries.apply(Tokens(), plain, {})
    assert all(check.holds for check in checks)
    inputs = random_inputs(plain)
    inputs["text"][:, 4:] = torch.tensor([49407, 0, 0, 0])
    with torch.no_grad():
        before, after = plain(inputs), changed.eval()(inputs)
    assert set(after) - set(before) == {"image_tokens", "text_tokens", "text_mask"}
    assert after["text_mask"][0].tolist() == [False, True, True, True, False, False, False, False]
    assert after["image_tokens"].shape == (4, 4, 16)  # 2 x 2 patches
    for name in ("image_tokens", "text_tokens"):
        torch.testing.assert_close(after[name].norm(dim=-1), torch.ones(after[name].shape[:2]))
    # a caption's feature is read at its end token, from the same states through the same projection
    torch.testing.assert_close(after["text_tokens"][:, 4], after["text_features"])
    assert changed.parameter_count() == plain.parameter_count()


def test_towers_without_patches_are_refused(world):
    resnet = {**world.TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
    with pytest.raises(ModelError, match="surgery `tokens`: needs open_clip's own ViT") as caught:
        surgeries.apply(Tokens(), create_towers(resnet), {})
    assert "\n" not in str(caught.value)
