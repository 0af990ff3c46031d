"""LightCLIP's parts on several ranks and in chunks: objectives under every gather policy, and whole stages."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from data import storage
from training import specs
from training.objectives import Context, build_objective
from training.specs import AdamW, MaskedLanguage, Phase, Term, Tokens, TrainSpec
from training.towers import load_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
GATHERS = ("local", "gather_with_grad", "gather_without_grad")
SHARE, SCALE, OWN = 0.3, 5.0, 3


def random_pairs():
    """Six pairs: features, tokens and a mask of words."""
    random = torch.Generator().manual_seed(0)
    shapes = {"image_features": (4,), "text_features": (4,), "image_tokens": (3, 4), "text_tokens": (5, 4)}
    named = {
        name: F.normalize(torch.randn(2 * OWN, *shape, generator=random, dtype=torch.float64), dim=-1)
        for name, shape in shapes.items()
    }
    mask = torch.arange(5) < torch.tensor([2, 3, 1, 3, 2, 1])[:, None]  # the second rank's longest is as long
    return {**named, "text_mask": mask}


def soft_reference(image, text, columns, own):
    """One rank's soft contrast of its rows with the columns of `columns`, which says what has gradient."""
    total = 0.0
    for rows, others in ((image["image_features"], columns["text_features"]), (text, columns["image_features"])):
        logits = SCALE * rows @ others.T
        weights = logits.detach().clone()
        weights[torch.arange(OWN), own] = -torch.inf
        target = SHARE * weights.softmax(1)
        target[torch.arange(OWN), own] = 1 - SHARE
        total = total - (target * logits.log_softmax(1)).sum() / OWN
    return total / 2


def token_reference(patches, words, mask, columns, own):
    def table(patches, words, mask):
        best = torch.einsum("apd,twd->aptw", patches, words).amax(1) * mask
        return SCALE * best.sum(2) / mask.sum(1)

    i2t = table(patches, columns["image_words"], columns["text_mask"])
    t2i = table(columns["image_tokens"], words, mask).T
    return (F.cross_entropy(i2t, own) + F.cross_entropy(t2i, own)) / 2


def rank_loss(kind, everything, rank, gather):
    """The formula for one rank, its rows against the columns its policy gives it."""
    mine = slice(rank * OWN, (rank + 1) * OWN)
    own = {name: value[mine] for name, value in everything.items()}
    columns, place = own, torch.arange(OWN)
    if gather != "local":
        place = place + rank * OWN
        columns = dict(everything)
        if gather == "gather_without_grad":
            for name, value in everything.items():
                columns[name] = torch.cat([
                    part if number == rank else part.detach() for number, part in enumerate(value.split(OWN))
                ])  # fmt: skip
    if kind == "soft":
        return soft_reference(own, own["text_features"], columns, place)
    columns = {**columns, "image_words": columns["text_tokens"]}
    return token_reference(own["image_tokens"], own["text_tokens"], own["text_mask"], columns, place)


def expected(kind, gather):
    """(values of the ranks, gradients of all rows): other ranks' losses reach a row only through gathered gradients."""
    everything = random_pairs()
    leaves = {
        name: value.requires_grad_() if value.is_floating_point() else value for name, value in everything.items()
    }
    losses = [rank_loss(kind, leaves, rank, gather) for rank in range(2)]
    torch.stack(losses).sum().backward()
    return [float(loss.detach()) for loss in losses], {name: leaf.grad for name, leaf in leaves.items()}


def on_a_rank(rank, world_size, folder):
    for kind, gather in ((kind, gather) for kind in ("soft", "words") for gather in GATHERS):
        mine = slice(rank * OWN, (rank + 1) * OWN)
        names = {name: value[mine] for name, value in random_pairs().items()}
        names = {name: v.requires_grad_() if v.is_floating_point() else v for name, v in names.items()}
        names["logit_scale"] = torch.tensor(SCALE, dtype=torch.float64)
        spec = specs.SoftInfoNCE(max_softness=SHARE, gather=gather)
        spec = spec if kind == "soft" else specs.TokenMatching(gather=gather)
        context = Context(1.0, rank, world_size, torch.Generator())
        value = build_objective(spec)(names, context).value
        value.backward()
        gradients = {name: leaf.grad for name, leaf in names.items() if leaf.grad is not None}
        torch.save((value.detach(), gradients), folder / f"{kind}-{gather}-{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objectives")
    ranks.together(on_a_rank, 2, folder / "store", folder)
    return lambda kind, gather: [torch.load(folder / f"{kind}-{gather}-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize("kind", ["soft", "words"])
def test_two_ranks_are_the_formula_with_gathered_columns(found, kind, gather):
    losses, gradients = expected(kind, gather)
    each = found(kind, gather)
    assert [float(value) for value, _ in each] == pytest.approx(losses, abs=1e-9)
    for name in each[0][1]:
        both = torch.cat([part[name] for _, part in each])
        torch.testing.assert_close(both, gradients[name], atol=1e-9, rtol=0)


def words_on_a_rank(rank, world_size, folder):
    states = torch.arange(2 * 3 * 2, dtype=torch.float64).view(2, 3, 2).sin().requires_grad_()
    target = torch.tensor([[[1, -100, 3], [0, 2, -100]], [[-100] * 3, [-100] * 3]])[rank]  # all on the first rank
    embedding = torch.arange(8, dtype=torch.float64).view(4, 2).cos().requires_grad_()
    names = {"masked_states": states, "masked_targets": target, "word_embedding": embedding}
    value = build_objective(specs.MaskedWords())(names, Context(0.0, rank, world_size, torch.Generator())).value
    value.backward()
    mean = value.detach() / world_size
    dist.all_reduce(mean)
    torch.save((mean, states.grad), folder / f"{rank}.pt")


def test_masked_words_count_alike_on_all_ranks(tmp_path):
    ranks.together(words_on_a_rank, 2, tmp_path / "store", tmp_path)
    states = torch.arange(2 * 3 * 2, dtype=torch.float64).view(2, 3, 2).sin().requires_grad_()
    logits = states @ torch.arange(8, dtype=torch.float64).view(4, 2).cos().T
    target = torch.tensor([[1, -100, 3], [0, 2, -100]])
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    loss.backward()
    (mean, gradient), (_, idle) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert float(mean) == pytest.approx(float(loss.detach()), abs=1e-12)
    torch.testing.assert_close(gradient / 2, states.grad, atol=1e-12, rtol=0)  # DDP averages over the two ranks
    assert not idle.any()


def lightclip(**changes):
    phase = {
        "surgeries": (Tokens(), MaskedLanguage(mask_fraction=0.5)),
        "objectives": {
            "contrast": Term(loss=specs.SoftInfoNCE(max_softness=0.4)),
            "tokens": Term(weight=0.5, loss=specs.TokenMatching(takers="both")),
            "words": Term(weight=0.5, loss=specs.MaskedWords()),
        },
        "optimizer": AdamW(lr=3e-3), "samples_seen": 48, "global_batch_size": 16,
    }  # fmt: skip
    return TrainSpec(init="init", pairs="pairs", selection="selection", phases={"light": Phase(**{**phase, **changes})})


RUNS = {  # name -> (chunk_pairs, place)
    "ddp": (None, {}),
    "chunks": (3, {}),
    "fsdp": (None, {"parallel": "fsdp"}),
    "fsdp chunks": (3, {"parallel": "fsdp"}),
    "recomputed": (3, {"activation_checkpointing": True}),
}


def all_runs(rank, world_size, made):
    for job in made:
        ranks.run(rank, world_size, job)


@pytest.fixture(scope="module")
def job(world, tmp_path_factory):
    return ranks.jobs(world, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def alone(job):
    made = job("alone", lightclip())
    ranks.run(0, 1, made)
    return load_towers(made.out_uri)


@pytest.fixture(scope="module")
def in_ranks(job, tmp_path_factory):
    made = {name: job(name.replace(" ", "-"), lightclip(chunk_pairs=chunk), **place)
            for name, (chunk, place) in RUNS.items()}  # fmt: skip
    ranks.together(all_runs, 2, tmp_path_factory.mktemp("meeting") / "store", list(made.values()))
    return made


@pytest.mark.parametrize("name", RUNS)
def test_a_stage_on_two_ranks_gives_the_weights_of_one(alone, in_ranks, name):
    many = load_towers(in_ranks[name].out_uri).model.state_dict()
    torch.testing.assert_close(many, alone.model.state_dict(), atol=5e-5, rtol=5e-5)


def test_chunks_on_one_rank_give_the_same_weights(job, alone):
    made = job("chunked", lightclip(chunk_pairs=5))
    ranks.run(0, 1, made)
    torch.testing.assert_close(
        load_towers(made.out_uri).model.state_dict(), alone.model.state_dict(), atol=5e-5, rtol=5e-5
    )


def test_a_stage_leaves_plain_open_clip(job, alone, world):
    from training.towers import create_towers

    assert alone.layout == ()
    assert list(alone.model.state_dict()) == list(create_towers(world.TINY).model.state_dict())
    checks = storage.read_json(f"{job('alone', lightclip()).state_uri}/outcome.json")["metrics"]["checks"]
    assert {name: value <= 1e-5 for name, value in checks.items()} == dict.fromkeys(checks, True)
    assert len(checks) == 2


def test_weights_of_zero_are_clip_to_the_bit(job):
    contrast = {"contrast": Term(loss=specs.InfoNCE())}
    light = {
        "contrast": Term(loss=specs.SoftInfoNCE(max_softness=0)), "tokens": Term(weight=0, loss=specs.TokenMatching()),
        "words": Term(weight=0, loss=specs.MaskedWords()),
    }  # fmt: skip
    jobs = job("clip", lightclip(surgeries=(), objectives=contrast)), job("zero", lightclip(objectives=light))
    for made in jobs:
        ranks.run(0, 1, made)
    parent, child = (load_towers(made.out_uri).model.state_dict() for made in jobs)
    assert all(torch.equal(parent[name], child[name]) for name in parent)
