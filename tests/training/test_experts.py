"""The mixture's layer and its balance loss against the formulas written out, and what ranks and precision leave."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from data.place import Place
from training import specs
from training.loop import train
from training.objectives import Context, build_objective
from training.objectives.routing import load_balancing_loss
from training.parallel import whole
from training.surgeries.experts import ExpertMLP, with_dropout
from training.towers import load_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
WIDTH, EXPERTS = 8, 4


def ffn(seed):
    torch.manual_seed(seed)
    layers = {"c_fc": nn.Linear(WIDTH, 12), "gelu": nn.GELU(), "c_proj": nn.Linear(12, WIDTH)}
    made = nn.Sequential()
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made


def mixture(top_k, seed=0, router_std=1.0):
    random = torch.Generator().manual_seed(seed)
    return ExpertMLP([ffn(seed + number) for number in range(EXPERTS)], WIDTH, top_k, random, router_std)


def tokens(seed=3):
    return torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


def written_out(layer, x):
    """Every expert on every token; what a token did not choose has weight 0."""
    probabilities = (x @ layer.router.weight.T).softmax(-1)
    kept = torch.zeros_like(probabilities)
    for place in probabilities.topk(layer.top_k, dim=-1).indices.unbind(-1):
        kept.scatter_(-1, place[..., None], probabilities.gather(-1, place[..., None]))
    kept = kept / kept.sum(-1, keepdim=True)
    return sum(kept[..., n, None] * expert(x) for n, expert in enumerate(layer.experts))


def gradients(layer, x, output):
    """Of the input, of the router and of all experts."""
    weights = [x, *layer.parameters()]
    return torch.autograd.grad((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum(), weights)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_values_and_gradients_are_those_of_all_experts_with_weights_of_zero(top_k):
    layer, x = mixture(top_k).double(), tokens().double().requires_grad_()
    layer._probabilities = lambda x: (x @ layer.router.weight.T).softmax(-1)  # float32 is tested below
    one, two = layer(x), written_out(layer, x)
    torch.testing.assert_close(one, two, atol=1e-12, rtol=0)
    for mine, theirs in zip(gradients(layer, x, one), gradients(layer, x, two), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_in_float32_too():
    layer, x = mixture(2), tokens().requires_grad_()
    torch.testing.assert_close(layer(x), written_out(layer, x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_experts_compute_their_own_tokens_and_no_others(top_k):
    layer, x, seen = mixture(top_k), tokens(), []
    for expert in layer.experts:
        expert.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    layer(x)
    chosen = (x @ layer.router.weight.T).topk(top_k).indices.flatten()
    assert seen == chosen.bincount(minlength=EXPERTS).tolist()
    assert sum(seen) == top_k * 15  # not 4 * 15


def test_an_expert_without_tokens_has_gradients_of_zero():
    layer, x = mixture(1), tokens().abs()
    layer.router.weight.data = torch.arange(EXPERTS)[:, None].expand(EXPERTS, WIDTH).float()
    layer(x).square().sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.experts[0].parameters())
    assert all(p.grad.abs().sum() > 0 for p in layer.experts[3].parameters())


def test_the_order_of_tokens_does_not_matter():
    layer, x = mixture(2), tokens().flatten(0, 1)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x)[order], layer(x[order]), atol=1e-6, rtol=0)


def test_recomputed_activations_give_the_same_bits():
    layer, x = mixture(2), tokens().requires_grad_()
    again = checkpoint(layer, x, use_reentrant=False)
    assert all(map(torch.equal, gradients(layer, x, layer(x)), gradients(layer, x, again)))


def test_routing_is_decided_in_float32_whatever_the_experts_compute_in():
    layer, x = mixture(2), tokens()
    plain = layer(x)
    known = layer.exposed["router_probabilities"].clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert layer.exposed["router_probabilities"].dtype == torch.float32
    assert torch.equal(layer.exposed["router_probabilities"], known)
    assert half.dtype == x.dtype
    difference = (half - plain).abs().max()
    assert 0 < difference < 0.02  # bfloat16 was really used, and rounds to 8 bits


def test_a_router_of_zeros_shares_equally():
    layer, x = mixture(EXPERTS, router_std=0.0), tokens()
    torch.testing.assert_close(layer(x), sum(expert(x) for expert in layer.experts) / EXPERTS, atol=1e-6, rtol=0)


def test_dropout_sits_inside_the_experts_and_only_while_training():
    dense, x = ffn(0), tokens()
    dropped = with_dropout(dense, 0.5)
    assert list(dropped.state_dict()) == list(dense.state_dict())
    assert torch.equal(dropped.eval()(x), dense(x))
    assert not torch.equal(dropped.train()(x), dense(x))
    hidden = {}
    dropped.c_proj.register_forward_hook(lambda _module, inputs, _output: hidden.update(it=inputs[0]))
    dropped(x)
    assert (hidden["it"] == 0).float().mean() == pytest.approx(0.5, abs=0.15)
    assert torch.equal(with_dropout(dropped, 0.0)(x), dense(x))


def routed(layers=2, seed=0, slot=""):
    random = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(6, layers, 5, EXPERTS, generator=random).softmax(-1)
    return probabilities.double().requires_grad_()


def loop_balance(probabilities, top_k):
    """The paper's sum as loops over tokens."""
    rows = probabilities.reshape(-1, EXPERTS)
    total = 0.0
    for k in range(top_k):
        picks = [int(row.argsort(descending=True)[k]) for row in rows.detach()]
        for e in range(EXPERTS):
            total = total + picks.count(e) / len(rows) * rows[:, e].mean()
    return EXPERTS * total


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_balance_loss_is_the_papers_sum(top_k):
    one, two = routed(), routed()
    mine, theirs = load_balancing_loss(one, top_k), loop_balance(two, top_k)
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    torch.testing.assert_close(*(torch.autograd.grad(v, p)[0] for v, p in ((mine, one), (theirs, two))))


def test_balance_with_all_experts_chosen_is_e_whatever_the_router_says():
    assert float(load_balancing_loss(routed().detach(), EXPERTS)) == pytest.approx(EXPERTS)


def test_collapse_is_above_uniform_and_bounded():
    sharp = torch.tensor([1e4, 1e2, 0.0, 0.0]).softmax(0).expand(6, 2, 5, EXPERTS)
    assert float(load_balancing_loss(sharp, 2)) == pytest.approx(EXPERTS)
    assert float(load_balancing_loss(torch.full((6, 2, 5, EXPERTS), 0.25), 2)) == pytest.approx(2)


def named():
    slots = {f"text_router_probabilities{slot}": routed(seed=n).detach() for n, slot in enumerate(("", ".short"), 1)}
    return {"image_router_probabilities": routed().detach(), "image_router_top_k": torch.full((6, 2), 2), **slots}


def test_texts_count_half_each_and_every_slot_that_is_named():
    names, context = named(), Context(0.0, 0, 1, torch.Generator())
    image, text, short = (load_balancing_loss(names[f"{name}"], 2) for name in names if "probabilities" in name)
    plain = build_objective(specs.RouterBalance())(names, context)
    both = build_objective(specs.RouterBalance(texts=("short",)))
    assert float(plain.value) == pytest.approx(float(image + text / 2))
    assert float(both(names, context).value) == pytest.approx(float(image + text / 2 + short / 2))
    assert set(both(names, context).parts) == {"image", "text", "text.short"}
    assert "text_router_probabilities.short" in both.needs


def test_the_released_codes_division_by_ranks():
    own = specs.RouterBalance(scope="rank")
    values = [
        float(build_objective(spec)(named(), Context(0.0, 0, size, torch.Generator())).value)
        for spec, size in ((own, 4), (own.model_copy(update={"per_rank": True}), 4))
    ]
    assert values[0] == pytest.approx(4 * values[1])


BALANCE = {scope: {**ranks.CONTRAST, "b": specs.Term(weight=1.0, loss=specs.RouterBalance(scope=scope))}
           for scope in ("rank", "global")}  # fmt: skip


def trained(rank, world_size, architecture, folder):
    for scope, objectives in BALANCE.items():
        for chunk in (None, 4):
            phase = {"objectives": objectives, "chunk_pairs": chunk, "trainable": ("*.router.weight",)}
            run, _ = ranks.built(rank, world_size, architecture, True, phase, Place())
            train(run)
            weights = {n: whole(v).clone() for n, v in run.towers.model.state_dict().items() if "router" in n}
            if rank == 0:
                torch.save(weights, folder / f"{scope}-{chunk}-{world_size}.pt")


def test_two_ranks_balance_as_one_unless_each_counts_its_own_tokens(world, tmp_path):
    trained(0, 1, world.TINY, tmp_path)
    ranks.together(trained, 2, tmp_path / "store", world.TINY, tmp_path)
    found = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    alone = found["global-None-1"]
    for other in ("global-None-2", "global-4-1", "global-4-2", "rank-None-1", "rank-4-1"):
        torch.testing.assert_close(found[other], alone, atol=5e-5, rtol=0)
    own = found["rank-None-2"]
    assert max(float((own[name] - alone[name]).abs().max()) for name in alone) > 1e-4


def whole_method():
    """An expert from single-cluster batches, then a mixture whose routers train."""
    plain = {"objectives": ranks.CONTRAST, "optimizer": specs.AdamW(lr=3e-3), "global_batch_size": 6}
    clustered = specs.View(sampler=specs.ClusterSampler(phases=("init",), clusters=2), augment=None)
    router = {**plain, "objectives": BALANCE["global"], "trainable": ("*.router.weight",)}
    phases = {
        "expert": specs.Phase(trainable=("*.mlp.*",), view=clustered, samples_seen=24, **plain),
        "router": specs.Phase(
            surgeries=(specs.Upcycle(experts=("init", "expert", "init"), top_k=2),), samples_seen=24, **router
        ),
    }
    return specs.TrainSpec(init="init", pairs="pairs", selection="selection", phases=phases)


def in_a_fresh_process(job, count):
    """Ranks of a process that forks before it has threads: clustering starts some, as earlier tests' may have here."""
    order = {
        "spec": job.spec, "parents": job.parents, "out": job.out_uri, "state": job.state_uri, "place": job.place,
        "ranks": count,
    }  # fmt: skip
    script = Path(__file__).with_name("ranks.py")
    command = [sys.executable, str(script), json.dumps(order)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], timeout=200)


def test_the_whole_method_on_two_ranks_is_that_on_one(world, tmp_path):
    job, spec = ranks.jobs(world, tmp_path), whole_method()
    made = {count: job(f"of_{count}", spec) for count in (1, 2)}
    for count, one in made.items():
        in_a_fresh_process(one, count)
    one, other = (load_towers(done.out_uri).model.state_dict() for done in made.values())
    torch.testing.assert_close(other, one, atol=5e-5, rtol=0)
