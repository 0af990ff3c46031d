"""LaCLIP's caption choice through the real loader and real stages: the original or a rewrite at each visit."""

import json
import runpy
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from data.errors import ShardError
from data.shards import ShardSet
from training.loading import DataView, batches, text_id
from training.order import UniformOrder
from training.pairs import PairStore
from training.specs import (
    AdamW,
    Fallback,
    InfoLOOB,
    InfoNCE,
    MultiTextInfoNCE,
    Phase,
    Term,
    TextSlot,
    TrainSpec,
    View,
)
from training.towers import create_towers, load_towers

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
SOURCES = ("alt", "rewrite1", "rewrite2", "rewrite3", "rewrite4")
UNIFORM = dict.fromkeys(SOURCES, 1.0)
SIZE = 24


@pytest.fixture
def rewritten(world, monkeypatch):
    """Give the tiny world's pairs four rewrites: `rewrite(pair, n)`."""
    plain = world.pairs

    def change(rewrite):
        def pairs(copies=4):
            return [
                pair._replace(captions={**pair.captions, **{f"rewrite{n}": rewrite(pair, n) for n in (1, 2, 3, 4)}})
                for pair in plain(copies)
            ]

        monkeypatch.setattr(world, "pairs", pairs)

    return change


def numbered(pair, n):
    return f"{pair.captions['alt']} {n}"


def loaded(world, root, view, steps=60):
    """All batches of a view, made as a training stage has them."""
    pairs, _, _ = world.small_world(root)
    shard_set = ShardSet(pairs)
    store = PairStore(shard_set, shard_set.index()["uid"].combine_chunks())
    made = DataView(store, create_towers(world.TINY), view, UniformOrder(len(store), 3), 3, SIZE)
    with closing(batches(made, range(steps), 0, 60.0)) as stream:
        return list(stream)


def chosen(made, world):
    """Which rewrite each visit had, 0 for the original."""
    original = {pair.uid: pair.captions["alt"] for pair in world.pairs()}
    rows = [(original[uid], caption) for batch in made for uid, caption in zip(batch.uids, batch.captions, strict=True)]
    return np.array([0 if caption == alt else int(caption[-1]) for alt, caption in rows])


# ------------------------------------------------------------------------------------------------------------ draws


def test_each_of_a_pairs_captions_is_as_frequent_as_the_others(world, rewritten, tmp_path):
    rewritten(numbered)
    picks = chosen(loaded(world, tmp_path, View(caption_weights=UNIFORM, augment=None), steps=150), world)
    assert len(picks) == 150 * SIZE
    assert chisquare(np.bincount(picks, minlength=5)).pvalue > 0.01
    visits = np.stack([picks[:-1], picks[1:]])  # one visit tells nothing of the next
    assert chi2_contingency(np.histogram2d(*visits, bins=5)[0]).pvalue > 0.01


def test_the_test_of_uniformity_can_fail(world, rewritten, tmp_path):
    rewritten(numbered)
    biased = View(caption_weights={**UNIFORM, "alt": 1.4}, augment=None)
    picks = chosen(loaded(world, tmp_path, biased, steps=150), world)
    assert chisquare(np.bincount(picks, minlength=5)).pvalue < 1e-6


@pytest.mark.parametrize(("short", "falls_back"), [("red", True), ("", True), ("red dot", False)])
def test_a_drawn_caption_of_less_than_two_words_gives_way_to_the_original(
    world, rewritten, tmp_path, short, falls_back
):
    rewritten(lambda pair, n: short if n == 4 else numbered(pair, n))
    view = View(caption_weights=UNIFORM, augment=None)
    kept, replaced = (
        [caption for batch in loaded(world, tmp_path / name, case, 10) for caption in batch.captions]
        for name, case in (("kept", view), ("replaced", view.model_copy(update={"fallback": Fallback()})))
    )
    assert 20 < sum(caption == short for caption in kept) < 80  # of 240 visits, a fifth
    changed = {one for one, other in zip(kept, replaced, strict=True) if one != other}
    assert changed == ({short} if falls_back else set())
    assert (short in replaced) != falls_back


def test_a_fallback_that_no_pair_has_is_refused(world, tmp_path):
    with pytest.raises(ShardError, match="caption source 'original'"):
        loaded(world, tmp_path, View(fallback=Fallback(source="original")), 1)


def test_text_slots_leave_the_main_draw_alone_and_draw_for_themselves(world, rewritten, tmp_path):
    rewritten(numbered)
    plain = View(caption_weights=UNIFORM)
    slots = {"second": TextSlot(caption_weights=UNIFORM), "third": TextSlot(caption_weights=UNIFORM)}
    one, two = (
        loaded(world, tmp_path / name, view, 60)
        for name, view in (("plain", plain), ("slots", plain.model_copy(update={"texts": slots})))
    )
    for before, after in zip(one, two, strict=True):
        assert before.captions == after.captions
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.texts["text"], after.texts["text"])
    ids = {text_id(numbered(pair, n)): n for pair in world.pairs() for n in (1, 2, 3, 4)}
    picks = {
        name: np.array([ids.get(number, 0) for batch in two for number in batch.more[name].tolist()])
        for name in ("text_id", "text_id.second", "text_id.third")
    }
    for first, other in (("text_id", "text_id.second"), ("text_id.second", "text_id.third")):
        table = np.histogram2d(picks[first], picks[other], bins=5)[0]
        assert table.min() > 20
        assert chi2_contingency(table).pvalue > 0.01


# ----------------------------------------------------------------------------------------------------------- stages


def stage(objective, view, **changes):
    phase = Phase(
        view=view, objectives={"contrast": Term(loss=objective)}, optimizer=AdamW(lr=3e-3, eps=1e-4),
        samples_seen=SIZE * 5, global_batch_size=SIZE, **changes,
    )  # fmt: skip
    return TrainSpec(init="init", pairs="pairs", selection="selection", phases={"train": phase}, log_every_steps=1)


def result(job):
    """The weights and the log of a stage that ran."""
    weights = load_towers(job.out_uri).model.state_dict()
    return weights, [json.loads(line) for line in Path(job.out_uri, "metrics.jsonl").read_text().splitlines()]


def ran(world, root, spec):
    job = ranks.jobs(world, root)("stage", spec)
    ranks.together(ranks.run, 1, root / "store", job)
    return result(job)


def is_equal(one, other):
    return one[1] == other[1] and all(torch.equal(value, other[0][name]) for name, value in one[0].items())


def test_rewrites_that_equal_the_original_are_plain_clip_bit_for_bit(world, rewritten, tmp_path):
    rewritten(lambda pair, _: pair.captions["alt"])
    clip = ran(world, tmp_path / "clip", stage(InfoNCE(), View()))
    equal = stage(InfoNCE(), View(caption_weights=UNIFORM, fallback=Fallback()))
    assert is_equal(ran(world, tmp_path / "equal", equal), clip)
    short = View(caption_weights=UNIFORM, fallback=Fallback(min_words=100))  # every caption falls back
    rewritten(numbered)
    assert is_equal(ran(world, tmp_path / "short", stage(InfoNCE(), short)), clip)
    other = stage(InfoNCE(), View(caption_weights=UNIFORM, fallback=Fallback()))
    assert not is_equal(ran(world, tmp_path / "other", other), clip)


SLOTS = {"second": TextSlot(caption_weights=UNIFORM), "third": TextSlot(caption_weights=UNIFORM)}
STAGES = {
    "laclip": (InfoNCE(), View(caption_weights=UNIFORM, fallback=Fallback())),
    "laclip multi": (MultiTextInfoNCE(texts=tuple(SLOTS)), View(caption_weights=UNIFORM, texts=SLOTS)),
    "laclip multi all": (
        MultiTextInfoNCE(texts=tuple(SLOTS), candidates="all"), View(caption_weights=UNIFORM, texts=SLOTS),
    ),
    "cloob": (InfoLOOB(), View()),
    "cloob with its own scale": (InfoLOOB(scale=None), View()),
}  # fmt: skip


def each(rank, count, jobs):
    """One rank of several stages."""
    for job in jobs:
        ranks.run(rank, count, job)


def test_ranks_and_chunks_give_the_single_processs_weights(world, rewritten, tmp_path):
    rewritten(numbered)
    job = ranks.jobs(world, tmp_path)
    alone = {name: job(f"{name} alone", stage(*case)) for name, case in STAGES.items()}
    two = {name: job(f"{name} two", stage(*case, chunk_pairs=5)) for name, case in STAGES.items()}
    ranks.together(each, 1, tmp_path / "store of one", list(alone.values()))
    ranks.together(each, 2, tmp_path / "store of two", list(two.values()))
    for name in STAGES:
        (weights, log), (others, other_log) = result(alone[name]), result(two[name])
        losses = [[line["loss"] for line in lines] for lines in (log, other_log)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), name
        for key, value in weights.items():
            assert (others[key] - value).abs().max() < 1e-5, f"{name}: {key}"
