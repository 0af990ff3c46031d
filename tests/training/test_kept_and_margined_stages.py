"""Whole stages with margins, replayed texts and similarity rows: ranks, chunks, frozen parts, limits of the methods."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from data.errors import ModelError
from training.specs import (
    AdamW,
    ArcMargin,
    CaptionArcMargin,
    Classifier,
    FrozenModel,
    GivenTexts,
    InfoNCE,
    Label,
    Phase,
    RandomTokens,
    ReplayedVocabulary,
    SimilarityRows,
    Term,
    TextSlot,
    TrainSpec,
    View,
)
from training.towers import create_towers, save_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
# AdamW divides by the root of a mean square: where a gradient is almost 0, the order of sums shows
TOLERANCE = 5e-5
CONTRAST = {"contrast": Term(loss=InfoNCE())}
IMAGE_SIDE, TEXT_SIDE = ("visual.*", "aids.*"), ("*", "!visual.*")
ARC = {
    "surgeries": (Classifier(classes=6, seed=1),), "trainable": IMAGE_SIDE,
    "view": View(label=Label(field="colour")), "objectives": {"arc": Term(loss=ArcMargin())},
}  # fmt: skip
SECOND = TextSlot(caption_weights={"alias": 1})
MCIP = {
    **ARC, "view": View(label=Label(field="colour"), texts={"second": SECOND}),
    "objectives": {"arc": Term(loss=ArcMargin()), "captions": Term(loss=CaptionArcMargin(texts=("second",)))},
}  # fmt: skip
REPLAY = ReplayedVocabulary(teacher="old", texts_too=True, gather="gather_with_grad")
MOD_X = SimilarityRows(teacher="old", rows="correct", use_scale=False, reduction="sum")


def phase(vocabulary=None, **changes):
    old = FrozenModel(checkpoint="old", vocabulary=vocabulary or RandomTokens(texts=30, tokens=4))
    plain = {"optimizer": AdamW(lr=1e-3), "samples_seen": 64, "global_batch_size": 16, "objectives": CONTRAST}
    return Phase(**{**plain, "teachers": {"old": old}, **changes})


def kept(loss, weight=1.0, **changes):
    return phase(objectives={**CONTRAST, "kept": Term(weight=weight, loss=loss)}, **changes)


CASES = {
    "arc": phase(**ARC, teachers={}), "mcip": phase(**MCIP, teachers={}), "replay": kept(REPLAY),
    "mod_x": kept(MOD_X, weight=20.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def stages(world, tmp_path_factory):
    """Stages on the tiny world: `trained(name, phases, ranks, **place)` -> weights; all start from `init`."""
    root = tmp_path_factory.mktemp("root")
    make = ranks.jobs(world, root)
    old = world.commit(root, "old", "checkpoint", lambda uri: save_towers(create_towers(world.TINY, seed=5), uri))

    def trained(name, phases, world_size=1, **place):
        job = make(name, TrainSpec(init="init", pairs="pairs", selection="selection", phases=phases), **place)
        teachers = {f"phases.{label}.teachers.old.checkpoint": old.uri for label in phases}
        job = replace(job, parents={**job.parents, **teachers})
        if world_size == 1:
            ranks.run(0, 1, job)
        else:
            ranks.together(ranks.run, world_size, f"{job.out_uri}.store", job)
        return load_file(Path(job.out_uri, "open_clip_model.safetensors"))

    init = create_towers(world.TINY).model.state_dict()
    return SimpleNamespace(trained=trained, init=init)


def farthest(one, two):
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.parametrize("case", CASES)
def test_chunks_and_ranks_train_the_same_weights(stages, case):
    chunks = CASES[case].model_copy(update={"chunk_pairs": 3})
    alone = stages.trained(f"{case}-alone", {"only": CASES[case]})
    assert farthest(alone, stages.init) > 1e-3
    assert farthest(alone, stages.trained(f"{case}-two", {"only": chunks}, 2)) < TOLERANCE


def test_sharded_class_weights_train_the_same_weights(stages):
    alone = stages.trained("mcip", {"only": CASES["mcip"]})
    assert farthest(alone, stages.trained("sharded", {"only": CASES["mcip"]}, 2, parallel="fsdp")) < TOLERANCE


@pytest.mark.parametrize("loss", [REPLAY, MOD_X])
def test_weight_0_is_plain_fine_tuning_to_the_bit(stages, loss):
    plain = stages.trained(f"plain-{loss.objective}", {"only": phase(teachers={})})
    without = stages.trained(f"zero-{loss.objective}", {"only": kept(loss, weight=0.0)})
    assert all(torch.equal(plain[name], without[name]) for name in plain)


def test_a_vocabulary_of_one_text_is_fine_tuning_and_a_real_one_is_not(stages):
    replay, constant = ReplayedVocabulary(teacher="old"), GivenTexts(texts=("a red dot",) * 20)
    plain = stages.trained("plain", {"only": phase(teachers={})})
    same = stages.trained("constant", {"only": kept(replay, 100.0, vocabulary=constant)})
    other = stages.trained("random", {"only": kept(replay, 100.0)})
    assert farthest(plain, same) < TOLERANCE
    assert farthest(plain, other) > 1e-3


def test_two_stages_of_fine_tuning_train_one_side_each_and_end_as_plain_clip(stages):
    arc = phase(**ARC, teachers={})
    first = stages.trained("first", {"arc": arc})
    both = stages.trained("both", {"arc": arc, "align": phase(start="arc", trainable=TEXT_SIDE, teachers={})})
    assert both.keys() == stages.init.keys()  # class weights are gone
    for name, start in stages.init.items():
        is_image = name.startswith("visual.")
        assert torch.equal(first[name], start) != is_image, name
        assert torch.equal(both[name], first[name]) == is_image, name


def test_margins_without_labels_or_class_weights_are_refused_before_the_first_step(stages):
    for number, left_out in enumerate(("view", "surgeries")):
        changes = {key: value for key, value in ARC.items() if key not in (left_out, "trainable")}
        with pytest.raises(ModelError, match=r"objective 'arc' needs '(label|class_weights)', which this model, view"):
            stages.trained(f"refused-{number}", {"only": phase(**changes, teachers={})})
