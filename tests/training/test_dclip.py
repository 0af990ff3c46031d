"""DCLIP's two stages on the loop: what trains, chunks and ranks, the limits of the student's terms, refusals."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.errors import ModelError
from pipelines.methods import _dclip_probe
from pipelines.recipes import _dclip
from training import specs, surgeries
from training.loading import Batch
from training.towers import create_towers, load_towers, save_towers
from training.weights import set_trainable, weights_digest

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
BATCH = 16
VIEW = specs.View(regions=specs.Grid(), augment=None)
TEACHER = "phases.distil.teachers.fused.checkpoint"
AID = "aids.cross_modal."


def stage(name, phase, **changes):
    plain = {"optimizer": specs.AdamW(lr=3e-3), "samples_seen": 3 * BATCH, "global_batch_size": BATCH, "view": VIEW}
    made = specs.Phase(**{**plain, **phase, **changes})
    return specs.TrainSpec(init="i", pairs="p", selection="s", phases={name: made}, log_every_steps=1)


def teacher(parts="both", **changes):
    return stage("fuse", _phase(_dclip.teacher(parts=parts)), **changes)


def student(**changes):
    return stage("distil", _phase(_dclip.student(teacher="fused")), **changes)


def _phase(spec):
    (phase,) = spec.phases.values()
    return {name: getattr(phase, name) for name in ("surgeries", "trainable", "objectives", "teachers")}


@pytest.fixture
def job(world, tmp_path):
    """A function (name, spec, **place) -> Job from tiny towers; a student's teacher has an untrained block."""
    make = ranks.jobs(world, tmp_path)
    beside, _ = surgeries.apply(specs.CrossModal(), create_towers(world.TINY), {})
    made = world.commit(tmp_path, "teacher", "checkpoint", lambda uri: save_towers(beside, uri))

    def job(name, spec, **place):
        plain = make(name, spec, **place)
        return dataclasses.replace(plain, parents={**plain.parents, TEACHER: made.uri})

    return job


def trained(job):
    ranks.run(0, 1, job)
    return weights(job.out_uri)


def weights(uri):
    return load_towers(str(uri)).model.state_dict()


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_the_teacher_stage_trains_the_block_alone_and_keeps_it(job, world):
    made = job("teach", teacher(samples_seen=20 * BATCH))
    after, before = trained(made), create_towers(world.TINY).model.state_dict()
    assert weights_digest(after, before) == weights_digest(before)
    assert {name for name in after if name not in before} == {name for name in after if name.startswith(AID)}
    log = world.log_lines(made.out_uri)
    assert log[-1]["loss"] < log[0]["loss"] - 0.3


def test_a_teacher_that_reads_captions_matches_even_those_of_other_pictures(job, world):
    """The leak: with every caption on another picture, what is left to match on is the caption itself."""
    losses = {}
    for parts in ("both", "image"):
        view = VIEW.model_copy(update={"caption_noise": 1.0})
        made = job(parts, teacher(parts, view=view, samples_seen=40 * BATCH))
        trained(made)
        losses[parts] = world.log_lines(made.out_uri)[-1]["loss"]
    assert losses["both"] < losses["image"] - 0.3


@pytest.mark.parametrize("make", [teacher, student])
def test_chunks_give_the_whole_batchs_training(job, make):
    whole, chunked = (trained(job(f"chunk-{chunk}", make(chunk_pairs=chunk))) for chunk in (None, 5))
    assert largest_difference(whole, chunked) < 5e-5


@pytest.mark.parametrize("make", [teacher, student])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_give_the_training_of_one(job, make, parallel, tmp_path):
    alone = trained(job("alone", make()))
    both = job("both", make(), parallel=parallel)
    ranks.together(ranks.run, 2, tmp_path / "store", both)
    assert largest_difference(alone, weights(both.out_uri)) < 5e-5


def terms():
    return _phase(_dclip.student(teacher="fused"))["objectives"]


def weighted(**weight):
    return {label: specs.Term(weight=weight.get(label, 1.0), loss=term.loss) for label, term in terms().items()}


def test_without_weight_on_the_teacher_it_is_contrast_bit_for_bit(job):
    unweighted = trained(job("unweighted", student(objectives=weighted(image=0.0, text=0.0))))
    parent = student(objectives={"contrast": terms()["contrast"]}, teachers={})
    assert weights_digest(unweighted) == weights_digest(trained(job("parent", parent)))
    assert largest_difference(unweighted, trained(job("distilled", student()))) > 1e-4


def test_a_student_equal_to_its_teacher_has_no_distillation_loss_and_no_gradient(job, world):
    same = specs.FeatureCosine(teacher="fused")  # the teacher's towers are the student's
    objectives = {"same": specs.Term(loss=same), "text": terms()["text"]}
    made = job("same", student(objectives=objectives, samples_seen=BATCH, trainable=("*",)))
    trained(made)
    (line,) = world.log_lines(made.out_uri)
    assert abs(line["loss"]) < 1e-6
    assert line["grad_norm"] < 1e-5


def test_a_frozen_text_tower_stays_to_the_bit_and_its_anchor_is_zero(job, world):
    made = job("frozen", student())
    after, before = trained(made), create_towers(world.TINY).model.state_dict()
    text = [name for name in before if not name.startswith("visual.")]
    assert weights_digest(after, text) == weights_digest(before, text)
    assert all(abs(line["text"]) < 1e-6 < line["image"] for line in world.log_lines(made.out_uri))


def test_the_released_code_trains_the_text_tower_and_what_it_calls_proj(world):
    towers = create_towers(world.TINY)
    frozen = set(set_trainable(towers.model, _dclip.AS_RELEASED))
    block = "visual.transformer.resblocks.0."
    trains = {"visual.proj", "positional_embedding", "text_projection", "transformer.resblocks.0.mlp.c_fc.weight"}
    trains |= {f"{block}attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
    stays = {"visual.conv1.weight", "visual.class_embedding", "visual.ln_post.weight", f"{block}ln_1.weight"}
    stays |= {f"{block}mlp.{name}" for name in ("c_fc.weight", "c_proj.weight", "c_proj.bias")}
    assert (trains | stays) <= {name for name, _ in towers.model.named_parameters()}
    assert not trains & frozen
    assert stays <= frozen


def test_the_released_codes_text_anchor_holds_the_text_tower(job, world):
    found = []
    for weight in (0.0, 30.0):
        changes = {"objectives": weighted(text=weight), "trainable": _dclip.AS_RELEASED, "samples_seen": 6 * BATCH}
        made = job(f"anchor-{weight}", student(**changes))
        trained(made)
        after = load_towers(made.out_uri)
        texts = ["a red square", "a blue bar", "a pink dot"]
        was, now = (torch.from_numpy(each.encode_texts(texts)) for each in (create_towers(world.TINY), after))
        found.append(float((was * now).sum(dim=1).mean()))
    assert found[0] < found[1] - 0.01


def test_a_teacher_of_another_embed_dim_is_refused_at_the_first_step(job, world, tmp_path):
    wide, _ = surgeries.apply(specs.CrossModal(), create_towers({**world.TINY, "embed_dim": 24}), {})
    other = world.commit(tmp_path, "wide", "checkpoint", lambda uri: save_towers(wide, uri))
    made = job("narrow", student())
    made = dataclasses.replace(made, parents={**made.parents, TEACHER: other.uri})
    with pytest.raises(ModelError, match=r"has 16 values, fused.fused_features 24; take a teacher") as caught:
        trained(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "need"), [(teacher, "fused_features"), (student, "fused.fused_features")])
def test_a_view_without_regions_is_refused_at_the_first_step(job, make, need):
    with pytest.raises(ModelError, match=f"needs '{need}'"):
        trained(job("blind", make(view=specs.View(augment=None))))


def test_a_hit_is_strict_and_any_equal_caption_counts():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.3, 0.3]])
    assert _dclip_probe.hit_share(similarity, torch.tensor([1, 2, 3])) == pytest.approx(1 / 3)  # two ties
    assert _dclip_probe.hit_share(similarity, torch.tensor([1, 1, 3])) == pytest.approx(2 / 3)


def test_the_probe_moves_the_pictures_under_the_captions(world):
    """Of a teacher without words nothing but the picture counts, so that another's regions give another's vector."""
    towers, _ = surgeries.apply(specs.CrossModal(parts="image"), create_towers(world.TINY), {})
    image = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text = towers.tokenizer(["a", "red", "dot", "here"])
    regions = {"boxes": torch.tensor([[[0.0, 0.0, 1.0, 1.0]]] * 4), "box_valid": torch.ones(4, 1, dtype=torch.bool)}
    batch = Batch(image, {"text": text}, list("abcd"), list("abcd"), regions)
    (own, text_own), (moved, text_moved) = (_dclip_probe._features(towers, batch, away) for away in (0, 1))
    assert torch.allclose(moved, own.roll(-1, dims=0), atol=1e-6)
    assert torch.equal(text_own, text_moved)
