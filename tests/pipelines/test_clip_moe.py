"""The experiment of CLIP-MoE: its measure of how much experts differ, and arms that see as many pairs."""

import numpy as np
import pytest

from data.artifacts import Output, Record
from data.features import write_features
from pipelines.methods import clip_moe
from pipelines.methods.method import Found
from pipelines.recipes import clip_moe as ours
from training.specs import StretchPositions


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def drawn(seed, rows=60):
    return unit(np.random.default_rng(seed).standard_normal((rows, 8)))


def test_neighbours_by_hand(monkeypatch):
    monkeypatch.setattr(clip_moe, "NEIGHBOURS", 1)
    angles = np.radians([0, 10, 30, 90, 95])
    near = clip_moe.neighbours(unit(np.stack([np.cos(angles), np.sin(angles)], axis=1)))
    assert near.argmax(axis=1).tolist() == [1, 0, 1, 4, 3]
    assert near.sum(axis=1).tolist() == [1] * 5


def test_equal_models_share_all_neighbours_and_strangers_few():
    one, other = clip_moe.neighbours(drawn(0)), clip_moe.neighbours(drawn(1))
    assert clip_moe.common(one, one) == 1
    assert clip_moe.common(one, other) == pytest.approx(clip_moe.NEIGHBOURS / 59, abs=0.06)  # by chance


def test_a_rotated_model_has_the_same_neighbours():
    rotation, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((8, 8)))
    assert clip_moe.common(clip_moe.neighbours(drawn(0)), clip_moe.neighbours(unit(drawn(0) @ rotation))) == 1


@pytest.fixture
def found(tmp_path):
    """Features of experts: those of `clip_moe` are strangers, those of `copies` the start's with a little noise."""
    noise = {"start": 0.0, "copy_1": 0.02, "copy_2": 0.02}
    artifacts = {}
    for seed, name in enumerate(("start", "copy_1", "copy_2", "expert_1", "expert_2")):
        rows = unit(drawn(0) + noise[name] * drawn(seed)) if name in noise else drawn(seed)
        stage, uids = f"features_{name}_s0", [f"p{n}" for n in range(60)]
        out = Output(str(tmp_path), stage, f"{seed}" * 64)
        with out.lock():
            write_features(out.uri, uids, rows, [f"caption {n}" for n in range(60)], rows)
            record = Record(kind="feature_set", stage="embed", revision=1, fingerprint=f"{seed}" * 64, config={})
            artifacts[stage] = out.commit(record)
    return lambda arm: Found(artifacts, arm, 0)


def test_experts_that_differ_overlap_less_than_copies(found):
    assert clip_moe.overlap(found("clip_moe")) < 0.4
    assert 0.8 < clip_moe.overlap(found("copies")) < 1


def test_every_arm_sees_as_many_pairs_as_the_mixture():
    experiment = clip_moe.experiment(2)
    seen = {name: stage.workload({}) for name, stage in experiment.stages.items() if stage.kind == "train"}
    assert seen["clip_moe_s0"] == seen["continued_s0"] == seen["copy_base_s0"] + seen["copies_s0"]
    assert seen["uniform_s0"] == seen["expert_1_s0"] == seen["copy_2_s0"] == 0
    seeds = {experiment.stages[f"{name}_s{n}"].seed for name in ("clip_moe", "copy_base", "copies") for n in (0, 1)}
    assert len(seeds) == 6


def test_text_positions_can_be_stretched_first():
    stage = ours.mixture()
    base = stage.phases["base"].model_copy(update={"surgeries": (StretchPositions(),)})
    stretched = stage.model_copy(update={"phases": {**stage.phases, "base": base}})
    assert all(phase.start == "base" for name, phase in stretched.phases.items() if name != "base")
