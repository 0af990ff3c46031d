"""What the loop does around a step, and the names that several modules build alike."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.errors import ModelError
from data.place import Place
from training.loop import backward_chunk, clamp_logit_scale, joined
from training.names import id_of, matches, of_slot
from training.weights import set_trainable

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))


@pytest.mark.parametrize("trains", [True, False])
def test_only_a_temperature_that_trains_is_clamped(world, trains):
    run, _ = ranks.built(0, 1, world.TINY, False, {"trainable": ("*",) if trains else ("*", "!logit_scale")}, Place())
    with torch.no_grad():
        run.towers.model.logit_scale.fill_(4.6052)  # OpenAI's, a hair above ln 100
    before = float(run.towers.model.logit_scale.detach())
    clamp_logit_scale(run)
    assert float(run.towers.model.logit_scale.detach()) == pytest.approx(math.log(100) if trains else before, abs=1e-7)
    assert before > math.log(100)


@pytest.mark.parametrize(
    ("name", "patterns", "is_in"),
    [
        ("visual.proj", ("*",), True),
        ("visual.proj", ("*", "!visual.*"), False),
        ("visual.proj", ("*", "!visual.*", "visual.proj"), True),
        ("text.proj", ("visual.*",), False),
        ("text.proj", ("!visual.*",), False),  # nothing let it in
    ],
)
def test_the_last_pattern_that_fits_decides(name, patterns, is_in):
    assert matches(name, patterns) is is_in


def test_a_pattern_that_takes_out_nothing_is_refused(world):
    run, _ = ranks.built(0, 1, world.TINY, False, {}, Place())
    with pytest.raises(ModelError, match=r"trainable '!visaul\.\*': matches none"):
        set_trainable(run.towers.model, ("*", "!visaul.*"))


def test_names_of_text_slots():
    assert [of_slot("text", ""), of_slot("text", "short")] == ["text", "text.short"]
    assert [id_of("text_features"), id_of("text_features.short")] == ["text_id", "text_id.short"]


def test_what_is_shared_is_no_row_of_a_chunk_even_where_it_is_as_long_as_one():
    weight = torch.arange(6.0).view(2, 3).requires_grad_()
    rows = [torch.full((2, 3), value).requires_grad_() for value in (1.0, 2.0)]
    outputs = [{"rows": part * 2, "weights": weight * 1} for part in rows]
    shared = frozenset({"weights"})
    leaves = {name: joined([out[name] for out in outputs], name in shared) for name in ("rows", "weights")}
    assert leaves["rows"].shape == (4, 3)
    assert leaves["weights"].shape == (2, 3)
    (leaves["rows"].sum() * 3 + (leaves["weights"] * torch.tensor([[1.0], [5.0]])).sum()).backward()
    for number, chunk in enumerate(outputs):
        backward_chunk(chunk, leaves, slice(2 * number, 2 * number + 2), shared, last=number == 1)
    assert weight.grad.tolist() == [[1.0] * 3, [5.0] * 3]  # once, not once a chunk
    assert all(part.grad.eq(6).all() for part in rows)
