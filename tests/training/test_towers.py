"""Checkpoints: what comes out loads in plain open_clip with the same features.

What cannot be is refused in one line.
"""

import io
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from data.errors import ArtifactError, ModelError
from data.place import Place
from data.stage import run_stage
from training.pictures import exact_picture
from training.specs import ModelSpec
from training.towers import create_towers, load_towers, save_towers


def decoded(content, side):
    pixels = np.empty((side, side, 3), np.uint8)
    exact_picture(content, None, pixels)
    return pixels


def test_open_clip_loads_our_checkpoint_and_agrees(world, tmp_path):
    towers = create_towers(world.TINY, seed=3).eval()
    save_towers(towers, str(tmp_path))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    content = world.picture("red", "bar", 0)
    image = preprocess(Image.open(io.BytesIO(content))).unsqueeze(0)
    with torch.no_grad():
        theirs = (
            model.eval().encode_image(image, normalize=True),
            model.encode_text(tokenizer(["a red bar"]), normalize=True),
        )
    ours = load_towers(str(tmp_path))
    assert np.abs(ours.encode_images(decoded(content, 16)[None]) - theirs[0].numpy()).max() < 1e-6
    assert np.abs(ours.encode_texts(["a red bar"]) - theirs[1].numpy()).max() < 1e-6


@pytest.mark.parametrize("size", [(20, 20), (31, 20), (20, 45), (16, 16), (300, 200)])
def test_decoding_gives_the_pixels_of_open_clips_validation_transform(size):
    random = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(random).save(sink, "PNG")
    transform = open_clip.image_transform(16, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    expected = (transform(Image.open(io.BytesIO(sink.getvalue()))) * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(decoded(sink.getvalue(), 16), expected.astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture = picture.convert(mode) if mode != "P" else picture.quantize()
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    assert decoded(sink.getvalue(), 16).min() == 255


def test_same_seed_same_weights(world):
    one, two, other = (create_towers(world.TINY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("architecture", "pretrained", "words"),
    [
        ("ViT-B-23", None, "did you mean 'ViT-B-32'"),
        ({"embed_dim": 8}, None, "cannot make this model"),
        ({"embed_dim": 8, "vision_cfg": {"layerz": 1}, "text_cfg": {}}, None, "cannot make this model"),
        ("ViT-B-32", "/nowhere/weights.safetensors", "pretrained '/nowhere/weights.safetensors'"),
    ],
)
def test_impossible_models_are_refused_in_one_line(architecture, pretrained, words):
    with pytest.raises(ModelError, match=words) as caught:
        create_towers(architecture, pretrained)
    assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_refused(world, tmp_path):
    save_towers(create_towers(world.TINY), str(tmp_path))
    wide = create_towers({**world.TINY, "embed_dim": 24})
    save_towers(wide, str(tmp_path / "wide"))
    (tmp_path / "open_clip_model.safetensors").write_bytes(
        (tmp_path / "wide" / "open_clip_model.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match="weights do not fit"):
        load_towers(str(tmp_path))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no open_clip_config\.json"):
        load_towers(str(tmp_path))


@pytest.mark.parametrize("custom", [False, True])
def test_trimmed_captions_have_the_same_features_and_gradients(world, custom):
    towers = create_towers({**world.TINY, "custom_text": True} if custom else world.TINY)
    assert type(towers.model).__name__ == ("CustomTextCLIP" if custom else "CLIP")
    towers = create_towers({**towers.config["model_cfg"], "text_cfg": {**world.TINY["text_cfg"], "context_length": 40}})
    text = towers.tokenizer(["a dog", "a red square above two blue ones, seen from far away", "x"])
    assert (text.shape[1], towers.trimmed(text).shape[1]) == (40, 16)
    results = []
    for tokens, encode in ((text, towers.model.encode_text), (towers.trimmed(text), None)):
        features = encode(tokens, normalize=True) if encode else towers.encode_text(tokens)
        towers.zero_grad()
        (features * torch.arange(features.numel()).view_as(features)).sum().backward()
        results.append((features, {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}))
    (whole, gradients), (short, short_gradients) = results
    torch.testing.assert_close(short, whole, atol=1e-6, rtol=1e-5)
    assert gradients.keys() == short_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(short_gradients[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "text", [{"no_causal_mask": True, "pool_type": "last"}, {"pool_type": "last"}, {"embed_cls": True}]
)
def test_text_towers_that_read_behind_the_end_of_text_get_all_tokens(world, text):
    towers = create_towers({**world.TINY, "custom_text": True, "text_cfg": {**world.TINY["text_cfg"], **text}})
    tokens = torch.zeros(2, 8, dtype=torch.long)
    assert not towers.trims_text
    assert towers.trimmed(tokens) is tokens


def stage_of(spec, folder):
    return run_stage("model", spec, {}, Place(root=str(folder)))


def test_a_folder_from_elsewhere_becomes_a_checkpoint_with_its_very_weights(world, tmp_path):
    towers = create_towers(world.TINY, seed=3).eval()
    save_towers(towers, str(tmp_path / "theirs"))
    made = stage_of(ModelSpec(folder=str(tmp_path / "theirs")), tmp_path / "runs")
    ours = load_towers(made.uri)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in towers.state_dict().items())
    assert made.record.metrics["origin"] is None
    assert made.record.config["source"].keys() == {"config", "weights"}


def test_a_checkpoint_of_another_root_keeps_its_origin(world, tmp_path):
    first = stage_of(ModelSpec(architecture=world.TINY), tmp_path / "one")
    made = stage_of(ModelSpec(folder=first.uri), tmp_path / "two")
    assert made.record.metrics["origin"] == made.record.config["source"]["origin"] == first.fingerprint
    assert stage_of(ModelSpec(artifact=first.fingerprint), tmp_path / "one").uri == first.uri
    with pytest.raises(ArtifactError, match="no artifact with fingerprint"):
        stage_of(ModelSpec(artifact=first.fingerprint), tmp_path / "two")


def test_a_config_that_leaves_preprocessing_out_has_open_clips(world, tmp_path):
    save_towers(create_towers(world.TINY), str(tmp_path))
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    expected = load_towers(str(tmp_path)).mean_std
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"]}))
    assert all(
        torch.equal(one, other) for one, other in zip(load_towers(str(tmp_path)).mean_std, expected, strict=True)
    )


def test_weights_of_another_activation_are_refused():
    with pytest.raises(ModelError, match="trained with QuickGELU, ViT-B-32 has the other; use ViT-B-32-quickgelu"):
        create_towers("ViT-B-32", "openai")


def test_an_unknown_tag_is_answered_with_those_there_are():
    with pytest.raises(ModelError, match="no weights 'opanai' for ViT-B-32-quickgelu; did you mean 'openai'"):
        create_towers("ViT-B-32-quickgelu", "opanai")
