"""CLIP-Refine's objectives: HyCD and RaFA by their equations, their limits, and the same training on two ranks."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from data.place import Place
from training import specs
from training.loop import train
from training.objectives import Context, WeightedSum, build_objective
from training.parallel import whole

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
PAIRS, WIDTH = 7, 5
LEARNED = ("raw_image_features", "raw_text_features", "logit_scale")


def raw(seed, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(PAIRS, WIDTH, generator=random, dtype=torch.float64) * scale


def batch(teacher=8):
    """Leaves before normalisation; the teacher's features from other seeds (`teacher` 1: the student's own)."""
    return {
        "raw_image_features": raw(1, 3.0), "raw_text_features": raw(2, 0.5),
        "logit_scale": torch.tensor(9.0, dtype=torch.float64), "t.image_features": F.normalize(raw(teacher), dim=1),
        "t.text_features": F.normalize(raw(teacher + 1), dim=1), "t.logit_scale": torch.tensor(9.0).double(),
    }  # fmt: skip


def with_features(names):
    sides = {side: F.normalize(names[f"raw_{side}"], dim=1) for side in ("image_features", "text_features")}
    return {**names, **sides}


def context(seed=3, rank=0, world=1):
    return Context(0.0, rank, world, torch.Generator().manual_seed(seed))


def value_and_gradients(loss, names):
    leaves = {key: names[key].clone().requires_grad_() for key in LEARNED}
    value = loss(with_features({**names, **leaves}))
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]


def ours(spec):
    return lambda names: build_objective(spec)(names, context()).value


def assert_same(one, other, names=None, **tolerance):
    names = names or batch()
    for left, right in zip(*(value_and_gradients(loss, names) for loss in (one, other)), strict=True):
        torch.testing.assert_close(left, right, **(tolerance or {"rtol": 1e-6, "atol": 1e-9}))


# ------------------------------------------------------------------------------------------------------------ HyCD


def hycd(names, hard):
    """The paper's loss with every matrix: 1/2 [KL(q_i2t || p_i2t) + KL(q_t2i || p_t2i)], mean of rows."""
    student = names["logit_scale"] * names["image_features"] @ names["text_features"].T
    teacher = names["t.logit_scale"] * names["t.image_features"] @ names["t.text_features"].T
    total = torch.zeros(())
    for s, t in ((student, teacher), (student.T, teacher.T)):
        target = hard * torch.eye(PAIRS) + (1 - hard) * t.softmax(1)
        safe = target.clamp(min=1e-300)
        total = total + (target * (safe.log() - s.log_softmax(1))).sum(1).mean() / 2
    return total


@pytest.mark.parametrize("hard", [0.0, 0.3, 0.5, 1.0])
def test_hycd_is_its_equation_with_every_gradient(hard):
    assert_same(ours(specs.HybridDistillation(teacher="t", hard=hard)), lambda names: hycd(names, hard))


def test_hard_targets_alone_are_info_nce_in_value_and_gradient():
    assert_same(ours(specs.HybridDistillation(teacher="t", hard=1.0)), ours(specs.InfoNCE()), rtol=1e-9, atol=1e-12)


def test_a_student_that_is_its_teacher_learns_nothing_from_soft_targets():
    names = batch(teacher=1)
    value, *gradients = value_and_gradients(ours(specs.HybridDistillation(teacher="t", hard=0.0)), names)
    assert abs(float(value)) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-12


def test_half_hard_targets_at_the_teacher_pull_half_as_much_as_info_nce():
    """There the soft half is at its minimum, so that all gradient is the hard half's."""
    names = batch(teacher=1)
    half, whole_pull = (
        value_and_gradients(ours(spec), names)[1:]
        for spec in (specs.HybridDistillation(teacher="t", hard=0.5), specs.InfoNCE())
    )
    for one, other in zip(half, whole_pull, strict=True):
        torch.testing.assert_close(one, other / 2, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ RaFA


def drawn(normalised, fixed=False):
    """The references, drawn as the objective draws them."""
    rows, seed = (1, 0) if fixed else (PAIRS, 3)
    reference = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    return F.normalize(reference, dim=1) if normalised else reference


def rafa(names, prefix, reference):
    image, text = (names[f"{prefix}{side}_features"] for side in ("image", "text"))
    return ((image - reference).square().sum(1) + (text - reference).square().sum(1)).sum() / (2 * PAIRS)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("features", ["normalised", "raw"])
@pytest.mark.parametrize("normalised", [True, False])
def test_rafa_is_its_equation_with_every_gradient(normalised, features, fixed):
    spec = specs.RandomReference(
        normalised=normalised, features=features, reference="fixed" if fixed else "pair"
    )  # fmt: skip
    prefix, reference = "raw_" if features == "raw" else "", drawn(normalised, fixed)
    assert_same(ours(spec), lambda names: rafa(names, prefix, reference))


@pytest.mark.parametrize("features", ["normalised", "raw"])
def test_rafa_is_a_quarter_alignment_plus_the_midpoints_pull(features):
    spec = specs.RandomReference(features=features, normalised=False)
    prefix, reference = "raw_" if features == "raw" else "", drawn(False)

    def identity(names):
        image, text = (names[f"{prefix}{side}_features"] for side in ("image", "text"))
        middle = (image + text) / 2
        return ((image - text).square().sum(1) / 4 + (middle - reference).square().sum(1)).mean()

    assert_same(ours(spec), identity)


def test_the_logged_alignment_is_that_quarter():
    names = with_features(batch())
    loss = build_objective(specs.RandomReference())(names, context())
    expected = (names["image_features"] - names["text_features"]).square().sum(1).mean() / 4
    torch.testing.assert_close(loss.parts["alignment"], expected)


def test_a_fixed_reference_is_one_for_all_pairs_and_steps():
    objective = build_objective(specs.RandomReference(reference="fixed"))
    names = with_features(batch())
    values = {float(objective(names, context(seed)).value) for seed in range(3)}
    others = {float(build_objective(specs.RandomReference())(names, context(seed)).value) for seed in range(3)}
    assert len(values) == 1 and len(others) == 3


def test_the_control_without_a_prior_is_one_minus_the_cosine():
    names = with_features(batch())
    expected = (1 - F.cosine_similarity(names["image_features"], names["text_features"])).mean()
    torch.testing.assert_close(build_objective(specs.Alignment())(names, context()).value, expected)


# ------------------------------------------------------------------------------------------------------ the sum


def test_without_the_reference_clip_refine_is_hycd_to_the_bit():
    parent = {"hycd": specs.Term(loss=specs.HybridDistillation(teacher="t"))}
    child = {**parent, "reference": specs.Term(weight=0.0, loss=specs.RandomReference())}
    found = [
        value_and_gradients(lambda names, terms=terms: WeightedSum(terms)(names, context()).value, batch())
        for terms in (parent, child)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_teacher_gets_no_gradient():
    names = with_features(batch())
    teacher = {key: value.requires_grad_() for key, value in names.items() if key.startswith("t.")}
    student = {key: names[key].requires_grad_() for key in ("image_features", "text_features")}
    build_objective(specs.HybridDistillation(teacher="t"))({**names, **student}, context()).value.backward()
    assert all(value.grad is None for value in teacher.values())
    assert all(value.grad is not None for value in student.values())


class Shifted:
    """A teacher made up from the batch alone, the same on every rank."""

    def targets(self, batch):
        position = batch.more["position"].double()[:, None] + torch.arange(16)
        sides = {f"{side}_features": F.normalize((position * (n + 2)).sin().float(), dim=1)
                 for n, side in enumerate(("image", "text"))}  # fmt: skip
        return {**sides, "logit_scale": torch.tensor(8.0)}


def trained(rank, world_size, architecture, parallel, chunk):
    terms = {
        "hycd": specs.Term(loss=specs.HybridDistillation(teacher="teacher")),
        "reference": specs.Term(loss=specs.RandomReference(features="raw")),
    }
    run, _ = ranks.built(
        rank, world_size, architecture, False, {"objectives": terms, "chunk_pairs": chunk}, Place(parallel=parallel)
    )
    run.teachers["teacher"] = Shifted()
    train(run)
    return {name: whole(value).clone() for name, value in run.towers.model.state_dict().items()}


def on_rank(rank, world_size, architecture, folder):
    for parallel in ("ddp", "fsdp"):
        found = trained(rank, world_size, architecture, parallel, None)
        if rank == 0:
            torch.save(found, folder / f"{parallel}.pt")


def test_two_ranks_and_chunks_give_one_ranks_training(world, tmp_path):
    ranks.together(on_rank, 2, tmp_path / "store", world.TINY, tmp_path)
    alone = trained(0, 1, world.TINY, "ddp", None)
    others = [torch.load(tmp_path / f"{parallel}.pt") for parallel in ("ddp", "fsdp")]
    for found in (*others, trained(0, 1, world.TINY, "ddp", 3)):
        torch.testing.assert_close(found, alone, atol=5e-5, rtol=5e-5)
