"""Order, captions and crops are pure functions of the position."""

import numpy as np
import pyarrow as pa
import pytest

from data.errors import ShardError
from data.shards import ShardSet
from training.order import ClusterOrder, UniformOrder, derange, position_draws
from training.pairs import CaptionChoice, PairStore


def test_an_epoch_holds_every_pair_once_and_epochs_differ():
    order = UniformOrder(10, seed=1)
    rows = order.rows(0, 30).reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in rows)
    assert not np.array_equal(rows[0], rows[1])


def test_rows_do_not_depend_on_how_they_are_asked_for():
    whole = UniformOrder(7, seed=2).rows(0, 40)
    pieces = UniformOrder(7, seed=2)
    assert np.array_equal(whole[13:40], np.concatenate([pieces.rows(at, 9) for at in (13, 22, 31)]))


def test_cluster_batches_have_a_single_cell_and_no_pair_twice_an_epoch():
    cells = np.repeat([0, 1, 2], [25, 14, 3])
    order = ClusterOrder(cells, seed=0, global_batch_size=5)
    assert order.batches == 5 + 2  # the cell of 3 pairs cannot fill a batch
    rows = [order.rows(step * 5, 5) for step in range(order.batches)]
    assert all(len(set(cells[batch])) == 1 for batch in rows)
    assert len(set(np.concatenate(rows))) == 35


@pytest.mark.parametrize(("fraction", "moved"), [(0.0, 0), (0.5, 50), (1.0, 100)])
def test_derange_moves_exactly_the_fraction_and_keeps_all_captions(fraction, moved):
    source = derange(100, fraction, seed=3)
    assert (source != np.arange(100)).sum() == moved
    assert sorted(source) == list(range(100))


def test_a_positions_draws_do_not_depend_on_how_they_are_asked_for():
    whole = position_draws(5, 0, 50, 23)
    assert np.array_equal(whole[13:40], np.concatenate([position_draws(5, at, 9, 23) for at in (13, 22, 31)]))
    assert len(np.unique(whole)) == whole.size
    assert not np.array_equal(whole, position_draws(6, 0, 50, 23))
    assert abs(position_draws(5, 10**9, 4000, 23).mean() - 0.5) < 4 / np.sqrt(12 * 4000 * 23)


@pytest.fixture
def store(world, tmp_path):
    pairs, _, _ = world.small_world(tmp_path)
    return PairStore(ShardSet(pairs), [f"red-{shape}-{n}" for shape in world.SHAPES for n in range(4)])


def test_caption_frequencies_follow_the_weights(store):
    choice = CaptionChoice(store, {"alt": 3.0, "alias": 1.0})
    draws = np.random.default_rng(0).random(8000)
    texts = choice.take(np.zeros(8000, np.int64), draws)
    share = sum(text.startswith("a red") for text in texts) / 8000
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 8000)


def test_a_pair_without_a_source_uses_the_others(store):
    store.captions["rewrite"] = pa.nulls(len(store), pa.large_string())
    choice = CaptionChoice(store, {"rewrite": 5.0, "alt": 1.0})
    assert set(choice.take(np.zeros(50, np.int64), np.linspace(0, 0.999, 50))) == set(
        store.captions_of("alt", np.array([0]))
    )


@pytest.mark.parametrize(
    ("weights", "words"),
    [({"alts": 1.0}, "caption source 'alts'"), ({"alias": 0.0}, "has none of the caption sources")],
)
def test_unusable_caption_sources_are_refused(store, weights, words):
    with pytest.raises(ShardError, match=words):
        CaptionChoice(store, weights)
