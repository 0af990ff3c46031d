"""Features once: the same bytes whatever the workers, threads, chunks or deaths, and rows that are the pairs' own."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data import storage
from data.artifacts import Record
from data.curation.specs import InspectSpec
from data.errors import ArtifactError, ModelError, RecipeError, ShardError
from data.features import FeatureSet
from data.place import Place
from data.selection import write_split
from data.shards import CAPTION_SCHEMA, Pair, ShardSet, write_manifest, write_parquet, write_shard
from training import embed, embed_pictures, embed_texts
from training.embed_patches import _patch_means, patch_tokens
from training.forward import Forward, in_order
from training.pictures import Fit
from training.specs import Corrupted, Cropped, EmbedSpec, Patches, Prompts
from training.towers import create_towers, load_towers, save_towers
from training.views import corrupted, cropped

LOOKS = {"noise": Corrupted(kind="gaussian_noise", severity=3), "crop": Cropped(seed=2)}


def spec(**changes):
    return EmbedSpec(**{"checkpoint": "init", "pairs": "pairs", "split": "split", "splits": ("test",), **changes})


def tree(uri):
    return {name: storage.read_bytes(storage.join(uri, name)) for name, _ in storage.list_files(uri, recursive=True)}


@pytest.fixture(scope="module")
def parents(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("embed")
    pairs, split, _ = world.small_world(root)
    towers = create_towers(world.TINY).eval()
    init = world.commit(
        root, "init", "checkpoint", lambda uri: save_towers(towers, uri), {"logit_scale": 20.0, "logit_bias": -3.0}
    )
    return {"checkpoint": init, "pairs": pairs, "split": split}


@pytest.fixture
def made(world, parents, tmp_path):
    """Run the stage and commit what it makes."""

    def make(stage, name="features", place=None, others=None):
        work = world.work(tmp_path, name, parents | (others or {}))
        work = work._replace(place=place or work.place)
        outcome = embed.run(stage, work)
        record = Record(
            kind="feature_set", stage="embed", revision=2, fingerprint=name.encode().hex().ljust(64, "0"), config={},
            counts=outcome.counts, metrics=outcome.metrics,
        )  # fmt: skip
        return FeatureSet(work.out.commit(record))

    return make


# --------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_what_open_clip_makes_of_each_pair(made, parents, world):
    features = made(spec(splits=("test", "train")))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{parents['checkpoint'].uri}")
    by_uid = {pair.uid: pair for pair in world.pairs()}
    assert features.uids == sorted(by_uid)
    with torch.inference_mode():
        pictures = torch.stack([transform(Image.open(io.BytesIO(by_uid[uid].image))) for uid in features.uids])
        images = model.eval().encode_image(pictures, normalize=True).numpy()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{parents['checkpoint'].uri}")
        texts = model.encode_text(tokenizer(features.texts), normalize=True).numpy()
    assert np.abs(features.images - images).max() < 1e-5
    assert np.abs(features.text_features - texts).max() < 1e-5
    assert set(features.texts) == {text for pair in by_uid.values() for text in pair.captions.values()}
    assert (features.logit_scale, features.logit_bias) == (20.0, -3.0)


def test_only_the_splits_are_embedded_with_their_own_captions(made, world):
    features = made(spec())
    held_out = [pair for pair in world.pairs() if pair.uid.endswith("-0")]
    assert features.uids == sorted(pair.uid for pair in held_out)
    assert set(features.texts) == {text for pair in held_out for text in pair.captions.values()}
    assert features.artifact.record.counts["pairs"] == len(held_out)


def test_checksums_are_those_of_the_inspection(made, parents, world, tmp_path):
    work = world.work(tmp_path, "inspect", {"pairs": parents["pairs"]})
    InspectSpec(pairs="pairs").build()(InspectSpec(pairs="pairs"), work)
    tables = [embed.read_parquet(work.out.at("inspection", f"{n:05d}.parquet")) for n in range(2)]
    known = {row["uid"]: row["content"] for row in pa.concat_tables(tables).to_pylist()}
    features = made(spec())
    assert features.contents(features.uids).to_pylist() == [known[uid] for uid in features.uids]
    assert features.contents(features.uids[:1]).type == pa.binary(16)


# ------------------------------------------------------------------------------------------------------------- bytes


@pytest.fixture
def reference(made):
    return tree(made(spec(views=LOOKS, splits=("test", "train")), "one").artifact.uri)


def same(found, reference):
    return {name for name in reference if found.get(name) != reference[name]} | (found.keys() - reference.keys())


@pytest.mark.parametrize(("threads", "chunk"), [(1, 1), (3, 64), (2, 100_000)])
def test_bytes_do_not_depend_on_threads_or_chunks(made, reference, threads, chunk, tmp_path):
    stage = spec(views=LOOKS, splits=("test", "train"), chunk_pairs=chunk)
    found = made(stage, "two", Place(root=str(tmp_path), cpus_per_worker=threads))
    assert same(tree(found.artifact.uri), reference) == {"record.json"}


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_bytes_are_the_same_on_ray(made, reference, tmp_path):
    place = Place(root=str(tmp_path), data_workers=2, cpus_per_worker=2)
    found = made(spec(views=LOOKS, splits=("test", "train")), "two", place)
    assert same(tree(found.artifact.uri), reference) == {"record.json"}


def test_a_stage_that_died_goes_on_at_the_first_missing_shard(made, reference, monkeypatch, parents):
    stage, done = spec(views=LOOKS, splits=("test", "train")), []
    whole = embed_pictures.embed_shard

    def dies(job, number):
        if number == 1 and len(done) == 1:
            raise KeyboardInterrupt
        done.append(number)
        return whole(job, number)

    monkeypatch.setattr(embed, "embed_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        made(stage, "two")
    done.append("died")
    assert same(tree(made(stage, "two").artifact.uri), reference) == {"record.json"}
    assert done == [0, "died", 1]


_DRIVER = """
import os, signal, sys
sys.path[:0] = {paths!r}
from data.artifacts import open_artifact
import world
from training import embed, embed_pictures
whole, left = embed_pictures._embed_pass, [1]
def dies(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
embed_pictures._embed_pass = dies
parents = {{role: open_artifact(uri) for role, uri in {uris!r}.items()}}
embed.run(embed.EmbedSpec.model_validate_json({spec!r}), world.work({root!r}, "two", parents))
"""


@pytest.mark.timeout(300)
def test_a_killed_process_leaves_what_another_one_ends(made, reference, parents, tmp_path):
    stage = spec(views=LOOKS, splits=("test", "train"))
    here = Path(__file__).parent
    script = _DRIVER.format(
        paths=[str(here.parents[1]), str(here)], uris={role: a.uri for role, a in parents.items()},
        spec=stage.model_dump_json(), root=str(tmp_path),
    )  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    state = [name for name, _ in storage.list_files(str(tmp_path / ".partial"), recursive=True)]
    assert any(name.endswith("pictures/00000.json") for name in state)
    assert not any(name.endswith("pictures/00001.json") for name in state)
    assert same(tree(made(stage, "two").artifact.uri), reference) == {"record.json"}


def test_results_come_in_order_and_few_are_begun_ahead():
    begun, taken = [], []

    def items():
        for number in range(20):
            begun.append(number)
            yield number

    for result in in_order(lambda n: n * n, items(), threads=2, ahead=3):
        taken.append(result)
        assert len(begun) - len(taken) <= 3
    assert taken == [n * n for n in range(20)]
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // (3 - n), range(10), threads=2, ahead=4))
    assert torch.get_num_threads() == threads


# ------------------------------------------------------------------------------------------------------------- views


def test_views_have_a_row_for_every_pair_of_their_own_pixels(made, parents, world):
    features = made(spec(views=LOOKS))
    assert features.views == ("crop", "noise")
    towers, side = load_towers(parents["checkpoint"].uri), 16
    by_uid = {pair.uid: pair for pair in world.pairs()}
    for uid in features.uids[:3]:
        picture = Image.open(io.BytesIO(by_uid[uid].image)).convert("RGB")
        plain = np.empty((side, side, 3), np.uint8)
        embed_pictures.put_square(picture, None, plain)
        row = features.image_row[uid]
        for name, pixels in (
            ("noise", corrupted(LOOKS["noise"], plain, uid)), ("crop", cropped(LOOKS["crop"], picture, side, uid)),
        ):  # fmt: skip
            assert np.abs(features.view(name)[row] - towers.encode_images(pixels[None])[0]).max() < 1e-5
            assert np.abs(features.view(name)[row] - features.images[row]).max() > 1e-3
    with pytest.raises(ArtifactError, match="has no view 'noize'; did you mean 'noise'"):
        features.view("noize")


def test_views_alone_have_no_pictures_and_no_texts(made, reference):
    features = made(spec(plain=False, views=LOOKS, splits=("test", "train"), queries=("red",)), "two")
    assert features.texts == []
    assert features.text_features.shape == (0, 16)
    with pytest.raises(ArtifactError, match="has views only") as error:
        _ = features.images
    assert "\n" not in str(error.value)
    assert tree(features.artifact.uri)["views/crop.npy"] == reference["views/crop.npy"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plain": False}, "nothing is embedded"),
        ({"views": {"../x": LOOKS["crop"]}}, r"'\.\./x' becomes a file's name"),
    ],
)
def test_what_cannot_be_written_is_refused(made, changes, words):
    with pytest.raises(RecipeError, match=words):
        made(spec(**changes))


# ------------------------------------------------------------------------------------------------------------- texts


def test_given_classes_are_filled_in_place_of_the_fields_values(made):
    fields = Prompts(field="colour", templates=("a {c} thing", "{c}"))
    own = Prompts(field="colour", templates=("my {c}",), classes=("one", "two"))
    texts = made(spec(prompts=(fields, own), queries=("a query",))).texts
    assert {"a red thing", "pink", "my one", "my two", "a query"} <= set(texts)
    assert "my red" not in texts
    assert texts == sorted(set(texts), key=str.encode)


def test_each_value_of_a_list_is_a_class(world, tmp_path):
    def write(uri):
        pairs = [Pair(f"p{n}", b"", "png", {}, {"tags": tags}) for n, tags in enumerate((["a", "b"], "c", [], None, 7))]
        write_manifest(uri, [write_shard(uri, "00000", pairs)], [])

    pairs = ShardSet(world.commit(tmp_path, "pairs", "shard_set", write))
    assert embed_texts.prompt_texts(pairs, [Prompts(field="tags")]) == ["7", "a", "b", "c"]


def test_captions_of_layers_are_embedded_for_embedded_pairs_only(made, world, tmp_path):
    rows = [("red-dot-0", "rewrite", "a scarlet point", None), ("red-dot-1", "rewrite", "of another split", None),
            ("red-bar-0", "rewrite", None, None)]  # fmt: skip
    table = pa.table(list(zip(*rows, strict=True)), schema=CAPTION_SCHEMA)
    layer = world.commit(
        tmp_path, "layer", "caption_layer", lambda uri: write_parquet(storage.join(uri, "captions", "x.parquet"), table)
    )
    texts = made(spec(caption_layers=("layer",)), others={"caption_layers.0": layer}).texts
    assert "a scarlet point" in texts
    assert "of another split" not in texts


def test_pieces_of_texts_change_no_row(made, monkeypatch):
    whole = made(spec(), "one")
    monkeypatch.setattr(embed_texts, "TEXTS_PER_PIECE", 5)
    cut = made(spec(), "two")
    assert cut.texts == whole.texts
    assert np.abs(cut.text_features - whole.text_features).max() < 1e-6


# ----------------------------------------------------------------------------------------------------------- patches


def sticker(colour, box, opaque=False):
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 255 if opaque else 0))
    picture.paste((*colour, 255), box)
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def stickers(world, tmp_path):
    """Sixteen pixels' input, patches of 8: the left half of every sticker is drawn; two have no mask."""
    pictures = {f"s{n}": sticker((200, 10 * n, 0), (0, 0, 16, 32)) for n in range(6)}
    pictures |= {"opaque": sticker((9, 9, 9), (0, 0, 16, 32), opaque=True), "jpeg": world.picture("red", "dot", 0)}
    pairs = [Pair(uid, content, "png", {"alt": uid}, {}) for uid, content in pictures.items()]
    uids = list(pictures)

    def write(uri):
        write_manifest(uri, [write_shard(uri, f"{n}", pairs[4 * n : 4 * n + 4]) for n in range(2)], [])

    def write_splits(uri):
        for n in range(2):
            part = uids[4 * n : 4 * n + 4]
            write_split(uri, pa.table({"uid": part, "split": ["test"] * len(part)}), f"{n}")

    return {
        "pairs": world.commit(tmp_path, "stickers", "shard_set", write),
        "split": world.commit(tmp_path, "halves", "split", write_splits),
    }


def test_patches_have_tokens_before_pooling_and_the_mask_of_the_alpha_channel(made, parents, stickers):
    features = made(spec(patches=Patches()), others=stickers)
    assert (
        features.artifact.record.counts | {"patches": 6, "patches_without_mask": 2} == features.artifact.record.counts
    )
    uids, tokens, foreground = features.patches
    assert uids == [f"s{n}" for n in range(6)]
    assert (tokens.shape, tokens.dtype, isinstance(tokens, np.memmap)) == ((6, 4, 32), np.float16, True)
    assert np.abs(foreground - [1, 0, 1, 0]).max() < 0.03  # bicubic rings at the edge
    square = np.empty((16, 16, 3), np.uint8)
    embed_pictures.put_square(embed_pictures.open_picture(sticker((200, 0, 0), (0, 0, 16, 32))), None, square)
    towers = load_towers(parents["checkpoint"].uri)
    theirs = Forward(towers).patches(square[None], patch_tokens(towers))[0]
    assert np.abs(np.asarray(tokens[0], np.float32) - theirs).max() < 1e-2


@pytest.mark.parametrize("changes", [{}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_tokens_are_open_clips_own(world, changes):
    vision = {**world.TINY["vision_cfg"], **changes}
    towers = create_towers({**world.TINY, "vision_cfg": vision}).eval()
    image = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        ours = patch_tokens(towers)(image)
        towers.model.visual.output_tokens = True
        _, theirs = towers.model.visual(image)
    assert torch.equal(ours, theirs)


def test_the_first_pairs_by_hash_are_kept_and_more_only_add(made, stickers):
    few, more = (made(spec(patches=Patches(pairs_per_split=n)), f"f{n}", others=stickers) for n in (3, 6))
    assert set(few.patches.uids) <= set(more.patches.uids)
    counts = few.artifact.record.counts
    assert counts["patches"] + counts["patches_without_mask"] == 3


def test_half_a_patch_is_half_foreground():
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 4, 16))
    assert _patch_means(mask, Fit(), 16, 2, 8).tolist() == [0.5, 0.0, 0.5, 0.0]
    assert _patch_means(mask, Fit(), 16, 1, 10).tolist() == pytest.approx([0.4])  # what no patch covers is left out


def test_pictures_without_a_mask_are_an_error(made):
    with pytest.raises(ShardError, match="none of 18 pictures is transparent anywhere"):
        made(spec(patches=Patches()))


def test_towers_without_patches_say_so(world):
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    with pytest.raises(ModelError, match="ModifiedResNet, which shows no patch tokens"):
        patch_tokens(create_towers({**world.TINY, "embed_dim": 16, "vision_cfg": resnet}))


# --------------------------------------------------------------------------------------------------------- bad input


def test_a_picture_that_cannot_be_read_is_named(made, world, tmp_path):
    bad = [Pair("bad", b"no picture", "png", {"alt": "x"}, {})]
    others = {
        "pairs": world.commit(
            tmp_path, "bad", "shard_set", lambda uri: write_manifest(uri, [write_shard(uri, "s", bad)], [])
        ),
        "split": world.commit(
            tmp_path, "split", "split", lambda uri: write_split(uri, pa.table({"uid": ["bad"], "split": ["test"]}), "s")
        ),
    }
    with pytest.raises(ShardError, match="uid 'bad' in shard s: not a readable image"):
        made(spec(), others=others)


def test_a_diverged_checkpoint_is_named_by_its_first_uid(made, world, tmp_path):
    towers = create_towers(world.TINY)
    with torch.no_grad():
        towers.model.visual.proj.fill_(float("nan"))
    nan = world.commit(tmp_path, "nan", "checkpoint", lambda uri: save_towers(towers, uri))
    with pytest.raises(ArtifactError, match=r"feature of uid '.*' is not finite; the checkpoint has diverged"):
        made(spec(), others={"checkpoint": nan})


def test_sixteen_bits_give_features_of_length_one_near_those_of_float32(world):
    towers = create_towers(world.TINY).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    exact, half = (Forward(towers, dtype).images(pixels) for dtype in (None, torch.bfloat16))
    assert half.dtype == np.float32
    assert np.abs(np.linalg.norm(half, axis=1) - 1).max() < 1e-6
    assert 0 < np.abs(half - exact).max() < 0.05
