"""CLOOB's loss: the paper's formula with every matrix, its limiting cases, and what several ranks make of it."""

import math
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from data.errors import ModelError
from training import specs
from training.loop import learning_rate
from training.objectives import Context, build_objective, tiles
from training.objectives.leave_one_out import retrieve

together = runpy.run_path(str(Path(__file__).with_name("ranks.py")))["together"]
LEARNED = ("image_features", "text_features", "logit_scale")
OPTIONS = {
    "cloob": {},
    "learned scale": {"scale": None},
    "plain features": {"hopfield_beta": None},
    "only hopfield": {"leave_one_out": False},
    "neither": {"hopfield_beta": None, "leave_one_out": False, "scale": None},
}


def hopfield(query, memory, beta):
    return query if beta is None else F.normalize((beta * query @ memory.T).softmax(-1) @ memory, dim=-1)


def one_side(anchors, candidates, inverse_tau, leave_one_out):
    """tau * mean(-k_ii + log of the sum of exp(k_ij) over the columns of the denominator), entry by entry."""
    k = anchors @ candidates.T * inverse_tau
    count = len(k)
    rows = []
    for i in range(count):
        columns = [j for j in range(count) if j != i or not leave_one_out]
        rows.append(torch.logsumexp(k[i, columns], 0) - k[i, i])
    return torch.stack(rows).mean() / inverse_tau


def formula(spec, names, columns=None):
    """L(U_x, U_y) + L(V_y, V_x) of section 3, over the whole batch."""
    x, y = (names[key] for key in LEARNED[:2])
    scale = names["logit_scale"] if spec.scale is None else spec.scale
    beta, out = spec.hopfield_beta, spec.leave_one_out
    first = one_side(hopfield(x, x, beta), hopfield(y, x, beta), scale, out)
    return first + one_side(hopfield(y, y, beta), hopfield(x, y, beta), scale, out)


def batch(pairs=7, width=5, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(pairs, width, generator=random, dtype=dtype), dim=1) for _ in range(2))
    return dict(zip(LEARNED, (image, text, torch.tensor(12.0, dtype=dtype)), strict=True))


def alone():
    return Context(0.0, 0, 1, torch.Generator())


def ours(spec, names, context=None):
    return build_objective(spec)(names, context or alone()).value


def with_gradients(loss, names):
    leaves = {key: value.clone().requires_grad_() for key, value in names.items()}
    value = loss(leaves)
    value.backward()
    return [value.detach(), *(leaves[key].grad for key in LEARNED if leaves[key].grad is not None)]


# -------------------------------------------------------------------------------------------------------- one rank


@pytest.mark.parametrize("edge", [2, 3, 1024])
@pytest.mark.parametrize("name", OPTIONS)
def test_value_and_gradients_are_the_papers(monkeypatch, name, edge):
    monkeypatch.setitem(tiles.EDGES, "cpu", edge)
    spec, names = specs.InfoLOOB(**OPTIONS[name]), batch()
    found = with_gradients(lambda leaves: ours(spec, leaves), names)
    for one, other in zip(found, with_gradients(lambda leaves: formula(spec, leaves), names), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_by_hand_for_two_pairs_without_a_hopfield_layer():
    """Rows (1, 0) and (0, 1) in both modalities: a row's loss is (1 / 30) * (-30 + ln e^0) = -1, in both directions."""
    eye = torch.eye(2)
    value = ours(specs.InfoLOOB(hopfield_beta=None), {"image_features": eye, "text_features": eye})
    assert float(value) == pytest.approx(-2.0)


def test_no_similarity_is_too_low_to_be_the_only_one():
    """(1, 0) and (-1, 0): logits -2000 off the diagonal, under which a mask of -1000 would have been the maximum."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    spec = specs.InfoLOOB(hopfield_beta=None, scale=2000)
    assert float(ours(spec, {"image_features": rows, "text_features": rows})) == pytest.approx(-4.0)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_own_pairs_gradient_never_fades(scale):
    """d loss / d s_ii = -1 / N whatever the similarities; with InfoNCE's denominator it fades as pairs are learnt."""
    learnt = torch.eye(5, dtype=torch.float64) * 0.9 + 0.05  # anchors against the unit vectors: these are the cosines
    for cosine in (learnt, torch.linspace(-1, 1, 25, dtype=torch.float64).view(5, 5)):
        leaf = cosine.clone().requires_grad_()
        loss = build_objective(specs.InfoLOOB())
        loss.contrast(leaf, torch.eye(5, dtype=torch.float64), 0, torch.tensor(scale)).backward()
        torch.testing.assert_close(
            leaf.grad.diagonal(), torch.full((5,), -0.2, dtype=torch.float64), atol=1e-12, rtol=0
        )
        assert torch.allclose(leaf.grad.sum(1), torch.zeros(5, dtype=torch.float64))
    leaf = learnt.clone().requires_grad_()
    loss = build_objective(specs.InfoLOOB(leave_one_out=False))
    loss.contrast(leaf, torch.eye(5, dtype=torch.float64), 0, torch.tensor(30.0)).backward()
    assert leaf.grad.diagonal().abs().max() < 1e-6


def test_beta_zero_is_a_constant():
    spec = specs.InfoLOOB(hopfield_beta=0.0)
    for seed in (0, 1):
        parts = build_objective(spec)(batch(seed=seed), alone()).parts
        for part in parts.values():
            assert float(part) == pytest.approx(math.log(6) / 30)  # tau ln(N - 1)


def test_a_high_beta_recalls_the_stored_pattern():
    memory = F.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert (retrieve(memory, memory, 1e4) - memory).abs().max() < 2e-7
    assert (retrieve(memory, memory, 2.0) - memory).abs().max() > 0.05


def test_plain_features_and_the_full_denominator_are_twice_info_nce_times_tau():
    names = batch()
    both = specs.InfoLOOB(**OPTIONS["neither"])
    torch.testing.assert_close(ours(both, names), 2 / names["logit_scale"] * ours(specs.InfoNCE(), names))


def effective_rank(rows):
    """exp of the entropy of the covariance's normalised eigenvalues."""
    values = torch.linalg.eigvalsh(torch.cov(rows.T)).clamp_min(0)
    share = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def test_retrieval_keeps_what_features_share_and_drops_the_rest():
    """Three correlated groups in noise: what is recalled has about two dimensions, those between three centres."""
    random = torch.Generator().manual_seed(0)
    centres = torch.eye(32)[:3].repeat_interleave(40, 0)
    rows = F.normalize(centres + 0.08 * torch.randn(120, 32, generator=random), dim=1)
    assert effective_rank(rows) > 5
    assert effective_rank(retrieve(rows, rows, 8.0)) == pytest.approx(2, abs=0.1)
    loose = F.normalize(torch.randn(120, 32, generator=random), dim=1)
    assert effective_rank(retrieve(loose, loose, 8.0)) > 25  # where nothing is shared, nothing is lost


@pytest.mark.parametrize("name", OPTIONS)
def test_the_order_of_pairs_does_not_matter(name):
    names, order = batch(), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    turned = {key: value[order] if value.ndim else value for key, value in names.items()}
    spec = specs.InfoLOOB(**OPTIONS[name])
    torch.testing.assert_close(ours(spec, turned), ours(spec, names))
    mixed = names | {"text_features": names["text_features"][order]}  # the control: pairs that belong to others
    assert abs(float(ours(spec, mixed) - ours(spec, names))) > 1e-3


def test_a_single_pair_is_refused():
    with pytest.raises(ModelError, match="global_batch_size"):
        ours(specs.InfoLOOB(), batch(1))


def test_the_cosine_starts_again_at_the_peak():
    """Ten hard restarts after a warm-up of 100: 1, 1/2, almost 0 and 1 again every 100 pairs, 0 at the end."""
    adamw, schedule = specs.AdamW(lr=1.0), specs.CosineSchedule(warmup_samples=100, cycles=10)
    rates = [learning_rate(adamw, schedule, at, 1100) for at in (50, 100, 150, 200 - 1e-6, 200, 1000, 1100)]
    assert rates == pytest.approx([0.5, 1, 0.5, 0, 1, 1, 0], abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ ranks


def on_ranks(rank, ranks, folder):
    """Per option and policy: the mean over ranks of the values, and the gradients as data parallelism averages them."""
    found, whole = {}, batch(8)
    mine = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    for name, options in OPTIONS.items():
        for gather in ("local", "gather_with_grad", "gather_without_grad"):
            spec = specs.InfoLOOB(gather=gather, **options)
            leaves = {key: value.clone().requires_grad_() for key, value in whole.items()}
            own = {key: value[mine] if value.ndim else value for key, value in leaves.items()}
            value = ours(spec, own, Context(0.0, rank, ranks, torch.Generator()))
            value.backward()
            all_of = [value.detach(), *(leaves[key].grad for key in LEARNED if leaves[key].grad is not None)]
            for tensor in all_of:
                dist.all_reduce(tensor)
            found[name, gather] = [tensor / ranks for tensor in all_of]
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    together(on_ranks, request.param, folder / "store", folder)
    yield request.param, torch.load(folder / "found.pt")
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_together_have_the_single_processs_value_and_gradients(ranks, name):
    _, found = ranks
    expected = with_gradients(lambda leaves: formula(specs.InfoLOOB(**OPTIONS[name]), leaves), batch(8))
    for one, other in zip(found[name, "gather_with_grad"], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", OPTIONS)
def test_gathering_without_gradient_is_the_released_codes_share(ranks, name):
    """Every rank has the whole loss; features get 1 / ranks of its gradient, a learnt scale all of it."""
    count, found = ranks
    expected = with_gradients(lambda leaves: formula(specs.InfoLOOB(**OPTIONS[name]), leaves), batch(8))
    for number, (one, other) in enumerate(zip(found[name, "gather_without_grad"], expected, strict=True)):
        share = count if number in (1, 2) else 1
        torch.testing.assert_close(one * share, other, rtol=1e-9, atol=1e-11)


def test_local_sees_only_its_ranks_pairs(ranks):
    count, found = ranks
    parts = [{key: value[at : at + 8 // count] if value.ndim else value for key, value in batch(8).items()}
             for at in range(0, 8, 8 // count)]  # fmt: skip
    expected = sum(formula(specs.InfoLOOB(), part) for part in parts) / count
    torch.testing.assert_close(found["cloob", "local"][0], expected)
    assert abs(expected - formula(specs.InfoLOOB(), batch(8))) > 1e-3
