"""Whole training stages in this process: learning, resume to the bit, exact accumulation, teachers, mixture, ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data import storage
from data.artifacts import Record
from data.errors import ModelError, ShardError
from data.features import FeatureSet
from training import embed
from training.phases import Job, StageRun
from training.preflight import check_sizes
from training.specs import (
    AdamW,
    CachedFeatures,
    ClusterSampler,
    CosineSchedule,
    EmbedSpec,
    FeatureCosine,
    FrozenModel,
    HybridDistillation,
    InfoNCE,
    ModelSpec,
    Phase,
    RandomReference,
    Reinitialise,
    RouterBalance,
    SigLIP,
    SimilarityRows,
    Term,
    TrainSpec,
    Upcycle,
    View,
)  # fmt: skip
from training.towers import load_towers
from training.towers import run as make_model
from training.weights import weights_digest

SIZE = 18


def phase(**changes):
    plain = {
        "objectives": {"contrast": Term(loss=InfoNCE(multi_positive=True))},
        "optimizer": AdamW(lr=3e-3),
        "schedule": CosineSchedule(warmup_samples=36),
        "samples_seen": SIZE * 6,
        "global_batch_size": SIZE,
    }
    return Phase(**{**plain, **changes})


def stage(phases, **changes):
    return TrainSpec(init="init", pairs="pairs", selection="selection", phases=phases, log_every_steps=1, **changes)


@pytest.fixture
def setting(world, tmp_path):
    """Parents of a training stage, and a function that runs one in this process."""
    pairs, split, selection = world.small_world(tmp_path)
    parents = {"pairs": pairs, "selection": selection, "split": split}

    def model(name="init", architecture=world.TINY):
        work = world.work(tmp_path, name, {})
        outcome = make_model(ModelSpec(architecture=architecture), work)
        return work.out.commit(
            Record(
                kind="checkpoint",
                stage="model",
                revision=1,
                fingerprint=name.encode().hex().ljust(64, "0"),
                config={},
                metrics=outcome.metrics,
            )
        )

    def run(spec, name="stage", stop_after=None, **more):
        work = world.work(tmp_path, name, {})
        roles = {
            "init": parents["init"].uri,
            "pairs": pairs.uri,
            "selection": selection.uri,
            **{k: v.uri for k, v in more.items()},
        }
        job = Job(
            spec.model_dump(mode="json"),
            roles,
            work.out.uri,
            work.out.state_uri,
            work.events,
            work.place.model_dump(mode="json"),
        )
        rank = StageRun(job, 0, 1, torch.device("cpu"), pytest.fail)
        if stop_after:
            whole, steps = rank.after_step, iter(range(10_000))

            def after_step(*arguments):
                whole(*arguments)
                if next(steps) + 1 == stop_after:
                    raise KeyboardInterrupt

            rank.after_step = after_step
            with pytest.raises(KeyboardInterrupt):
                rank.run()
        else:
            rank.run()
        return work.out.uri, job

    parents["init"] = model()
    return run, parents, model


def log_lines(uri):
    return [json.loads(line) for line in Path(uri, "metrics.jsonl").read_text().splitlines()]


def digest(uri):
    return weights_digest(load_towers(uri).model.state_dict())


def test_training_learns_and_shuffled_captions_do_not(setting):
    run, _, _ = setting
    losses = {}
    for noise in (0.0, 1.0):
        view = View(caption_noise=noise, augment=None)
        uri, _ = run(stage({"a": phase(view=view, samples_seen=SIZE * 40)}), f"noise-{noise}")
        losses[noise] = [line["loss"] for line in log_lines(uri)]
    assert losses[0.0][-1] < 0.5 * losses[0.0][0]
    assert losses[0.0][-1] < losses[1.0][-1] - 0.3


@pytest.mark.parametrize("stop_after", [1, 3, 4, 7, 11])
def test_a_killed_run_ends_with_the_same_bits(setting, stop_after):
    run, _, _ = setting
    phases = {"a": phase(), "b": phase(start="a", view=View(caption_weights={"alt": 1.0, "alias": 1.0}))}
    spec = stage(phases, checkpoint_every_samples=SIZE * 2)
    undisturbed, _ = run(spec, "undisturbed")
    _, job = run(spec, "killed", stop_after=stop_after)
    assert not storage.exists(storage.join(job.out_uri, "metrics.jsonl"))
    killed, _ = run(spec, "killed")
    assert digest(killed) == digest(undisturbed)
    assert Path(killed, "metrics.jsonl").read_text() == Path(undisturbed, "metrics.jsonl").read_text()


@pytest.mark.parametrize("loss", [InfoNCE(), InfoNCE(multi_positive=True, label_smoothing=0.1)])
def test_chunks_give_the_whole_batchs_gradients(setting, loss):
    run, _, _ = setting
    found = [
        run(
            stage({"a": phase(objectives={"c": Term(loss=loss)}, chunk_pairs=chunk, view=View(augment=None))}),
            f"chunk-{chunk}",
        )[0]
        for chunk in (None, 7)
    ]
    whole, chunked = (load_towers(uri).model.state_dict() for uri in found)
    assert max(float((whole[name] - chunked[name]).abs().max()) for name in whole) < 2e-5
    first = [log_lines(uri)[0] for uri in found]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=1e-6)
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-4)


def test_chunks_are_exact_for_siglips_shared_bias(setting, world):
    run, parents, model = setting
    parents["init"] = model("biased", world.TINY_BIAS)
    found = [
        run(stage({"a": phase(objectives={"c": Term(loss=SigLIP())}, chunk_pairs=chunk)}), f"sig-{chunk}")[0]
        for chunk in (None, 5)
    ]
    whole, chunked = (load_towers(uri).model.state_dict() for uri in found)
    assert max(float((whole[name] - chunked[name]).abs().max()) for name in whole) < 2e-5
    assert float((whole["logit_bias"] - load_towers(parents["init"].uri).model.state_dict()["logit_bias"]).abs()) > 0


def test_siglip_without_a_bias_is_refused_before_training(setting):
    run, _, _ = setting
    with pytest.raises(ModelError, match=r"needs 'logit_bias'"):
        run(stage({"a": phase(objectives={"c": Term(loss=SigLIP())})}))


def test_clip_refine_runs_on_the_loop_with_a_frozen_teacher(setting):
    run, parents, _ = setting
    objectives = {"hybrid": Term(loss=HybridDistillation(teacher="old")), "reference": Term(loss=RandomReference())}
    spec = stage({"refine": phase(objectives=objectives, teachers={"old": FrozenModel(checkpoint="init")})})
    before = digest(parents["init"].uri)
    uri, _ = run(spec, **{"phases.refine.teachers.old.checkpoint": parents["init"]})
    assert digest(parents["init"].uri) == before != digest(uri)
    assert {"hybrid", "reference", "reference/alignment"} <= log_lines(uri)[0].keys()


def test_a_mixture_is_grown_from_clustered_experts_and_only_its_routers_train(setting):
    run, _, _ = setting
    clustered = View(sampler=ClusterSampler(phases=("init",), clusters=2), augment=None)
    phases = {
        "expert": phase(trainable=("*.mlp.*",), view=clustered, global_batch_size=6, samples_seen=24),
        "router": phase(
            surgeries=(Upcycle(experts=("init", "expert"), top_k=1),), trainable=("*.router.weight",),
            objectives={"c": Term(loss=InfoNCE()), "balance": Term(weight=0.01, loss=RouterBalance())},
        ),
    }  # fmt: skip
    uri, job = run(stage(phases))
    start, expert = (
        load_towers(x).model.state_dict() for x in (job.parents["init"], storage.join(job.state_uri, "expert"))
    )
    moved = {name for name in start if not torch.equal(start[name], expert[name])}
    assert moved
    assert all(".mlp." in name for name in moved)
    mixed = load_towers(uri).model.state_dict()
    assert torch.equal(
        mixed["visual.transformer.resblocks.0.mlp.experts.1.c_fc.weight"],
        expert["visual.transformer.resblocks.0.mlp.c_fc.weight"],
    )
    outcome = storage.read_json(storage.join(job.state_uri, "outcome.json"))
    assert outcome["metrics"]["checks"]["router/equal experts equal the dense model"] < 1e-5
    assert not outcome["metrics"]["open_clip_layout"]


def test_a_student_learns_from_cached_features(setting, world, tmp_path):
    run, parents, _ = setting
    work = world.work(
        tmp_path, "features", {"checkpoint": parents["init"], "pairs": parents["pairs"], "split": parents["split"]}
    )
    outcome = embed.run(
        EmbedSpec(checkpoint="init", pairs="pairs", split="split", splits=("train",), queries=("red",)), work
    )
    features = work.out.commit(
        Record(kind="feature_set", stage="embed", revision=1, fingerprint="ab" * 32, config={}, metrics=outcome.metrics)
    )
    assert "red" in FeatureSet(features).texts
    small = {**world.TINY, "vision_cfg": {**world.TINY["vision_cfg"], "layers": 1}}
    objectives = {"features": Term(loss=FeatureCosine(teacher="big")), "rows": Term(loss=SimilarityRows(teacher="big"))}
    student = phase(
        surgeries=(Reinitialise(architecture=small),),
        objectives=objectives,
        teachers={"big": CachedFeatures(features="f")},
        samples_seen=SIZE * 30,
        view=View(augment=None),
    )
    uri, _ = run(stage({"distil": student}), **{"phases.distil.teachers.big.features": features})
    lines = log_lines(uri)
    assert lines[-1]["features"] < 0.5 * lines[0]["features"]
    assert load_towers(uri).parameter_count() < load_towers(parents["init"].uri).parameter_count()


def test_features_do_not_depend_on_the_chunk(setting, world, tmp_path):
    _, parents, _ = setting
    found = []
    for chunk in (5, 64):
        work = world.work(
            tmp_path, f"f{chunk}", {key: parents[key] for key in ("pairs", "split")} | {"checkpoint": parents["init"]}
        )
        embed.run(EmbedSpec(checkpoint="init", pairs="pairs", split="split", splits=("test",), chunk_pairs=chunk), work)
        found.append(
            work.out.commit(
                Record(kind="feature_set", stage="embed", revision=1, fingerprint=str(chunk).ljust(64, "0"), config={})
            )
        )
    one, two = (FeatureSet(artifact) for artifact in found)
    assert one.uids == two.uids
    assert abs(one.images - two.images).max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"trainable": ("*.nothing.*",)}, ModelError, "matches none of the"),
        (
            {"view": View(caption_weights={"rewrite": 1.0})},
            ShardError,
            "caption source 'rewrite': not in these pairs; there are alias, alt",
        ),
        (
            {"view": View(sampler=ClusterSampler(phases=("init",), clusters=4)), "global_batch_size": 54},
            ModelError,
            "lower global_batch_size",
        ),
    ],
)
def test_impossible_phases_are_one_line(setting, changes, error, words):
    run, _, _ = setting
    with pytest.raises(error, match=words) as caught:
        run(stage({"a": phase(**changes)}))
    assert "\n" not in str(caught.value)


def test_batches_that_do_not_divide_are_refused_before_anything_starts():
    with pytest.raises(ModelError, match="global_batch_size 18 does not divide by 4 workers; use 16"):
        check_sizes(stage({"a": phase()}), 4)
    with pytest.raises(ModelError, match="samples_seen 5 is below one global batch"):
        check_sizes(stage({"a": phase(samples_seen=5)}), 1)


@pytest.mark.timeout(240)
def test_one_two_and_four_ranks_give_the_same_curve(setting, world, tmp_path):
    run, _, _ = setting
    objectives = {"contrast": Term(loss=InfoNCE(multi_positive=True)), "reference": Term(loss=RandomReference())}
    spec = stage(
        {"a": phase(objectives=objectives, global_batch_size=16, samples_seen=80)}, checkpoint_every_samples=32
    )
    uri, job = run(spec)
    alone = log_lines(uri)
    for ranks in (2, 4):
        out = tmp_path / f"ranks-{ranks}"
        order = {
            "spec": job.spec,
            "parents": job.parents,
            "out": str(out),
            "state": str(out) + ".state",
            "place": job.place,
            "ranks": ranks,
        }
        script = Path(__file__).with_name("ranks.py")
        subprocess.run(
            [sys.executable, str(script), json.dumps(order)], check=True, cwd=Path(__file__).parents[2], timeout=200
        )
        together = log_lines(out)
        for one, many in zip(alone, together, strict=True):
            assert many["loss"] == pytest.approx(one["loss"], abs=2e-4)
            assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)
