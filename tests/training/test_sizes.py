"""Sizes from a config against the real models: every parameter, FLOPs by torch's counter, tensors kept for backward."""

import open_clip
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.errors import ModelError
from training import loading, memory, workers
from training.memory import Step, activation_bytes, checkpoint_bytes, largest_chunk, needed_bytes
from training.objectives import tiles
from training.sizes import count, flops_per_pair, model_config
from training.surgeries import rebuild
from training.towers import create_towers

SMALL = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 6},
    "text_cfg": {"context_length": 24, "vocab_size": 300, "width": 64, "heads": 4, "layers": 5, "mlp_ratio": 3.0},
}
SIGLIP_LIKE = {
    **SMALL, "custom_text": True, "init_logit_bias": -10,
    "text_cfg": {**SMALL["text_cfg"], "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}  # fmt: skip
UNUSUAL = {
    **SMALL,
    "vision_cfg": {
        **SMALL["vision_cfg"], "qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True,
        "scale_fc": True, "ls_init_value": 0.1, "no_ln_pre": True, "image_size": [32, 64], "mlp_ratio": 2.5,
    },
}  # fmt: skip
NAMED = ["ViT-B-32", "ViT-L-14", "ViT-B-32-quickgelu", "RN50", "RN50x4"]
MODELS = [*NAMED, SMALL, SIGLIP_LIKE, UNUSUAL]
IDS = [*NAMED, "small", "siglip-like", "unusual"]


def real(architecture):
    """The model without its weights' memory."""
    config = dict(open_clip.get_model_config(architecture) if isinstance(architecture, str) else architecture)
    made = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        return made(**config)


def counted(call):
    """FLOPs that torch counts; attention as plain products, which is what its counter knows on every device."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def inputs(model, pairs=2, tokens=None):
    size = model.visual.image_size
    sides = (size, size) if isinstance(size, int) else size
    text = torch.zeros(pairs, tokens or model.context_length, dtype=torch.long, device="meta")
    return torch.zeros(pairs, 3, *sides, device="meta"), text


@pytest.mark.parametrize("architecture", MODELS, ids=IDS)
def test_every_parameter_has_its_name_and_size(architecture):
    sizes, model = count(architecture), real(architecture)
    assert sizes.named == {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.image.parameters == sum(parameter.numel() for parameter in model.visual.parameters())


def test_a_created_model_has_the_counted_parameters():
    model = open_clip.create_model("ViT-B-32")
    assert count("ViT-B-32").parameters == sum(parameter.numel() for parameter in model.parameters()) == 151_277_313


@pytest.mark.parametrize("architecture", MODELS, ids=IDS)
def test_forward_flops_are_those_that_torch_counts(architecture):
    sizes, model = count(architecture), real(architecture)
    image, text = inputs(model)
    assert 2 * sizes.image.flops() == pytest.approx(counted(lambda: model.encode_image(image)), rel=1e-3)
    assert 2 * sizes.text.flops() == pytest.approx(counted(lambda: model.encode_text(text)), rel=1e-3)


def test_flops_follow_the_captions_length():
    sizes, model = count(SIGLIP_LIKE), real(SIGLIP_LIKE)
    for tokens in (1, 8, 24):
        text = inputs(model, tokens=tokens)[1]
        assert 2 * sizes.text.flops(tokens) == pytest.approx(
            counted(lambda text=text: model.encode_text(text)), rel=1e-3
        )
    per_pair = flops_per_pair(SIGLIP_LIKE)
    assert per_pair(8) == 3 * (sizes.image.flops() + sizes.text.flops(8)) < per_pair(24)
    assert sizes.hardware_flops(8, recomputed=1) * 3 == per_pair(8) * 4


@pytest.mark.parametrize("architecture", ["ViT-B-32", SMALL], ids=["ViT-B-32", "small"])
def test_a_training_step_costs_three_forward_passes(architecture):
    model = real(architecture)
    image, text = inputs(model)

    def step():
        (model.encode_image(image).sum() + model.encode_text(text).sum()).backward()

    # the first layer's input needs no gradient: 0.8 % of ViT-B-32
    assert counted(step) == pytest.approx(2 * count(architecture).training_flops(), rel=0.02)


def test_a_mixture_counts_all_experts_and_computes_the_active_ones():
    layout = {"surgery": "upcycle", "num_experts": 3, "top_k": 2, "image_layers": 2, "text_layers": None}
    towers = rebuild(create_towers(SMALL), layout)
    sizes = count(SMALL, [layout])
    assert sizes.named == {name: parameter.numel() for name, parameter in towers.model.named_parameters()}
    image, text = torch.randn(2, 3, 32, 32), torch.randint(1, 299, (2, 24))
    assert 2 * sizes.forward_flops() == pytest.approx(
        counted(lambda: towers.eval()({"image": image, "text": text})), rel=1e-3
    )
    dense, single = count(SMALL), count(SMALL, [{**layout, "num_experts": 1, "top_k": 1, "image_layers": 1}])
    assert single.parameters - dense.parameters == 64 * (1 + 5)  # routers only
    assert sizes.trainable(["*.router.weight"]) == 64 * 3 * (2 + 5)


@pytest.mark.parametrize(("experts", "top_k", "layers"), [(4, 2, None), (3, 1, 2), (2, 2, None), (1, 1, None)])
def test_active_parameters_are_those_that_a_token_meets(experts, top_k, layers):
    layout = {
        "surgery": "upcycle", "num_experts": experts, "top_k": top_k, "image_layers": layers, "text_layers": layers,
    }  # fmt: skip
    towers = rebuild(create_towers(SMALL), layout)
    idle = sum(
        parameter.numel()
        for name, parameter in towers.model.named_parameters()
        if any(f".experts.{number}." in name for number in range(top_k, experts))
    )
    sizes = count(SMALL, [layout])
    assert sizes.active_parameters == towers.parameter_count() - idle
    assert (idle > 0) == (experts > top_k)


def test_a_dense_model_is_all_active_and_an_uncounted_one_unknown():
    assert count("ViT-B-32").active_parameters == count("ViT-B-32").parameters
    assert count("RN50").active_parameters == count("RN50").parameters
    assert count("ViT-B-16-SigLIP").active_parameters is None


def test_a_mixture_of_a_mixture_has_the_last_ones_experts():
    once, twice = (
        count(SMALL).upcycled(3, 2, None, None),
        count(SMALL).upcycled(4, 1, None, 1).upcycled(3, 2, None, None),
    )
    assert twice == once


@pytest.mark.parametrize("architecture", [SMALL, SIGLIP_LIKE], ids=["inside CLIP", "below text"])
def test_a_longer_context_has_the_sizes_of_a_model_made_with_it(architecture):
    longer = {**architecture, "text_cfg": {**architecture["text_cfg"], "context_length": 60}}
    assert count(architecture).with_context(60) == count(longer)
    sizes, model = count(architecture).with_context(60), real(longer)
    assert sizes.named == {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sizes.text.flops() > count(architecture).text.flops()
    assert count(architecture).with_context(24) == count(architecture)


def test_towers_of_others_are_not_counted():
    for name in ("ViT-B-16-SigLIP", "coca_ViT-B-32", "xlm-roberta-base-ViT-B-32"):
        sizes = count(name)
        assert sizes.parameters is sizes.training_flops() is sizes.named is sizes.trainable(["*"]) is None
    assert count("xlm-roberta-base-ViT-B-32").image.parameters == count("ViT-B-32").image.parameters


def test_a_wrong_architecture_is_one_line():
    with pytest.raises(ModelError, match=r"'ViT-B-33': not an open_clip model; did you mean 'ViT-B-32'"):
        model_config("ViT-B-33")
    with pytest.raises(ModelError, match="'vision_cfg' is missing"):
        count({"embed_dim": 8, "text_cfg": {}})
    with pytest.raises(ModelError, match="width 'wide': give a whole number"):
        count({**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "width": "wide"}})


@pytest.mark.parametrize("recomputes", [False, True])
def test_activation_memory_covers_what_autograd_keeps_and_little_more(recomputes):
    towers, pairs = create_towers(SMALL), 8
    towers.model.set_grad_checkpointing(recomputes)
    own = {parameter.untyped_storage().data_ptr() for parameter in towers.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    image, text = torch.randn(pairs, 3, 32, 32), torch.randint(1, 299, (pairs, 24))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        towers.train()({"image": image, "text": text})
    measured = sum(size for size, _ in kept.values()) - image.nbytes
    estimate = pairs * activation_bytes(count(SMALL), recomputes=recomputes)
    # the estimate adds the peak of the backward pass: one block's gradients, and one block computed again
    assert measured < estimate < measured * (5 if recomputes else 1.35)


def test_memory_has_the_limits_it_must_have():
    sizes = count("ViT-B-32")
    P = sizes.parameters
    plain = Step(sizes, P, 256, ranks=4)
    need = needed_bytes(plain)
    assert (need["weights"], need["gradients"], need["optimizer"]) == (4 * P, 4 * P, 8 * P)
    assert needed_bytes(Step(sizes, 0, 256, ranks=4))["optimizer"] == 0
    sharded = needed_bytes(Step(sizes, P, 256, ranks=4, is_sharded=True))
    assert sharded["optimizer"] == need["optimizer"] // 4
    assert sharded["weights"] < need["weights"]
    half = needed_bytes(Step(sizes, P, 256, ranks=4, chunk_pairs=32))
    assert half["activations"] * 2 == need["activations"]
    assert needed_bytes(Step(sizes, P, 256, ranks=4, is_bf16=True))["activations"] < need["activations"]
    assert needed_bytes(Step(sizes, P, 256, ranks=4, recomputes=True))["activations"] < need["activations"] / 4
    assert needed_bytes(Step(sizes, P, 256, teachers=(sizes,)))["weights"] == 8 * P
    assert needed_bytes(Step(count("ViT-B-16-SigLIP"), 0, 256)) is None
    assert checkpoint_bytes(P, P) == 12 * P


def test_the_largest_chunk_fits_and_the_next_does_not():
    sizes = count("ViT-B-32")
    step = Step(sizes, sizes.parameters, 1024)
    fixed = sum(needed_bytes(step).values()) - needed_bytes(step)["activations"] - needed_bytes(step)["pictures"]
    each = activation_bytes(sizes) + 8 * 3 * 224 * 224
    assert largest_chunk(step, fixed + 1024 * each) == 1024
    assert largest_chunk(step, fixed + 1023 * each) == 512
    assert largest_chunk(step, fixed + 33 * each) == 32
    assert largest_chunk(step, fixed) is None


def test_the_memory_estimate_knows_the_tiles_and_pieces_that_there_are():
    assert {False: tiles.EDGES["cpu"], True: tiles.EDGES["cuda"]} == memory._TILE_EDGES
    assert (memory._WORKER_PIECES, memory._PIECE_PAIRS) == (workers._SLOTS, loading.PIECE_PAIRS)
