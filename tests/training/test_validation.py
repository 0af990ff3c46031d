"""Validation watches and chooses, and changes nothing of the training."""

import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import storage
from data.errors import ShardError
from training.loading import open_pairs
from training.phases import StageRun
from training.specs import AdamW, InfoNCE, Phase, Term, TrainSpec, Validation, View
from training.towers import load_towers
from training.validation import HeldOut, open_held_out
from training.validation import Validation as Watcher
from training.weights import weights_digest

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
SIZE, STEPS = 18, 8
WATCHED = Validation(split="split", name="test", every_samples=2 * SIZE)


def spec(validation=WATCHED, result="last", **changes):
    phase = Phase(
        objectives={"contrast": Term(loss=InfoNCE())}, optimizer=AdamW(lr=3e-3), samples_seen=SIZE * STEPS,
        global_batch_size=SIZE, result=result, **changes,
    )  # fmt: skip
    return TrainSpec(
        init="init", pairs="pairs", selection="selection", phases={"a": phase}, validation=validation,
        checkpoint_every_samples=3 * SIZE, log_every_steps=1,
    )  # fmt: skip


def lines(job):
    return [json.loads(line) for line in Path(job.out_uri, "metrics.jsonl").read_text().splitlines()]


def validation_losses(job):
    return {line["step"]: line["validation_loss"] for line in lines(job) if "validation_loss" in line}


def digest(job):
    return weights_digest(load_towers(job.out_uri).model.state_dict())


def by_hand(towers, store, rows):
    """Multi-positive InfoNCE over these rows, written down from its definition."""
    image = torch.from_numpy(towers.encode_images(np.stack([store.decode(row, towers.image_size) for row in rows])))
    captions = store.captions_of("alt", rows)
    text = torch.from_numpy(towers.encode_texts(captions))
    target = torch.tensor([[float(one == other) for other in captions] for one in captions])
    target /= target.sum(dim=1, keepdim=True)
    logits = towers.model.logit_scale.detach().exp() * image @ text.T
    both = [-(target * side.log_softmax(dim=1)).sum(dim=1).mean() for side in (logits, logits.T)]
    return float(sum(both) / 2)


@pytest.fixture
def job(world, tmp_path):
    return ranks.jobs(world, tmp_path)


def held_out(job, validation=WATCHED):
    made = job("opened", spec())
    parents = StageRun(made, 0, 1, torch.device("cpu"), print).parents
    trained = open_pairs(parents["pairs"], parents["selection"], [])
    return open_held_out(validation, parents, [], trained)


def test_the_loss_is_the_definitions_on_the_held_out_pairs(job):
    made = job("stage", spec(Validation(split="split", name="test", every_samples=4 * SIZE), chunk_pairs=5))
    ranks.run(0, 1, made)
    pairs = held_out(job)
    assert len(pairs.rows) == 18
    assert {uid[-2:] for uid in pairs.store.uids_of(pairs.rows)} == {"-0"}  # the held-out copies
    found = validation_losses(made)
    assert list(found) == [4, 8]
    assert found[8] == pytest.approx(by_hand(load_towers(made.out_uri), *pairs), abs=1e-5)


def test_equal_captions_are_all_right_answers(job):
    stage = StageRun(job("stage", spec()), 0, 1, torch.device("cpu"), print)
    phase = stage.spec.phases["a"]
    towers = stage.changed_towers("a", phase)
    run = stage.phase_run("a", phase, towers, {})
    thrice = HeldOut(stage.store, np.arange(54))  # three copies of each picture
    found = float(Watcher(WATCHED, thrice, towers, 0, 1).loss(run))
    assert found == pytest.approx(by_hand(towers, *thrice), abs=1e-5)
    assert run.module.training


def test_the_first_so_many_are_chosen_by_a_hash_and_not_by_order(job):
    few, all_of_them = (held_out(job, WATCHED.model_copy(update={"pairs": count})) for count in (6, 18))
    assert few.rows.tolist() == all_of_them.rows[:6].tolist()
    assert few.rows.tolist() != sorted(few.rows.tolist())


@pytest.mark.parametrize("architecture", ["TINY", "resnet"])
def test_training_is_the_same_to_the_bit_with_and_without(world, tmp_path, architecture):
    resnet = {**world.TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}}
    job = ranks.jobs(world, tmp_path, resnet if architecture == "resnet" else world.TINY)
    found = [job("with", spec()), job("without", spec(None))]
    for made in found:
        ranks.run(0, 1, made)
        assert storage.list_folders(made.state_uri) == ["a"]
    assert digest(found[0]) == digest(found[1])
    assert len(validation_losses(found[0])) == 4
    with_it = [{key: value for key, value in line.items() if key != "validation_loss"} for line in lines(found[0])]
    assert with_it == lines(found[1])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_validate_the_same_and_train_the_same_with_and_without(job, tmp_path, parallel):
    alone = job("alone", spec(chunk_pairs=4))
    ranks.run(0, 1, alone)
    found = [
        job(name, spec(validation, chunk_pairs=4), parallel=parallel)
        for name, validation in (("with", WATCHED), ("without", None))
    ]
    for made in found:
        ranks.together(ranks.run, 2, tmp_path / f"store-{Path(made.out_uri).name}", made)
    assert digest(found[0]) == digest(found[1])
    assert validation_losses(found[0]) == pytest.approx(validation_losses(alone), abs=2e-4)


def overfit():
    """Captions of other pairs: the longer it trains, the worse it gets for the held-out ones."""
    every_step = Validation(split="split", name="test", every_samples=SIZE)
    return spec(every_step, "best", view=View(caption_noise=1.0))


def test_the_best_weights_are_the_result(job):
    made = job("best", overfit())
    ranks.run(0, 1, made)
    found = validation_losses(made)
    best = min(found, key=found.get)
    assert best < STEPS
    assert by_hand(load_towers(made.out_uri), *held_out(job)) == pytest.approx(found[best], abs=1e-5)
    assert not [name for name in storage.list_folders(made.state_uri) if "best" in name or "step" in name]


def killed_after(step, made):
    """Run the job in this process, and end it like a kill after so many steps."""
    rank = StageRun(made, 0, 1, torch.device("cpu"), print)
    whole = rank.after_step

    def after_step(*arguments):
        whole(*arguments)
        if arguments[-2] == step:
            os._exit(9)

    rank.after_step = after_step
    rank.run()


def test_the_best_weights_survive_kills(job):
    undisturbed, killed = job("undisturbed", overfit()), job("killed", overfit())
    ranks.run(0, 1, undisturbed)
    for step in (1, 2, 4, 7):
        assert ranks.in_child(killed_after, step, killed) == 9
    ranks.run(0, 1, killed)
    assert digest(killed) == digest(undisturbed)
    assert lines(killed) == lines(undisturbed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "tset"}, "validation.name 'tset': no such split; did you mean 'test'.; have test, train"),
        ({"name": "train"}, "validation.name 'train': 54 of its pairs are trained on"),
        ({"source": "rewrite"}, "validation.source 'rewrite': not in these pairs; have alias, alt"),
    ],
)
def test_what_cannot_be_validated_on_is_one_line(job, changes, words):
    with pytest.raises(ShardError, match=words) as caught:
        held_out(job, WATCHED.model_copy(update=changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("pairs", "world_size"), [(1, 1), (3, 4)])
def test_too_few_pairs_are_refused(job, pairs, world_size):
    store, rows = held_out(job)
    with pytest.raises(ShardError, match=f"{pairs} captioned pairs on {world_size} ranks; a contrast needs 2"):
        Watcher(WATCHED, HeldOut(store, rows[:pairs]), None, 0, world_size)
