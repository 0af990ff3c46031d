"""LaCLIP's multi-text variant: its sums entry by entry, its limits, and what several ranks make of it."""

import runpy
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from data.errors import ModelError
from training import specs
from training.objectives import Context, WeightedSum, build_objective, tiles

together = runpy.run_path(str(Path(__file__).with_name("ranks.py")))["together"]
SLOTS = ("", "second", "third")
TEXTS = ("text_features", "text_features.second", "text_features.third")
LEARNED = ("image_features", *TEXTS, "logit_scale")
OWN, ALL = (specs.MultiTextInfoNCE(texts=SLOTS[1:], candidates=which) for which in ("own", "all"))


def formula(spec, names):
    """Mean over captions of -log p(caption | picture) and -log p(picture | caption), entry by entry."""
    image, scale = names["image_features"], names["logit_scale"]
    k = [scale * image @ names[text].T for text in TEXTS]  # of each slot: picture i, caption j
    pairs, slots = len(image), len(k)
    i2t, t2i = [], []
    for i in range(pairs):
        for own in k:
            if spec.candidates == "own":
                wrong = [own[i, j] for j in range(pairs) if j != i]
            else:
                wrong = [any_[i, j] for any_ in k for j in range(pairs) if j != i]
            i2t.append(torch.logsumexp(torch.stack([own[i, i], *wrong]), 0) - own[i, i])
            t2i.append(torch.logsumexp(own[:, i], 0) - own[i, i])
    assert len(i2t) == pairs * slots
    return (torch.stack(i2t).mean() + torch.stack(t2i).mean()) / 2


def batch(pairs=6, width=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    rows = [F.normalize(torch.randn(pairs, width, generator=random, dtype=torch.float64), dim=1) for _ in range(4)]
    return dict(zip(LEARNED, [*rows, torch.tensor(9.0, dtype=torch.float64)], strict=True))


def alone():
    return Context(0.0, 0, 1, torch.Generator())


def ours(spec, names, context=None):
    return build_objective(spec)(names, context or alone()).value


def with_gradients(loss, names):
    leaves = {key: value.clone().requires_grad_() for key, value in names.items()}
    value = loss(leaves)
    value.backward()
    return [value.detach(), *(leaves[key].grad for key in LEARNED)]


@pytest.mark.parametrize("edge", [2, 3, 1024])
@pytest.mark.parametrize("spec", [OWN, ALL], ids=["own", "all"])
def test_value_and_gradients_are_the_formulas(monkeypatch, spec, edge):
    monkeypatch.setitem(tiles.EDGES, "cpu", edge)
    found = with_gradients(lambda leaves: ours(spec, leaves), batch())
    for one, other in zip(found, with_gradients(lambda leaves: formula(spec, leaves), batch()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_equal_captions_in_all_slots_are_info_nce():
    names = batch()
    equal = names | dict.fromkeys(TEXTS, names["text_features"])
    torch.testing.assert_close(ours(OWN, equal), ours(specs.InfoNCE(), names))
    parts, plain = (build_objective(spec)(equal, alone()).parts for spec in (OWN, specs.InfoNCE()))
    for way in ("i2t", "t2i"):
        torch.testing.assert_close(parts[way], plain[way])


def test_equal_captions_among_all_count_every_wrong_one_once_a_slot():
    """-s_i + log(e^s_i + 3 * sum of the wrong): between InfoNCE and InfoNCE + log 3."""
    names = batch()
    equal = names | dict.fromkeys(TEXTS, names["text_features"])
    k = names["logit_scale"] * names["image_features"] @ names["text_features"].T
    right, wrong = k.diagonal().exp(), k.exp().sum(1) - k.diagonal().exp()
    expected = torch.log((right + 3 * wrong) / right).mean()
    torch.testing.assert_close(build_objective(ALL)(equal, alone()).parts["i2t"], expected)


def test_a_pictures_captions_do_not_compete():
    """Three perfect captions a picture, all others opposite: no loss; among all, were they rivals, at least ln 3."""
    rows = torch.eye(3, dtype=torch.float64)
    names = {"image_features": rows, **dict.fromkeys(TEXTS, rows), "logit_scale": torch.tensor(100.0)}
    for spec in (OWN, ALL):
        assert float(ours(spec, names)) < 1e-12


@pytest.mark.parametrize("spec", [OWN, ALL], ids=["own", "all"])
def test_neither_the_order_of_pairs_nor_that_of_slots_matters(spec):
    names, order = batch(), torch.tensor([3, 0, 5, 1, 4, 2])
    turned = {key: value[order] if value.ndim else value for key, value in names.items()}
    torch.testing.assert_close(ours(spec, turned), ours(spec, names))
    swapped = names | {TEXTS[0]: names[TEXTS[2]], TEXTS[2]: names[TEXTS[0]]}
    torch.testing.assert_close(ours(spec, swapped), ours(spec, names))
    mixed = names | {TEXTS[1]: names[TEXTS[1]][order]}  # the control: one slot's captions belong to others
    assert abs(float(ours(spec, mixed) - ours(spec, names))) > 1e-3


def test_weight_zero_is_the_parent_bit_for_bit():
    names = batch()
    both = {"contrast": specs.Term(loss=specs.InfoNCE()), "more": specs.Term(weight=0.0, loss=ALL)}
    assert torch.equal(WeightedSum(both)(names, alone()).value, ours(specs.InfoNCE(), names))


def test_two_equal_slots_are_twice_the_term():
    """Quality Captions' real + synthetic: exactly 2x where both say the same, value and gradient; else not."""
    names = batch()
    real, synthetic = (specs.Term(loss=specs.InfoNCE(text=text)) for text in TEXTS[:2])
    both, single = WeightedSum({"real": real, "synthetic": synthetic}), WeightedSum({"real": real})
    found = []
    for loss, factor in ((both, 1), (single, 2)):
        image = names["image_features"].clone().requires_grad_()
        given = names | {"image_features": image, TEXTS[1]: names[TEXTS[0]]}
        value = factor * loss(given, alone()).value
        value.backward()
        found.append((value, image.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(both(names, alone()).value, found[0][0])


def test_a_slot_that_the_view_does_not_give_is_named():
    loss = WeightedSum({"texts": specs.Term(loss=OWN)})
    with pytest.raises(ModelError, match=r"text_features\.third"):
        loss.verify({key: value for key, value in batch().items() if key != TEXTS[2]})


# ------------------------------------------------------------------------------------------------------------ ranks


def on_ranks(rank, ranks, folder):
    """The mean over ranks of the values, and the gradients as data parallelism averages them."""
    found, whole = {}, batch(8)
    mine = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    for candidates in ("own", "all"):
        for gather in ("local", "gather_with_grad", "gather_without_grad"):
            spec = specs.MultiTextInfoNCE(texts=SLOTS[1:], candidates=candidates, gather=gather)
            leaves = {key: value.clone().requires_grad_() for key, value in whole.items()}
            own = {key: value[mine] if value.ndim else value for key, value in leaves.items()}
            value = ours(spec, own, Context(0.0, rank, ranks, torch.Generator()))
            value.backward()
            tensors = [value.detach(), *(leaves[key].grad for key in LEARNED)]
            for tensor in tensors:
                dist.all_reduce(tensor)
            found[candidates, gather] = [tensor / ranks for tensor in tensors]
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    together(on_ranks, request.param, folder / "store", folder)
    yield request.param, torch.load(folder / "found.pt")
    shutil.rmtree(folder)


@pytest.mark.parametrize("spec", [OWN, ALL], ids=["own", "all"])
def test_ranks_together_have_the_single_processs_value_and_gradients(ranks, spec):
    _, found = ranks
    expected = with_gradients(lambda leaves: formula(spec, leaves), batch(8))
    for one, other in zip(found[spec.candidates, "gather_with_grad"], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spec", [OWN, ALL], ids=["own", "all"])
def test_other_policies_have_their_own_meaning(ranks, spec):
    """Without gradient: the value of all ranks with less of its gradient; local: each rank's own pairs."""
    count, found = ranks
    expected = with_gradients(lambda leaves: formula(spec, leaves), batch(8))
    without = found[spec.candidates, "gather_without_grad"]
    torch.testing.assert_close(without[0], expected[0])
    assert (without[1] - expected[1]).abs().max() > 1e-4
    size = 8 // count
    parts = [{k: v[at : at + size] if v.ndim else v for k, v in batch(8).items()} for at in range(0, 8, size)]
    local = sum(formula(spec, part) for part in parts) / count
    torch.testing.assert_close(found[spec.candidates, "local"][0], local)
