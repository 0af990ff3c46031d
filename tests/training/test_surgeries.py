"""Upcycling: its invariant, its limits, its routing, and its way to disk and back."""

import pytest
import torch

from data.errors import ModelError
from training import surgeries
from training.specs import Upcycle
from training.surgeries.upcycle import ExpertMLP
from training.towers import create_towers, load_towers, save_towers


def batch(towers):
    random = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, 16, 16, generator=random), torch.randint(1, 1000, (3, 8), generator=random)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_equal_experts_equal_the_dense_model(world, top_k):
    dense = create_towers(world.TINY).eval()
    weights = dense.model.state_dict()
    mixed, checks = surgeries.apply(Upcycle(experts=("init",) * 3, top_k=top_k), dense, {"init": weights})
    assert all(check.holds for check in checks)
    with torch.no_grad():
        one, two = dense(*batch(dense)), mixed.eval()(*batch(dense))
    assert (one["image_features"] - two["image_features"]).abs().max() < 1e-5
    assert two["image_router_probabilities"].shape == (3, 2, 5, 3)  # pairs, layers, tokens, experts
    assert two["text_router_probabilities"].shape == (3, 1, 8, 3)


def test_different_experts_differ_and_come_from_their_phases(world):
    dense, other = create_towers(world.TINY).eval(), create_towers(world.TINY, seed=9)
    phases = {"init": dense.model.state_dict(), "b": other.model.state_dict()}
    mixed, _ = surgeries.apply(Upcycle(experts=("init", "b"), top_k=2), dense, phases)
    state, block = mixed.model.state_dict(), "visual.transformer.resblocks.0.mlp"
    assert torch.equal(state[f"{block}.experts.1.c_fc.weight"], phases["b"][f"{block}.c_fc.weight"])
    assert torch.equal(state["visual.conv1.weight"], phases["init"]["visual.conv1.weight"])
    with torch.no_grad():
        assert (
            dense(*batch(dense))["image_features"] - mixed.eval()(*batch(dense))["image_features"]
        ).abs().max() > 1e-3


def test_all_experts_chosen_is_the_softmax_weighted_sum():
    torch.manual_seed(0)
    experts = [torch.nn.Linear(4, 4) for _ in range(3)]
    layer, x = ExpertMLP(experts, 4, 3, torch.Generator()), torch.randn(2, 5, 4)
    weights = layer.router(x).softmax(-1)
    expected = sum(weights[..., n, None] * expert(x) for n, expert in enumerate(experts))
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_only_the_last_layers_change_when_asked(world):
    mixed, _ = surgeries.apply(Upcycle(experts=("init", "init"), image_layers=1, text_layers=1), *_dense(world))
    assert sorted({name.split(".mlp")[0] for name in mixed.model.state_dict() if ".experts." in name}) == [
        "transformer.resblocks.0",
        "visual.transformer.resblocks.1",
    ]


def _dense(world):
    towers = create_towers(world.TINY)
    return towers, {"init": towers.model.state_dict()}


def test_a_mixture_comes_back_from_disk_and_open_clip_does_not_take_it_for_its_own(world, tmp_path):
    mixed, _ = surgeries.apply(Upcycle(experts=("init", "init", "init"), top_k=2), *_dense(world))
    save_towers(mixed, str(tmp_path))
    assert not (tmp_path / "open_clip_model.safetensors").exists()
    again = load_towers(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(mixed.eval()(*batch(mixed))["text_features"], again(*batch(mixed))["text_features"])


def test_more_chosen_than_there_are_is_refused(world):
    with pytest.raises(ModelError, match="top_k 3 is above the 2 experts"):
        surgeries.apply(Upcycle(experts=("init", "init"), top_k=3), *_dense(world))


def test_towers_without_blocks_are_refused(world):
    towers = create_towers(world.TINY)
    towers.model.visual.transformer = torch.nn.Identity()
    with pytest.raises(ModelError, match="needs open_clip's own transformer towers"):
        surgeries.apply(Upcycle(experts=("init",), top_k=1), towers, {})
