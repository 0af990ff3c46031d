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
    image = torch.randn(3, 3, 16, 16, generator=random)
    return {"image": image, "text": torch.randint(1, 1000, (3, 8), generator=random)}


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_equal_experts_equal_the_dense_model(world, top_k):
    dense = create_towers(world.TINY).eval()
    weights = dense.model.state_dict()
    mixed, checks = surgeries.apply(Upcycle(experts=("init",) * 3, top_k=top_k), dense, {"init": weights})
    assert all(check.holds for check in checks)
    with torch.no_grad():
        one, two = dense(batch(dense)), mixed.eval()(batch(dense))
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
        assert (dense(batch(dense))["image_features"] - mixed.eval()(batch(dense))["image_features"]).abs().max() > 1e-3


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
        assert torch.equal(mixed.eval()(batch(mixed))["text_features"], again(batch(mixed))["text_features"])


def test_more_chosen_than_there_are_is_refused(world):
    with pytest.raises(ModelError, match="top_k 3 is above the 2 experts"):
        surgeries.apply(Upcycle(experts=("init", "init"), top_k=3), *_dense(world))


def test_towers_without_blocks_are_refused(world):
    towers = create_towers(world.TINY)
    towers.model.visual.transformer = torch.nn.Identity()
    with pytest.raises(ModelError, match="needs open_clip's own transformer towers"):
        surgeries.apply(Upcycle(experts=("init",), top_k=1), towers, {})


def test_one_expert_is_the_dense_model_to_the_bit(world):
    dense, weights = _dense(world)
    mixed, _ = surgeries.apply(Upcycle(experts=("init",), top_k=1), dense, weights)
    with torch.no_grad():
        one, two = dense.eval()(batch(dense)), mixed.eval()(batch(dense))
    assert all(torch.equal(one[name], two[name]) for name in ("image_features", "text_features"))


class Counted(dict):
    """Phases that count how often they are read, as from disk."""

    reads = 0

    def __getitem__(self, name):
        self.reads += 1
        return super().__getitem__(name)


def test_a_phase_is_read_once_for_all_of_its_weights(world):
    dense, weights = _dense(world)
    phases = Counted(weights)
    surgeries.apply(Upcycle(experts=("init", "init")), dense, phases)
    assert phases.reads == 1


@pytest.fixture
def mixed(world):
    """A mixture of three different experts, and the models that they come from."""
    made = {name: create_towers(world.TINY, seed=seed).eval() for seed, name in enumerate(("init", "b", "c"))}
    phases = {name: towers.model.state_dict() for name, towers in made.items()}
    return surgeries.apply(Upcycle(experts=("init", "b", "c"), dropout=0.1), made["init"], phases)[0], phases


def test_an_expert_of_a_mixture_alone_is_the_model_with_its_ffns(mixed, world):
    towers, phases = mixed
    weights = {"init": towers.model.state_dict()}
    alone, checks = surgeries.apply(Upcycle(experts=("init",), numbers=(1,), top_k=1), towers, weights)
    assert all(check.holds for check in checks)
    expected = create_towers(world.TINY)
    expected.model.load_state_dict(
        {name: phases["b" if ".mlp." in name else "init"][name] for name in expected.model.state_dict()}
    )
    with torch.no_grad():
        one, two = expected.eval()(batch(expected)), alone.eval()(batch(expected))
    assert torch.equal(one["image_features"], two["image_features"])
    assert [entry["surgery"] for entry in alone.layout] == ["upcycle"]


def test_a_mixture_can_take_experts_of_another_and_of_dense_phases(mixed):
    towers, phases = mixed
    weights = {"m": towers.model.state_dict(), "b": phases["b"]}
    spec = Upcycle(experts=("b", "m", "m", "b"), numbers=(None, 2, 0, None), image_layers=1)
    state = surgeries.apply(spec, towers, weights)[0].model.state_dict()
    block, weight = "visual.transformer.resblocks.1.mlp", "c_proj.weight"
    for expert, origin in enumerate(("b", "c", "init", "b")):
        assert torch.equal(state[f"{block}.experts.{expert}.{weight}"], phases[origin][f"{block}.{weight}"])
    first = "visual.transformer.resblocks.0.mlp"  # not mixed any more: it is the first expert again
    assert torch.equal(state[f"{first}.{weight}"], phases["init"][f"{first}.{weight}"])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"experts": ("m",)}, "'m' is a mixture of 3 experts, 0 to 2: say with `numbers` which"),
        ({"experts": ("m",), "numbers": (3,)}, "'m' is a mixture of 3 experts, 0 to 2: it has no expert 3"),
        ({"experts": ("b",), "numbers": (0,)}, "'b' is no mixture at .*, so it has no expert 0; use null"),
    ],
)
def test_experts_that_are_not_there_are_refused_in_one_line(mixed, spec, words):
    towers, phases = mixed
    with pytest.raises(ModelError, match=words) as caught:
        surgeries.apply(Upcycle(top_k=1, **spec), towers, {"m": towers.model.state_dict(), **phases})
    assert "\n" not in str(caught.value)


def test_a_number_for_each_expert_or_none():
    with pytest.raises(ValueError, match="1 numbers for 2 experts; give one per expert or none"):
        Upcycle(experts=("init", "init"), numbers=(0,))


def test_dropout_comes_back_from_disk_and_rests_in_evaluation(mixed, tmp_path):
    towers, _ = mixed
    save_towers(towers, str(tmp_path))
    again = load_towers(str(tmp_path))
    rates = [module.p for module in again.modules() if isinstance(module, torch.nn.Dropout)]
    assert rates == [0.1] * 3 * 3  # experts of two image blocks and one text block
    with torch.no_grad():
        one, two = towers.eval()(batch(towers)), again(batch(towers))
        assert torch.equal(one["image_features"], two["image_features"])
        assert not torch.equal(one["image_features"], again.train()(batch(towers))["image_features"])


def test_a_mixture_saved_before_there_was_dropout_is_still_read(world):
    layout = {"surgery": "upcycle", "num_experts": 2, "top_k": 1, "image_layers": None, "text_layers": None}
    assert surgeries.rebuild(create_towers(world.TINY), layout).layout == (layout,)


def test_small_vocabularies_are_checked_with_their_own_words(world):
    small = {**world.TINY, "text_cfg": {**world.TINY["text_cfg"], "vocab_size": 50}}
    towers = create_towers(small)
    _, checks = surgeries.apply(Upcycle(experts=("init", "init")), towers, {"init": towers.model.state_dict()})
    assert all(check.holds for check in checks)


def test_towers_of_timm_are_refused_with_the_reason(world):
    timm = {**world.TINY, "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 32}}
    towers = create_towers(timm)
    with pytest.raises(ModelError, match="needs open_clip's own transformer towers"):
        surgeries.apply(Upcycle(experts=("init",), top_k=1), towers, {})
