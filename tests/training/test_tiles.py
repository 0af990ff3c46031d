"""Tiled losses are the plain formulas: values, every gradient, any tile, any ranks, without a matrix of all pairs."""

import math
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import specs
from training.objectives import Context, build_objective, sigmoid, softmax, tiles

together = runpy.run_path(str(Path(__file__).with_name("ranks.py")))["together"]
LEARNED = ("image_features", "text_features", "logit_scale", "logit_bias")
POLICIES = ("local", "gather_with_grad", "gather_without_grad")
SPECS = {
    "info_nce": specs.InfoNCE(),
    "info_nce multi": specs.InfoNCE(multi_positive=True),
    "info_nce smooth": specs.InfoNCE(label_smoothing=0.1),
    "info_nce multi smooth": specs.InfoNCE(multi_positive=True, label_smoothing=0.2),
    "siglip": specs.SigLIP(),
    "siglip multi": specs.SigLIP(multi_positive=True),
    "hybrid": specs.HybridDistillation(teacher="t", hard=0.4, multi_positive=True),
    "hybrid soft": specs.HybridDistillation(teacher="t", hard=0.0),
    "hybrid hard": specs.HybridDistillation(teacher="t", hard=1.0),
    "rows": specs.SimilarityRows(teacher="t", temperature=2.5),
}


# ------------------------------------------------------------------------------------------ the formulas, in full


def rows_of(names, context, gather, prefix=""):
    image, text, scale = (names[prefix + key] for key in LEARNED[:3])
    return scale * image @ context.columns(text, gather).T, scale * text @ context.columns(image, gather).T


def positives(names, context, gather, multi_positive):
    image = names["image_features"]
    ids = names["text_id"] if multi_positive else torch.arange(len(image)) + len(image) * context.rank
    columns = context.columns(ids, "local" if gather == "local" else "gather_without_grad")
    return (ids[:, None] == columns[None, :]).to(image.dtype)


def plain(spec, names, context):
    """The loss as its papers write it, with every matrix."""
    logits = rows_of(names, context, spec.gather)
    right = positives(names, context, spec.gather, getattr(spec, "multi_positive", False))
    if spec.objective == "siglip":
        return -F.logsigmoid((2 * right - 1) * (logits[0] + names["logit_bias"])).sum() / len(right)
    right = right / right.sum(1, keepdim=True)
    if spec.objective == "info_nce":
        right = right * (1 - spec.label_smoothing) + spec.label_smoothing / right.shape[1]
        return sum(F.cross_entropy(rows, right) for rows in logits) / 2
    teacher = [rows.detach() for rows in rows_of(names, context, spec.gather, "t.")]
    if spec.objective == "hybrid_distillation":
        targets = [spec.hard * right + (1 - spec.hard) * rows.softmax(1) for rows in teacher]
        return (
            sum(F.kl_div(s.log_softmax(1), t, reduction="batchmean") for s, t in zip(logits, targets, strict=True)) / 2
        )
    heat = spec.temperature
    pairs = [((s / heat).log_softmax(1), (t / heat).softmax(1)) for s, t in zip(logits, teacher, strict=True)]
    return sum(F.kl_div(s, t, reduction="batchmean") for s, t in pairs) / 2 * heat**2


# -------------------------------------------------------------------------------------------------------- harness


def batch(pairs, width=8, seed=0, scale=10.0, dtype=torch.float64, captions=None):
    random = torch.Generator().manual_seed(seed)
    image, text, timage, ttext = (
        F.normalize(torch.randn(pairs, width, generator=random, dtype=torch.float64), dim=1).to(dtype) for _ in range(4)
    )
    ids = torch.randint(captions or max(2, pairs // 2), (pairs,), generator=random)
    return {
        "image_features": image, "text_features": text, "logit_scale": torch.tensor(scale, dtype=dtype),
        "logit_bias": torch.tensor(-3.0, dtype=dtype), "text_id": ids, "t.image_features": timage,
        "t.text_features": ttext, "t.logit_scale": torch.tensor(7.0, dtype=dtype),
    }  # fmt: skip


def alone():
    return Context(0.0, 0, 1, torch.Generator())


def value_and_gradients(loss, names, context, learned=LEARNED):
    leaves = {k: v.clone().requires_grad_(k in learned) for k, v in names.items() if v.is_floating_point()}
    value = loss({**names, **leaves}, context)
    value.backward()
    return [value.detach(), *(leaves[key].grad for key in learned if leaves[key].grad is not None)]


def ours(spec):
    return lambda names, context: build_objective(spec)(names, context).value


def theirs(spec):
    return lambda names, context: plain(spec, names, context)


def assert_equal_to_plain(spec, names, context, learned=LEARNED, rtol=1e-9, atol=1e-11):
    tiled = value_and_gradients(ours(spec), names, context, learned)
    reference = value_and_gradients(
        theirs(spec), {k: v.double() if v.is_floating_point() else v for k, v in names.items()}, context, learned
    )
    for one, other in zip(tiled, reference, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=atol)


@pytest.fixture
def edge(monkeypatch):
    return lambda size: monkeypatch.setitem(tiles.EDGES, "cpu", size)


# -------------------------------------------------------------------------------------------------------- one rank


@pytest.mark.parametrize("size", [1, 4, 5, 13, 64])
@pytest.mark.parametrize("name", SPECS)
def test_any_tile_gives_the_formulas_value_and_gradients(edge, name, size):
    edge(size)
    assert_equal_to_plain(SPECS[name], batch(13), alone())


@pytest.mark.parametrize("learned", [LEARNED[:1], LEARNED[1:2], LEARNED[2:], LEARNED[:2]])
@pytest.mark.parametrize("name", ["info_nce multi smooth", "siglip multi", "hybrid"])
def test_a_locked_tower_leaves_the_others_gradients(edge, name, learned):
    edge(5)
    assert_equal_to_plain(SPECS[name], batch(13), alone(), learned)


@pytest.mark.parametrize("name", SPECS)
def test_evaluation_needs_no_gradient(edge, name):
    edge(5)
    names = {k: v.requires_grad_() if k in LEARNED else v for k, v in batch(13).items()}
    with torch.no_grad():
        value = ours(SPECS[name])(names, alone())
        assert torch.allclose(value, plain(SPECS[name], names, alone()))
    assert not value.requires_grad


@pytest.mark.parametrize("scale", [100.0, 1000.0])
@pytest.mark.parametrize("case", ["random", "identical", "opposite", "orthogonal"])
@pytest.mark.parametrize("name", ["info_nce", "info_nce multi", "siglip"])
def test_extreme_similarities_in_float32(edge, name, case, scale):
    edge(5)
    names = batch(13, 16, scale=scale, dtype=torch.float32)
    names["text_features"] = {
        "random": names["text_features"],
        "identical": names["image_features"][:1].expand(13, 16).clone(),
        "opposite": -names["image_features"],
        "orthogonal": torch.eye(13, 16),
    }[case]
    if case in ("identical", "orthogonal"):
        names["image_features"] = names["text_features"].clone()
    # a similarity has float32's 6e-8 of its scale, and so has everything that comes of it
    assert_equal_to_plain(SPECS[name], names, alone(), rtol=1e-6 * scale, atol=2e-7 * scale)


def test_a_solved_batch_keeps_its_digits(edge):
    edge(5)
    names = batch(13, 16, scale=12.0, dtype=torch.float32)
    names["image_features"] = names["text_features"] = torch.eye(13, 16)
    value, image_grad, *_ = value_and_gradients(ours(SPECS["info_nce"]), names, alone())
    assert float(value) == pytest.approx(math.log1p(12 * math.exp(-12)), abs=2e-7)  # the last bit of 1 + loss
    right = -(12 / 13) * 12 * math.exp(-12) / (1 + 12 * math.exp(-12))
    assert torch.allclose(image_grad.diagonal(), torch.full((13,), right), rtol=1e-2)


def test_same_inputs_same_bits(edge):
    edge(16)
    names = batch(50, 32, dtype=torch.float32)
    for spec in SPECS.values():
        one, two = (value_and_gradients(ours(spec), names, alone()) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_kept_graph_may_go_backward_twice_and_only_once_deep():
    names = batch(6)
    image = names["image_features"].requires_grad_()
    value = ours(SPECS["info_nce"])(names, alone())
    (one,), (two,) = (torch.autograd.grad(value * 3, image, retain_graph=True) for _ in range(2))
    assert torch.equal(one, two)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, image, create_graph=True)


class Largest(TorchDispatchMode):
    """Records the most elements that any tensor made here had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


def largest(loss, pairs, **more):
    with Largest() as seen:
        value_and_gradients(loss, batch(pairs, **more), alone())
    return seen.elements


@pytest.mark.parametrize("name", SPECS)
def test_nothing_as_large_as_all_pairs_is_made(edge, name):
    edge(16)
    pairs = 160
    assert largest(theirs(SPECS[name]), pairs) == pairs * pairs
    slack = 4 * pairs if "hybrid" in name or name == "rows" else 0  # distillation cuts rows, of edge / 4 at least
    assert largest(ours(SPECS[name]), pairs) <= max(slack, 8 * pairs, 16 * 16)


def test_equal_captions_need_no_matrix_however_many(edge):
    edge(16)
    assert largest(ours(SPECS["info_nce multi smooth"]), 160, captions=80) <= 8 * 160
    assert largest(ours(SPECS["siglip multi"]), 160, captions=1) <= 8 * 160


@pytest.mark.parametrize("shape", [(7, 7, 0, 3), (6, 24, 12, 4), (5, 20, 15, 5), (5, 10, 0, 100), (1, 3, 2, 1)])
def test_tiles_cover_every_pair_once_and_know_the_diagonal(shape):
    rows, columns, offset, edge = shape
    seen, own = torch.zeros(rows, columns), torch.full((rows,), -1.0)
    numbers = torch.arange(float(rows * columns)).view(rows, columns)
    for tile in tiles.grid(rows, columns, offset, edge):
        assert max(tile.shape) <= edge
        assert tile.shape == seen[tile.rows, tile.columns].shape
        assert tile.is_own == (offset <= tile.columns.start < offset + rows)
        seen[tile.rows, tile.columns] += 1
        if tile.is_own:
            own[tile.diagonal_rows()] = tile.diagonal(numbers[tile.rows, tile.columns])
    assert torch.equal(seen, torch.ones(rows, columns))
    assert torch.equal(own, numbers.diagonal(offset)[:rows])


def eager_and_arguments():
    tile, line = torch.randn(7, 9), torch.randn(7).abs() + 2
    return [
        (softmax.fold, (tile, torch.full((7,), -math.inf), torch.zeros(7), 1, None)),
        (softmax.probabilities, (tile, line, line, 1, None)),
        (sigmoid.softplus_sum, (tile, None)),
        (tiles.inner, (tile, tile + 1, None)),
    ]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("number", range(4))
def test_what_a_gpu_compiles_is_what_a_cpu_runs(number):
    function, arguments = eager_and_arguments()[number]
    eager = function(*arguments)
    compiled = torch.compile(function.__wrapped__, dynamic=True)(*arguments)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ many ranks


def compare_on_rank(rank, ranks, size):
    tiles.EDGES["cpu"] = size
    context = Context(0.0, rank, ranks, torch.Generator())
    for spec in SPECS.values():
        for gather in POLICIES:
            chosen = spec.model_copy(update={"gather": gather})
            names = batch(7, seed=rank, captions=9)  # other pairs on every rank, captions in common
            found = [value_and_gradients(loss(chosen), names, context) for loss in (ours, theirs)]
            for number, (one, other) in enumerate(zip(*found, strict=True)):
                if number > 2:  # shared by the ranks: each may hold another part of the sum
                    dist.all_reduce(one)
                    dist.all_reduce(other)
                assert torch.allclose(one, other, rtol=1e-9, atol=1e-11), (chosen, number, one, other)


@pytest.mark.parametrize(("ranks", "size"), [(1, 3), (2, 3), (2, 64), (4, 3), (4, 7)])
def test_ranks_agree_with_autograd_through_the_gather(ranks, size, tmp_path):
    together(compare_on_rank, ranks, tmp_path / "store", size)


def test_the_policies_differ(tmp_path):
    """Else the test above would prove nothing about them."""
    together(differ_on_rank, 2, tmp_path / "store")


def differ_on_rank(rank, ranks):
    context = Context(0.0, rank, ranks, torch.Generator())
    for name in ("info_nce", "siglip"):
        spec = [SPECS[name].model_copy(update={"gather": gather}) for gather in POLICIES]
        text = [value_and_gradients(ours(s), batch(7, seed=rank), context)[2] for s in spec]
        assert not torch.allclose(text[1], text[2]) and not torch.allclose(text[0], text[1])
