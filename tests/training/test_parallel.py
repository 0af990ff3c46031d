"""Replicated and sharded training is the single process's training: losses, weights, norms, names."""

import runpy
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch

from data.errors import ModelError
from data.place import Place
from training import surgeries
from training.inputs import model_inputs
from training.loop import train
from training.parallel import clip_gradients, parallelise, repeated_blocks, whole
from training.specs import RandomReference, RouterBalance, SigLIP, Term, Upcycle
from training.towers import create_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
together, built, CONTRAST = ranks.together, ranks.built, ranks.CONTRAST
BALANCED = {**CONTRAST, "balance": Term(weight=0.1, loss=RouterBalance())}  # of each rank's own tokens: no case below
# name -> (architecture, is a mixture, changes of the phase, changes of the place)
CASES = {
    "plain": ("TINY", False, {}, {}),
    "siglip": ("TINY_BIAS", False, {"objectives": {"contrast": Term(loss=SigLIP())}}, {}),
    "chunks": ("TINY", False, {"chunk_pairs": 2}, {}),
    "chunks of siglip": ("TINY_BIAS", False, {"objectives": {"c": Term(loss=SigLIP())}, "chunk_pairs": 2}, {}),
    "frozen": ("TINY", False, {"trainable": ("*.mlp.*", "*.ln_1.bias")}, {}),
    "unused scale": ("TINY", False, {"objectives": {"reference": Term(loss=RandomReference())}}, {}),
    "recomputed": ("TINY", False, {}, {"activation_checkpointing": True}),
    "only the scale": ("TINY", False, {"trainable": ("logit_scale",)}, {}),
    "mixture": ("TINY", True, {}, {}),
    "chunks of a recomputed mixture": ("TINY", True, {"chunk_pairs": 2}, {"activation_checkpointing": True}),
}  # fmt: skip
# AdamW divides by the root of a mean square: where a gradient is almost 0, the order of sums shows
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 5e-5


def outcome(rank, world_size, *setting, **more):
    """What a case's training gives: losses, norms and whole weights."""
    torch.manual_seed(7)  # of the routers
    run, readings = built(rank, world_size, *setting, **more)
    train(run)
    losses = torch.stack([values["loss"] for values in readings])
    if world_size > 1:
        torch.distributed.all_reduce(losses)
    return {
        "losses": losses / world_size,
        "norms": torch.stack([values["grad_norm"] for values in readings]),
        "weights": {name: whole(value).clone() for name, value in run.towers.model.state_dict().items()},
        "names": list(run.towers.state_dict()),
    }


def all_cases(rank, world_size, architectures, folder):
    for name, (architecture, is_mixture, phase, place) in CASES.items():
        for parallel in ("ddp", "fsdp"):
            print(name, parallel, flush=True)
            found = outcome(
                rank, world_size, architectures[architecture], is_mixture, phase, Place(parallel=parallel, **place)
            )
            if rank == 0:
                torch.save(found, folder / f"{name}-{parallel}.pt")


@pytest.fixture(scope="module", params=[2, 4])
def folder(request, world, tmp_path_factory):
    """Outcomes of all cases on 2 and 4 ranks."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    architectures = {"TINY": world.TINY, "TINY_BIAS": world.TINY_BIAS}
    together(all_cases, request.param, folder / "store", architectures, folder)
    return folder


@pytest.fixture(scope="module")
def alone(world):
    """Outcomes on one rank, where the place asks for nothing."""

    def run(name):
        if name not in found:
            architecture, is_mixture, phase, _ = CASES[name]
            found[name] = outcome(0, 1, getattr(world, architecture), is_mixture, phase, Place())
        return found[name]

    found = {}
    return run


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_ranks_give_the_single_processs_training(folder, alone, name, parallel):
    one, many = alone(name), torch.load(folder / f"{name}-{parallel}.pt")
    torch.testing.assert_close(many["losses"], one["losses"], atol=LOSS_TOLERANCE, rtol=LOSS_TOLERANCE)
    torch.testing.assert_close(many["norms"], one["norms"], atol=LOSS_TOLERANCE, rtol=LOSS_TOLERANCE * 10)
    torch.testing.assert_close(many["weights"], one["weights"], atol=WEIGHT_TOLERANCE, rtol=WEIGHT_TOLERANCE)
    assert many["names"] == one["names"]


@pytest.mark.parametrize("phase", [{}, {"chunk_pairs": 4}])
@pytest.mark.parametrize("objectives", [CONTRAST, BALANCED])
def test_recomputed_activations_give_the_same_bits(world, objectives, phase):
    setting = (world.TINY, objectives is BALANCED, {**phase, "objectives": objectives})
    kept, recomputed = (outcome(0, 1, *setting, Place(activation_checkpointing=on)) for on in (False, True))
    assert torch.equal(kept["losses"], recomputed["losses"])
    assert all(torch.equal(kept["weights"][name], recomputed["weights"][name]) for name in kept["weights"])


def test_a_recomputed_mixture_holds_no_activations_between_steps(world):
    run, _ = built(0, 1, world.TINY, True, {"objectives": BALANCED}, Place(activation_checkpointing=True))
    train(run)
    assert not any(module.exposed for module in run.towers.modules() if hasattr(module, "exposed"))


def test_activations_that_cannot_be_recomputed_are_refused(world):
    resnet = {**world.TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
    with pytest.raises(ModelError, match="activation_checkpointing: a tower of this model cannot"):
        parallelise(create_towers(resnet), Place(activation_checkpointing=True), None)


def bf16_cases(rank, world_size, architecture, folder):
    for parallel in ("ddp", "fsdp"):
        setting = (architecture, False, {}, Place(parallel=parallel))
        found = outcome(rank, world_size, *setting, autocast=torch.bfloat16)
        if rank == 0:
            torch.save(found, folder / f"{parallel}.pt")


def test_bf16_is_the_same_training_up_to_its_rounding(world, alone, tmp_path):
    one = outcome(0, 1, world.TINY, False, {}, Place(), autocast=torch.bfloat16)
    together(bf16_cases, 2, tmp_path / "store", world.TINY, tmp_path)
    assert not torch.equal(one["losses"], alone("plain")["losses"])
    for parallel in ("ddp", "fsdp"):
        many = torch.load(tmp_path / f"{parallel}.pt")
        torch.testing.assert_close(many["losses"], one["losses"], atol=2e-2, rtol=0)
        torch.testing.assert_close(many["norms"], one["norms"], atol=0, rtol=5e-2)
        torch.testing.assert_close(many["losses"][:1], one["losses"][:1], atol=1e-5, rtol=0)  # the same casts
        assert all(value.dtype == torch.float32 for value in many["weights"].values())


def compiled_cases(rank, world_size, architecture, folder):
    for parallel in ("ddp", "fsdp"):
        found = outcome(rank, world_size, architecture, False, {}, Place(parallel=parallel, compile=True))
        if rank == 0:
            torch.save(found, folder / f"{parallel}.pt")


def test_ranks_train_compiled_blocks_under_their_own_names(world, alone, tmp_path, monkeypatch):
    graphs = tmp_path / "graphs"

    def backend(graph, _inputs):  # no C++ compiler: what is compiled runs as it was traced
        graphs.open("a").write("graph\n")
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    together(compiled_cases, 2, tmp_path / "store", world.TINY, tmp_path)
    assert graphs.read_text().count("graph") >= 2 * 2 * 2  # ranks, ways, towers
    for parallel in ("ddp", "fsdp"):
        many, one = torch.load(tmp_path / f"{parallel}.pt"), alone("plain")
        torch.testing.assert_close(many["losses"], one["losses"], atol=LOSS_TOLERANCE, rtol=LOSS_TOLERANCE)
        torch.testing.assert_close(many["weights"], one["weights"], atol=WEIGHT_TOLERANCE, rtol=WEIGHT_TOLERANCE)
        assert many["names"] == one["names"]


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="a CPU's torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_features(world, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # a torn shared one fails its readers
    one_block = {**world.TINY, "vision_cfg": {**world.TINY["vision_cfg"], "layers": 1}}
    plain, compiled = (create_towers(one_block, seed=0) for _ in range(2))
    parallelise(compiled, Place(compile=True), None)
    batch = next(ranks.Slice(0, 1).batches(range(1)))
    outputs = [towers(model_inputs(towers, batch, torch.device("cpu"))) for towers in (plain, compiled)]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def clipped(rank, world_size, architecture, limit, folder):
    towers = create_towers(architecture, seed=0)
    module = parallelise(towers, Place(parallel="fsdp"), None)
    batch = next(ranks.Slice(0, 1).batches(range(1)))  # the same pairs on every rank: gradients are those of one
    outputs = module(model_inputs(towers, batch, torch.device("cpu")))
    (outputs["image_features"] * outputs["text_features"]).sum().mul(outputs["logit_scale"]).backward()
    norm = clip_gradients(towers.parameters(), limit)
    gradients = {name: whole(parameter.grad) for name, parameter in towers.named_parameters()}
    if rank == 0:
        torch.save((norm, gradients), folder / f"{world_size}.pt")


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_is_torchs_own(world, tmp_path, limit):
    towers = create_towers(world.TINY, seed=0)
    batch = next(ranks.Slice(0, 1).batches(range(1)))
    outputs = towers(model_inputs(towers, batch, torch.device("cpu")))
    (outputs["image_features"] * outputs["text_features"]).sum().mul(outputs["logit_scale"]).backward()
    norm = torch.nn.utils.clip_grad_norm_(towers.parameters(), limit)
    together(clipped, 4, tmp_path / "store", world.TINY, limit, tmp_path)
    sharded_norm, gradients = torch.load(tmp_path / "4.pt")
    torch.testing.assert_close(sharded_norm, norm, rtol=1e-5, atol=0)
    assert (float(norm) > limit) == (limit == 0.5)
    for name, parameter in towers.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_clipping_without_a_limit_only_measures():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradients([parameter], None)) == 5
    assert parameter.grad.tolist() == [3, 4]
    assert torch.isnan(clip_gradients([torch.nn.Parameter(torch.zeros(2))], 1.0))


@pytest.mark.parametrize(("name", "image"), [("ViT-B-32", 12), ("RN50", 16)])
def test_the_repeated_blocks_are_the_towers_layers(name, image):
    with torch.device("meta"):
        model = open_clip.model.CLIP(**open_clip.get_model_config(name))
    assert block_counts(model) == (image, 12)


def test_a_text_tower_of_its_own_has_its_blocks_too(world):
    assert block_counts(create_towers({**world.TINY, "custom_text": True}).model) == (2, 1)


def block_counts(model):
    blocks = {id(block) for block in repeated_blocks(model)}
    names = [name for name, module in model.named_modules() if id(module) in blocks]
    image = sum(name.startswith("visual.") for name in names)
    return image, len(names) - image


def test_experts_are_no_blocks_of_their_own(world):
    dense = create_towers(world.TINY)
    mixed, _ = surgeries.apply(Upcycle(experts=("init",) * 2), dense, {"init": dense.model.state_dict()})
    kinds = [[type(block).__name__ for block in repeated_blocks(towers.model)] for towers in (dense, mixed)]
    assert kinds == [["ResidualAttentionBlock"] * 3] * 2
