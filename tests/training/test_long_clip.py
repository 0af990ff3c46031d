"""Long-CLIP as a whole stage: surgery, frozen rows and both terms together, on one rank, in chunks and on two ranks."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch

from data.errors import ModelError
from pipelines.recipes.long_clip import TEXT_POSITIONS
from training import specs
from training.towers import load_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
KEEP, FACTOR, CONTEXT, LONG = 4, 3, 8, 16
START_SCALE = 20.0


def stage(chunk=None, **changes):
    """Four steps of 18 pairs; the other caption of a pair is its short one."""
    phase = specs.Phase(
        surgeries=(specs.StretchPositions(keep=KEEP, factor=FACTOR), specs.SetLogitScale(value=START_SCALE)),
        gradients=(specs.FrozenRows(parameter=TEXT_POSITIONS, rows=KEEP),),
        view=specs.View(texts={"short": specs.TextSlot(caption_weights={"alias": 1.0})}),
        objectives={
            "long": specs.Term(loss=specs.InfoNCE(label_smoothing=0.1)),
            "short": specs.Term(loss=specs.PrincipalInfoNCE(components=5)),
        },
        optimizer=specs.AdamW(lr=3e-3), samples_seen=72, global_batch_size=18, chunk_pairs=chunk,
    )  # fmt: skip
    phase = phase.model_copy(update=changes)
    return specs.TrainSpec(init="init", pairs="pairs", selection="selection", phases={"long": phase}, log_every_steps=1)


@pytest.fixture(scope="module")
def job(world, tmp_path_factory):
    torch.set_num_threads(1)
    return ranks.jobs(world, tmp_path_factory.mktemp("long"))


def weights(job):
    return load_towers(job.out_uri).model.state_dict()


def run(job):
    ranks.run(0, 1, job)
    return job


@pytest.fixture(scope="module")
def alone(job):
    return run(job("alone", stage()))


def test_the_result_is_a_longer_clip_whose_first_positions_are_the_starts(alone):
    start = load_towers(alone.parents["init"]).model.positional_embedding.detach()
    towers = load_towers(alone.out_uri)
    found = towers.model.positional_embedding.detach()
    assert len(start) == CONTEXT and len(found) == LONG
    assert torch.equal(found[:KEEP], start[:KEEP])
    assert (found[KEEP : CONTEXT - 1] != start[KEEP : CONTEXT - 1]).any()
    tokens = open_clip.get_tokenizer(f"local-dir:{alone.out_uri}")(["a red square"])
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{alone.out_uri}")
    assert tokens.shape == (1, LONG)
    with torch.no_grad():
        expected = towers.encode_text(towers.trimmed(tokens))
        torch.testing.assert_close(model.eval().encode_text(tokens, normalize=True), expected, atol=1e-6, rtol=0)


def test_the_log_says_how_much_of_the_pictures_was_kept(alone):
    lines = [json.loads(line) for line in Path(alone.out_uri, "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert all(0.3 < line["short/kept"] < 1 for line in lines)
    assert lines[0]["logit_scale"] == pytest.approx(START_SCALE, rel=0.01)


def test_the_invariants_are_in_the_record(alone):
    outcome = json.loads(Path(alone.state_uri, "outcome.json").read_text())
    assert outcome["metrics"]["checks"] == {
        "long/short texts unchanged": 0.0, "long/logit_scale as asked": pytest.approx(0, abs=1e-5),
    }  # fmt: skip
    assert outcome["metrics"]["open_clip_layout"] is True


def test_chunks_and_two_ranks_give_the_same_weights(job, alone, tmp_path):
    chunks = run(job("chunks", stage(chunk=5)))
    two = job("two", stage())
    ranks.together(ranks.run, 2, tmp_path / "store", two)
    for other in (chunks, two):
        torch.testing.assert_close(weights(other), weights(alone), atol=5e-5, rtol=5e-5)


def test_without_the_short_term_it_is_the_parent_to_the_bit(job):
    """Weight 0 is training on long captions alone."""
    long_only = {"long": stage().phases["long"].objectives["long"]}
    unused = {**long_only, "short": specs.Term(weight=0.0, loss=specs.PrincipalInfoNCE(components=5))}
    one, other = (run(job(name, stage(objectives=terms))) for name, terms in (("zero", unused), ("parent", long_only)))
    assert all(torch.equal(weights(one)[name], value) for name, value in weights(other).items())


def test_a_start_that_cannot_be_stretched_ends_the_stage_in_one_line(world, tmp_path):
    text = {**world.TINY["text_cfg"], "no_causal_mask": True, "pool_type": "last"}
    job = ranks.jobs(world, tmp_path, {**world.TINY, "text_cfg": text, "custom_text": True})
    with pytest.raises(ModelError, match="stretch_positions`: its text tower is not causal") as caught:
        run(job("siglip", stage()))
    assert "\n" not in str(caught.value)
