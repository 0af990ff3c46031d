"""What a view reads of metadata: classes by number, boxes that move with the crop, grids; by hand."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.errors import ShardError
from data.shards import Pair, ShardSet, write_manifest, write_shard
from training.columns import Columns, grid, in_crop
from training.loading import DataView, PairStore, batches
from training.order import UniformOrder
from training.specs import Augment, BoxField, Grid, Label, View
from training.towers import create_towers

WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])
# center x, center y, width, height
MIDDLE, CORNER, FLAT = [0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.2, 0.2], [0.5, 0.5, 0.4, 0.0]
META = {
    "a": {"kind": "dog", "boxes": [MIDDLE, CORNER]},
    "b": {"kind": "cat", "boxes": []},
    "c": {"kind": "dog", "boxes": [CORNER]},
    "d": {"other": 1},
    "e": {"kind": 7, "boxes": None},
    "f": {"kind": ["dog", "cat"], "boxes": [FLAT]},
}


def make_store(world, root, meta, uids=None):
    image = world.picture("red", "square", 0)
    every = [Pair(uid, image, "png", {"alt": uid}, values) for uid, values in meta.items()]
    made = world.commit(
        root, "pairs", "shard_set", lambda uri: write_manifest(uri, [write_shard(uri, "00000", every)], [])
    )
    return PairStore(ShardSet(made), list(meta) if uids is None else uids)


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return make_store(world, tmp_path_factory.mktemp("root"), META)


def columns(store, rows=range(6), windows=None, **view):
    rows = np.array(rows)
    return Columns(store, View(**view)).of(rows, np.tile(WHOLE, (len(rows), 1)) if windows is None else windows)


def test_a_view_that_asks_for_nothing_reads_and_gives_nothing(store):
    assert columns(store) == {}


def test_classes_are_the_values_of_all_pairs_sorted_and_those_without_one_value_have_none(store):
    found = columns(store, label=Label(field="kind"))["label"]
    assert found.tolist() == [2, 1, 2, -1, 0, -1]  # of 7, cat, dog; d has no kind, f has two
    assert found.dtype == np.int64


def test_named_classes_keep_their_order_and_leave_others_without(store):
    label = Label(field="kind", classes=("dog", "7"))
    assert columns(store, label=label)["label"].tolist() == [0, -1, 0, -1, 1, -1]


def test_rows_are_of_the_pairs_that_are_kept_and_only_they_make_classes(world, tmp_path):
    kept = make_store(world, tmp_path, META, ["c", "b"])
    found = columns(kept, [1, 0, 1], label=Label(field="kind"))
    assert found["label"].tolist() == [1, 0, 1]


def test_a_misspelt_field_and_unknown_classes_are_refused(store):
    with pytest.raises(ShardError, match="metadata field 'knd': no pair has it; did you mean 'kind'"):
        columns(store, label=Label(field="knd"))
    with pytest.raises(ShardError, match="label 'kind': no pair has one of the classes bird"):
        columns(store, label=Label(field="kind", classes=("bird",)))


def test_boxes_are_corners_in_the_order_given_and_what_is_missing_is_not_valid(store):
    found = columns(store, regions=BoxField(max_regions=2))
    expected = np.zeros((6, 2, 4))
    expected[0] = [[0.25, 0.25, 0.75, 0.75], [0.8, 0, 1, 0.2]]
    expected[2, 0] = [0.8, 0, 1, 0.2]
    assert np.allclose(found["boxes"], expected, atol=1e-6)
    assert found["boxes"].dtype == np.float32
    valid = np.zeros((6, 2), bool)
    valid[0], valid[2, 0] = True, True  # f's box has no area
    assert (found["box_valid"] == valid).all()


def test_more_boxes_than_asked_for_are_cut_from_the_end(store):
    found = columns(store, regions=BoxField(max_regions=1))
    assert np.allclose(found["boxes"][0], [[0.25, 0.25, 0.75, 0.75]])


def test_boxes_move_with_the_crop():
    boxes = np.array([[[0.25, 0.25, 0.75, 0.75]]], np.float32)
    right_half, upper_left = np.array([[0.5, 0.0, 0.5, 1.0]]), np.array([[0.2, 0.1, 0.6, 0.8]])
    assert np.allclose(in_crop(boxes, right_half, 0.25)["boxes"], [[[0, 0.25, 0.5, 0.75]]])
    moved = [[[0.05 / 0.6, 0.15 / 0.8, 0.55 / 0.6, 0.65 / 0.8]]]
    assert np.allclose(in_crop(boxes, upper_left, 0.25)["boxes"], moved, atol=1e-6)


@pytest.mark.parametrize(("min_visible", "is_valid"), [(0.49, True), (0.51, False)])
def test_a_box_counts_while_enough_of_it_is_seen(min_visible, is_valid):
    boxes, right_half = np.array([[[0.25, 0.25, 0.75, 0.75]]], np.float32), np.array([[0.5, 0.0, 0.5, 1.0]])
    found = in_crop(boxes, right_half, min_visible)
    assert found["box_valid"].tolist() == [[is_valid]]
    assert found["boxes"].any() == is_valid


def test_padding_around_a_picture_shrinks_its_boxes():
    letterbox = np.array([[0.0, -0.5, 1.0, 2.0]])  # a wide picture in a square
    boxes = np.array([[[0.0, 0.0, 1.0, 1.0]]], np.float32)
    assert np.allclose(in_crop(boxes, letterbox, 1.0)["boxes"], [[[0, 0.25, 1, 0.75]]])


def test_a_grid_is_the_same_tiles_row_by_row(store):
    found = columns(store, [3, 3], regions=Grid(side=2))
    tiles = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    assert np.array_equal(found["boxes"], [tiles, tiles])
    assert found["box_valid"].all()
    assert grid(3, 1)["boxes"].shape == (1, 9, 4)


@pytest.mark.parametrize("value", ["left", [[1, 2, 3]], [{"x": 1}]])
def test_what_is_no_list_of_boxes_is_refused_in_one_line(world, tmp_path, value):
    store = make_store(world, tmp_path, {"a": {"boxes": value}})
    with pytest.raises(ShardError, match=r"metadata 'boxes': .* is no list of boxes; write") as caught:
        columns(store, [0], regions=BoxField())
    assert "\n" not in str(caught.value)


def test_no_region_at_all_cannot_be_asked_for():
    with pytest.raises(ValidationError):
        BoxField(max_regions=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_them_and_the_boxes_lie_where_the_crop_put_them(world, tmp_path, workers):
    """A picture that is red in its box alone: the box of a crop covers its red pixels, and no others."""
    store = make_store(
        world, tmp_path, {f"{n}": {"kind": str(n % 3), "boxes": [[0.5, 0.5, 0.7, 0.7]]} for n in range(8)}
    )
    towers = create_towers(world.TINY)
    seen = View(
        label=Label(field="kind"), regions=BoxField(max_regions=2),
        augment=Augment(crop_scale=(0.4, 0.9), crop_ratio=(0.9, 1.1)),
    )  # fmt: skip
    view = DataView(store, towers, seen, UniformOrder(8, 0), seed=0, global_batch_size=8)
    (batch,) = batches(view, range(1), workers, 60.0)
    assert batch.more["label"].tolist() == [int(uid) % 3 for uid in batch.uids]
    assert batch.more["box_valid"].tolist() == [[True, False]] * 8
    colourful = (batch.image.float().amax(dim=1) - batch.image.float().amin(dim=1)) > 90  # the red square, on white
    for found, box in zip(colourful, batch.more["boxes"][:, 0] * towers.image_size, strict=True):
        rows, across = found.any(dim=1).nonzero()[:, 0], found.any(dim=0).nonzero()[:, 0]
        seen_box = torch.tensor([across.min(), rows.min(), across.max() + 1, rows.max() + 1])
        assert (seen_box - box).abs().max() <= 1.01  # a pixel: interpolation blurs the edge
