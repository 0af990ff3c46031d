"""VR-LwF's replayed vocabulary: against the formula, in its limits, and what a vocabulary must not do."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from data.errors import ModelError
from training import specs
from training.objectives import Context, build_objective
from training.teachers.vocabulary import token_ids
from training.towers import create_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))


def context(rank=0, world_size=1):
    return Context(0.0, rank, world_size, torch.Generator())


def unit(rows, seed, width=6):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def names(new=0, old=1, texts=20):
    return {
        "image_features": unit(8, new).requires_grad_(),
        "logit_scale": torch.tensor(20.0, dtype=torch.float64, requires_grad=True),
        "old.image_features": unit(8, old),
        "old.vocabulary_features": unit(texts, 2),
    }


def replay(**options):
    return build_objective(specs.ReplayedVocabulary(teacher="old", **options))


def zscl_formula(named, temperature):
    """Section 15: T^2 * CE(softmax(o / T), log_softmax(n / T)) over the old model's texts, mean over pictures."""
    old, new = (
        named["logit_scale"] * named[key] @ named["old.vocabulary_features"].T
        for key in ("old.image_features", "image_features")
    )
    weights = (old.detach() / temperature).softmax(dim=1)
    return -(temperature**2) * (weights * (new / temperature).log_softmax(dim=1)).sum(dim=1).mean()


def reversed_formula(named):
    """Section 15's other implementation: scores (V, B), softmax over the vocabulary, -sum p_new log p_old."""
    old, new = (
        named["logit_scale"] * named["old.vocabulary_features"] @ named[key].T
        for key in ("old.image_features", "image_features")
    )
    return -(new.softmax(dim=0) * old.detach().log_softmax(dim=0)).sum() / new.shape[1]


def over_pictures(named, temperature):
    """The transposed term: each text's distribution over the pictures."""
    old, new = (
        named["logit_scale"] / temperature * named["old.vocabulary_features"] @ named[key].T
        for key in ("old.image_features", "image_features")
    )
    return -(temperature**2) * (old.detach().softmax(dim=1) * new.log_softmax(dim=1)).sum(dim=1).mean()


FORMULAS = {
    "zscl": ({}, lambda named: zscl_formula(named, 2.0)),
    "another temperature": ({"temperature": 0.7}, lambda named: zscl_formula(named, 0.7)),
    "new_to_old": ({"direction": "new_to_old", "temperature": 1.0}, reversed_formula),
    "texts_too": ({"texts_too": True}, lambda named: zscl_formula(named, 2.0) + over_pictures(named, 2.0)),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_value_and_gradients_are_the_formulas(case):
    options, formula = FORMULAS[case]
    mine, reference = names(), names()
    value, expected = replay(**options)(mine, context()).value, formula(reference)
    assert torch.allclose(value, expected, atol=1e-6, rtol=0)
    value.backward()
    expected.backward()
    for key in ("image_features", "logit_scale"):
        assert torch.allclose(mine[key].grad, reference[key].grad, atol=1e-6, rtol=0), key


def gradient_at_the_start(**options):
    named = names(new=1, old=1)
    replay(**options)(named, context()).value.backward()
    return float(named["image_features"].grad.abs().max()), float(named["logit_scale"].grad.abs())


@pytest.mark.parametrize("texts_too", [False, True])
def test_nothing_is_learnt_while_new_is_old(texts_too):
    assert max(gradient_at_the_start(texts_too=texts_too)) < 1e-12


def test_the_other_direction_sharpens_a_model_that_forgot_nothing():
    assert gradient_at_the_start(direction="new_to_old")[0] > 1e-2


def test_divergence_is_the_part_that_vanishes_at_the_start():
    parts = replay()(names(new=1, old=1), context()).parts
    assert abs(float(parts["divergence"].detach())) < 1e-12
    assert float(parts["images"].detach()) > 1e-2
    assert float(replay()(names(), context()).parts["divergence"].detach()) > 1e-2


@pytest.mark.parametrize("direction", ["old_to_new", "new_to_old"])
def test_one_text_however_often_says_nothing(direction):
    named = names()
    named["old.vocabulary_features"] = named["old.vocabulary_features"][:1].expand(20, -1)
    value = replay(direction=direction)(named, context()).value
    value.backward()
    assert float(value.detach()) == pytest.approx(4 * math.log(20))  # of a uniform distribution, times T^2
    assert named["image_features"].grad.abs().max() < 1e-12


def test_a_text_that_occurs_twice_is_seen_twice():
    named, twice = names(), names()
    twice["old.vocabulary_features"] = twice["old.vocabulary_features"].repeat(2, 1)
    once, double = (replay()(value, context()).value for value in (named, twice))
    assert float((double - once).detach()) == pytest.approx(4 * math.log(2))
    once.backward()
    double.backward()
    assert torch.allclose(named["image_features"].grad, twice["image_features"].grad, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"texts_too": True}, {"direction": "new_to_old"}])
def test_the_order_of_pictures_and_texts_does_not_matter_and_wrong_partners_do(options):
    named, order = names(), torch.tensor([3, 1, 5, 0, 2, 4, 7, 6])
    moved = {key: value[order] if key.endswith("image_features") else value for key, value in named.items()}
    moved["old.vocabulary_features"] = named["old.vocabulary_features"].flip(0)
    value = replay(**options)(named, context()).value
    assert torch.allclose(replay(**options)(moved, context()).value, value, atol=1e-12)
    mismatched = {**moved, "image_features": named["image_features"]}
    assert not torch.allclose(replay(**options)(mismatched, context()).value, value, atol=1e-3)


def test_a_teacher_of_another_width_is_refused():
    named = {**names(), "old.image_features": unit(8, 1, width=4)}
    with pytest.raises(ModelError, match="has 6 values a picture, its teacher 4; take the checkpoint") as caught:
        replay()(named, context())
    assert "\n" not in str(caught.value)


RANKED = {
    "images": {},
    "texts over all ranks": {"texts_too": True, "gather": "gather_with_grad"},
    "texts of the rank": {"texts_too": True, "gather": "local"},
    "reversed over all ranks": {"texts_too": True, "gather": "gather_with_grad", "direction": "new_to_old"},
}


def on_ranks(rank, world_size, folder):
    for label, options in RANKED.items():
        mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
        whole = names()
        named = {key: value[mine] if key.endswith("image_features") else value for key, value in whole.items()}
        named = {key: value.detach().clone().requires_grad_() for key, value in named.items()}
        value = replay(**options)(named, context(rank, world_size)).value
        value.backward()
        torch.save((value.detach(), named["image_features"].grad), folder / f"{label}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ranks.together(on_ranks, 2, folder / "store", folder)
    return folder


def on_two(folder, label):
    """Mean of two ranks' values, and the gradients of all pictures as data parallelism averages them."""
    parts = [torch.load(folder / f"{label}-{rank}.pt") for rank in range(2)]
    return (parts[0][0] + parts[1][0]) / 2, torch.cat([part[1] for part in parts]) / 2


@pytest.mark.parametrize("label", ["images", "texts over all ranks", "reversed over all ranks"])
def test_two_ranks_have_the_mean_and_gradients_of_one(label, folder):
    named, (both, gradients) = names(), on_two(folder, label)
    value = replay(**RANKED[label])(named, context()).value
    value.backward()
    assert torch.allclose(both, value, atol=1e-9)
    assert torch.allclose(gradients, named["image_features"].grad, atol=1e-9)


def test_texts_that_see_the_ranks_own_pictures_depend_on_the_number_of_ranks(folder):
    value = replay(**RANKED["texts of the rank"])(names(), context()).value
    assert not torch.allclose(on_two(folder, "texts of the rank")[0], value, atol=1e-2)


def test_safe_random_texts_hold_start_and_end_once_and_come_from_the_seed(world):
    towers = create_towers(world.TINY)
    start, end = towers.tokenizer.sot_token_id, towers.tokenizer.eot_token_id
    one, same, other = (token_ids(specs.RandomTokens(texts=50, tokens=5, seed=seed), towers) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (50, 8)
    assert (one[:, 0] == start).all()
    assert (one.argmax(dim=1) == 6).all()  # where a text is read: behind start and five tokens
    assert ((one == start).sum(dim=1) == 1).all()
    assert ((one == end).sum(dim=1) == 1).all()
    assert not one[:, 7].any()


def test_texts_of_ones_own_are_tokenised_as_captions_are(world):
    towers = create_towers(world.TINY)
    texts = ("a red bar", "a green dot")
    assert torch.equal(token_ids(specs.GivenTexts(texts=texts), towers), towers.tokenizer(list(texts)))


def test_random_texts_that_do_not_fit_the_context_are_refused(world):
    with pytest.raises(ModelError, match="7 tokens and two more exceed a context of 8"):
        token_ids(specs.RandomTokens(tokens=7), create_towers(world.TINY))
