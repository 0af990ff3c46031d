"""Frozen rows of parameters that else train: to the bit, on one rank, on replicas and on shards."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.errors import ModelError
from data.place import Place
from pipelines.recipes.long_clip import TEXT_POSITIONS
from training.gradients import apply_rules, check_rules, frozen_parts
from training.loop import train
from training.parallel import whole
from training.specs import AdamW, FrozenRows, InfoNCE, Phase, Term
from training.towers import create_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
TABLE, ROWS, CONTEXT = "positional_embedding", 3, 8
RULE = FrozenRows(parameter=TABLE, rows=ROWS)
PHASE = {"gradients": (RULE,), "objectives": {"contrast": Term(loss=InfoNCE())}, "optimizer": AdamW(lr=1e-2)}


class Small(torch.nn.Module):
    """Two tables, one of them out of reach of the rules."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.ones(5, 2))
        self.short = torch.nn.Parameter(torch.ones(2, 2))


def rule(parameter, rows):
    return (FrozenRows(parameter=parameter, rows=rows),)


def phase(rules, weight_decay=0.0):
    optimizer = AdamW(lr=1e-2, weight_decay=weight_decay)
    return Phase(**{**PHASE, "gradients": rules, "optimizer": optimizer}, samples_seen=0, global_batch_size=2)


# ------------------------------------------------------------------------------------------------------- the rule


def test_the_first_rows_lose_their_gradient_and_no_other():
    model = Small()
    (model.table.sum() * 2 + model.short.sum()).backward()
    apply_rules(rule("table", 2), model)
    assert model.table.grad.tolist() == [[0, 0], [0, 0], [2, 2], [2, 2], [2, 2]]
    assert model.short.grad.tolist() == [[1, 1], [1, 1]]


def test_a_parameter_without_gradient_is_left_alone():
    model = Small()
    apply_rules(rule("table", 2), model)
    assert model.table.grad is None


def test_what_is_proved_frozen_is_just_those_rows():
    model = Small()
    parts = frozen_parts(rule("t*", 2), model)
    assert {name: part.shape for name, part in parts.items()} == {"table": (2, 2)}


@pytest.mark.parametrize(("parameter", "rows"), [("tabel", 2), ("short", 2), ("table", 5)])
def test_a_rule_that_nothing_obeys_is_refused(parameter, rows):
    with pytest.raises(ModelError, match=f"frozen_rows '{parameter}': no trainable parameter of more than {rows} rows"):
        check_rules(phase(rule(parameter, rows)), Small())


def test_a_rule_for_a_frozen_parameter_is_refused():
    model = Small()
    model.table.requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameter"):
        check_rules(phase(rule("table", 2)), model)


def test_rows_that_weight_decay_would_shrink_are_refused():
    with pytest.raises(ModelError, match=r"weight decay would shrink the rows of table; set optimizer.weight_decay 0"):
        check_rules(phase(rule("table", 2), weight_decay=0.1), Small())


def test_a_pattern_for_text_positions_leaves_the_pictures_alone(world):
    for custom in (False, True):
        model = create_towers({**world.TINY, "custom_text": custom}).model
        found = list(frozen_parts(rule(TEXT_POSITIONS, ROWS), model))
        assert found == ["text.positional_embedding" if custom else "positional_embedding"]


# ----------------------------------------------------------------------------------------------------- the training


def moved(rank, world_size, architecture, place, phase):
    """How far each row of the text positions went in four steps, and the losses."""
    run, readings = ranks.built(rank, world_size, architecture, False, phase, place)
    before = whole(run.towers.model.positional_embedding).detach().clone()
    train(run)
    after = whole(run.towers.model.positional_embedding).detach()
    losses = torch.stack([values["loss"] for values in readings])
    if world_size > 1:
        torch.distributed.all_reduce(losses)
    return {"moved": (after - before).abs().amax(1), "losses": losses / world_size, "table": after.clone()}


def on_rank(rank, world_size, architecture, folder):
    for parallel in ("ddp", "fsdp"):
        for rows in (ROWS, 6):  # rows of the first shard alone, of four each, and of both
            phase = {**PHASE, "gradients": rule(TABLE, rows)}
            found = moved(rank, world_size, architecture, Place(parallel=parallel), phase)
            torch.save(found, folder / f"{parallel}-{rows}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """What two ranks did, replicated and sharded."""
    folder = tmp_path_factory.mktemp("frozen-rows")
    ranks.together(on_rank, 2, folder / "store", world.TINY, folder)
    return folder


@pytest.mark.parametrize("rows", [ROWS, 6])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_frozen_rows_stay_to_the_bit_and_the_others_move_on_every_rank(world, folder, parallel, rows):
    alone = moved(0, 1, world.TINY, Place(), {**PHASE, "gradients": rule(TABLE, rows)})
    for rank in (0, 1):
        found = torch.load(folder / f"{parallel}-{rows}-{rank}.pt")
        assert torch.equal(found["moved"][:rows], torch.zeros(rows))
        assert (found["moved"][rows:] > 1e-3).all()
        torch.testing.assert_close(found["losses"], alone["losses"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["table"], alone["table"], atol=5e-5, rtol=5e-5)


def test_without_the_rule_they_move(world):
    found = moved(0, 1, world.TINY, Place(), {**PHASE, "gradients": ()})
    assert (found["moved"][:ROWS] > 1e-3).all()


def test_frozen_rows_in_chunks_are_the_same_training(world):
    whole_batch, chunks = (
        moved(0, 1, world.TINY, Place(), {**PHASE, **more}) for more in ({}, {"chunk_pairs": 4})
    )  # fmt: skip
    assert torch.equal(chunks["moved"][:ROWS], torch.zeros(ROWS))
    torch.testing.assert_close(chunks["table"], whole_batch["table"], atol=5e-5, rtol=5e-5)
