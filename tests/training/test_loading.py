"""Batches: the same whatever made them; what is missing, torn, dead or silent is named; nothing is left behind."""

import io
import multiprocessing
import os
import random
import signal
import string
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data import reader, storage
from data.errors import ShardError
from data.shards import Pair, ShardSet, write_manifest, write_shard
from training import loading, workers
from training.loading import DataView, batches
from training.order import ClusterOrder, UniformOrder
from training.pairs import PairStore
from training.pieces import Piece, Task
from training.specs import Augment, View
from training.tokens import CaptionTokens
from training.towers import create_towers

MIXED = View(caption_weights={"alt": 1.0, "alias": 2.0}, augment=Augment(crop_scale=(0.3, 1.0)))


@pytest.fixture(scope="module")
def towers(world):
    return create_towers(world.TINY)


def store_of(root, world):
    pairs, _, _ = world.small_world(root)
    shard_set = ShardSet(pairs)
    return PairStore(shard_set, shard_set.index()["uid"].combine_chunks())


@pytest.fixture
def store(world, tmp_path):
    return store_of(tmp_path, world)


def view_of(store, towers, rank=0, world_size=1, view=MIXED, size=24, order=None):
    return DataView(store, towers, view, order or UniformOrder(len(store), 3), 3, size, rank, world_size)


def same(one, two):
    assert (one.uids, one.captions) == (two.uids, two.captions)
    assert torch.equal(one.image, two.image)
    for named, others in ((one.texts, two.texts), (one.more, two.more)):
        assert named.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in named.items())


def first_of(view, workers=1, steps=range(1), stall_seconds=60.0, **options):
    with closing(batches(view, steps, workers, stall_seconds, **options)) as stream:
        return list(stream)


# ------------------------------------------------------------------------------------------------------------ purity


@pytest.mark.parametrize("augment", [None, MIXED.augment])
@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_workers_and_pieces_change_nothing(store, towers, augment, decode):
    view = view_of(store, towers, view=MIXED.model_copy(update={"augment": augment, "decode": decode}))
    steps = range(2, 6)  # over the border of an epoch of 72 pairs
    reference = first_of(view, 0, steps)
    for workers_, piece in ((0, 5), (1, 64), (1, 7), (3, 1), (3, 7), (2, 24)):
        made = first_of(view, workers_, steps, piece_pairs=piece)
        assert len(made) == 4
        for one, two in zip(reference, made, strict=True):
            same(one, two)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_slices_are_the_global_batch(store, towers, ranks):
    whole = first_of(view_of(store, towers), 0, range(4))
    parts = [first_of(view_of(store, towers, rank, ranks), 1, range(4), piece_pairs=5) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        slices = [part[step] for part in parts]
        assert batch.uids == [uid for part in slices for uid in part.uids]
        assert torch.equal(batch.image, torch.cat([part.image for part in slices]))
        assert torch.equal(batch.texts["text"], torch.cat([part.texts["text"] for part in slices]))


def test_a_run_resumes_in_the_middle_of_an_epoch(store, towers):
    view = view_of(store, towers)
    for one, two in zip(first_of(view, 1, range(5))[2:], first_of(view, 1, range(2, 5)), strict=True):
        same(one, two)


def test_visits_of_a_pair_differ_in_caption_and_crop(store, towers):
    made = first_of(view_of(store, towers, size=72), 1, range(12))
    seen = [batch.uids.index("red-bar-1") for batch in made]
    assert len({batch.captions[at] for batch, at in zip(made, seen, strict=True)}) == 2
    assert len({batch.image[at].numpy().tobytes() for batch, at in zip(made, seen, strict=True)}) > 6


def test_a_batch_holds_what_its_uids_say(store, towers):
    (batch,) = first_of(view_of(store, towers, view=View(augment=None)))
    rows = store.uids.to_pylist()
    assert batch.image.dtype == torch.uint8
    for uid, caption, image, text in zip(batch.uids, batch.captions, batch.image, batch.texts["text"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), store.decode(rows.index(uid), towers.image_size))
        assert caption == "a {} {}".format(*uid.split("-"))
        assert torch.equal(text, towers.tokenizer([caption])[0])


def test_cluster_batches_go_through_workers(store, towers):
    order = ClusterOrder(np.arange(len(store)) % 2, 0, 24)
    view = view_of(store, towers, order=order)
    for one, two in zip(first_of(view, 0, range(3)), first_of(view, 2, range(3), piece_pairs=7), strict=True):
        same(one, two)


def test_moving_a_batch_keeps_its_text_on_the_host(store, towers):
    (batch,) = first_of(view_of(store, towers))
    there = batch.to(torch.device("meta"))
    devices = [tensor.device.type for tensor in (there.image, there.more["text_id"], there.texts["text"])]
    assert devices == ["meta", "meta", "cpu"]
    assert [len(part) for part in batch.chunks(10)] == [10, 10, 4]
    assert batch.describe() == f"24 pairs, uid {batch.uids[0]!r} to {batch.uids[-1]!r}"


def test_memory_of_a_batch_is_used_again_once_nobody_holds_it(store, towers):
    with closing(batches(view_of(store, towers), range(40), 1, 60)) as stream:
        held = next(stream)
        pixels = held.image.clone()
        places = [next(stream).image.data_ptr() for _ in range(30)]
    assert len(set(places)) <= 4
    assert held.image.data_ptr() not in places
    assert torch.equal(held.image, pixels)


# ------------------------------------------------------------------------------------- what is missing, dead or silent


def shard_path(store, number):
    return Path(storage.normalise(store.shard_set.url(number)))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("damage", ["removed", "torn"])
def test_a_shard_that_goes_away_in_a_run_is_named(store, towers, count, damage):
    path = shard_path(store, 1)
    with closing(batches(view_of(store, towers), range(1000), count, 60, piece_pairs=8)) as stream:
        next(stream)
        path.unlink() if damage == "removed" else os.truncate(path, 600)
        with pytest.raises(ShardError, match=r"uid '.*' in shard 00001: .*00001\.tar") as error:
            list(stream)
    assert "\n" not in str(error.value)
    assert ("ends before byte" if damage == "torn" else "not found") in str(error.value)


@pytest.mark.parametrize("count", [0, 2])
def test_an_unreadable_picture_is_named(store, towers, count):
    row = 5
    with shard_path(store, int(store.shard[row])).open("r+b") as tar:
        tar.seek(int(store.offset[row]))
        tar.write(bytes(64))
    with pytest.raises(
        ShardError, match=rf"uid '{store.uid(row)}' in shard .*: not a readable image .*verify"
    ) as error:
        first_of(view_of(store, towers, size=72), count)
    assert "\n" not in str(error.value)
    assert not hasattr(error.value, "__notes__")


@pytest.mark.parametrize("count", [0, 1])
def test_a_defect_keeps_its_type_and_its_traceback(store, towers, monkeypatch, count):
    def broken(_content, _crop, _out):
        raise LookupError("a defect of ours")

    monkeypatch.setattr(loading, "fast_picture", broken)
    with pytest.raises(LookupError, match=r"^a defect of ours") as error:
        first_of(view_of(store, towers), count)
    assert error.value.args == ("a defect of ours",)
    if count:
        assert "in broken" in error.value.__notes__[0]


def test_an_error_that_cannot_travel_is_told(store, towers, monkeypatch):
    class TwoArguments(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    monkeypatch.setattr(loading, "fast_picture", lambda *_: (_ for _ in ()).throw(TwoArguments("strange", "thing")))
    with pytest.raises(RuntimeError, match="strange thing"):
        first_of(view_of(store, towers), 1)


def test_what_a_worker_made_and_said_before_it_ended_is_received():
    class Failing:
        def read(self, task):
            if task.first == 3:
                raise ShardError("shard 3 is gone")
            return []

        def make(self, task, contents, out):
            out[:] = task.first
            return Piece([str(task.first)], [], np.zeros((1, 1), np.int64), np.zeros(1, np.int64))

    tasks = (Task(number, np.zeros(1, np.int64)) for number in range(99))
    pieces, out = workers.ForkedPieces(lambda _worker: Failing(), tasks, 1, (1, 2, 2, 3), str), np.zeros((1, 2, 2, 3))
    with closing(pieces):
        assert pieces.take(out).uids == ["0"]
        multiprocessing.active_children()[0].join()  # the error is sent, nobody reads tasks any more
        for number in (1, 2):
            assert pieces.take(out).uids == [str(number)]
            assert (out == number).all()
        with pytest.raises(ShardError, match="shard 3 is gone"):
            pieces.take(out)


def test_a_killed_worker_is_an_error_that_says_so(store, towers):
    with closing(batches(view_of(store, towers), range(10_000), 2, 3600, piece_pairs=8)) as stream:
        next(stream)
        victim = multiprocessing.active_children()[0]
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(workers.LostWorker, match=rf"process {victim.pid}\) was killed by SIGKILL.*out of memory"):
            list(stream)


@pytest.mark.parametrize("count", [0, 2])
def test_a_read_that_hangs_names_rank_shard_and_uid(store, towers, monkeypatch, count):
    hanging, read = store.uid(7), reader.ShardReader._read_local

    def slow(self, place):
        if place.uid == hanging:
            time.sleep(600)
        return read(self, place)

    monkeypatch.setattr(reader.ShardReader, "_read_local", slow)
    words = rf"rank 1: no answer for .* while reading uid '{hanging}' in shard .*\.tar"
    with pytest.raises(ShardError, match=words):
        first_of(view_of(store, towers, rank=1, world_size=2, size=72), count, range(8), stall_seconds=0.5)


def test_a_worker_that_hangs_without_reading_is_lost(store, towers, monkeypatch):
    monkeypatch.setattr(loading, "fast_picture", lambda *_: time.sleep(600))
    with pytest.raises(workers.LostWorker, match=r"rank 0: the loader made nothing for 0\.5 s"):
        first_of(view_of(store, towers, size=8), 1, stall_seconds=0.5)


def test_slow_progress_is_no_stall(store, towers, monkeypatch):
    read = reader.ShardReader._read_local
    monkeypatch.setattr(reader.ShardReader, "_read_local", lambda self, place: time.sleep(0.03) or read(self, place))
    (batch,) = first_of(view_of(store, towers, size=72), 1, stall_seconds=1.5)
    assert len(batch) == 72


# ------------------------------------------------------------------------------------------------- nothing left behind


@pytest.mark.parametrize("end", ["closed", "exhausted", "failed", "abandoned"])
def test_no_process_outlives_its_loader(store, towers, end):
    stream = batches(view_of(store, towers), range(2 if end == "exhausted" else 10_000), 3, 60)
    next(stream)
    assert len(multiprocessing.active_children()) == 3
    if end == "closed":
        stream.close()
    elif end == "exhausted":
        list(stream)
    elif end == "failed":
        shard_path(store, 0).unlink()
        with pytest.raises(ShardError):
            list(stream)
    else:
        del stream
    assert multiprocessing.active_children() == []


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_when_their_rank_is_killed(store, towers):
    def rank(pipe):
        stream = batches(view_of(store, towers), range(10_000), 2, 60)
        next(stream)
        pipe.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(600)

    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=rank, args=(its,))
    process.start()
    pids = mine.recv()
    assert len(pids) == 2
    assert all(is_running(pid) for pid in pids)
    process.kill()
    process.join()
    while any(is_running(pid) for pid in pids):  # the suite's time limit ends a wait in vain
        time.sleep(0.1)


@pytest.mark.parametrize("size", [72, 72 * 50])
def test_pieces_in_flight_are_bounded_whatever_the_batch(store, towers, monkeypatch, size):
    slots, tasks, make = [], [], workers.shared
    monkeypatch.setattr(workers, "shared", lambda shape, dtype: slots.append(shape) or make(shape, dtype))
    view = view_of(store, towers, size=size)
    view.tasks = lambda *a: (tasks.append(task) or task for task in DataView.tasks(view, *a))
    pieces = workers.ForkedPieces(lambda _worker: time.sleep(600), view.tasks(range(9), 8), 2, (8, 16, 16, 3), str)
    pieces._send()
    pieces._send()
    pieces.close()
    assert slots == [(2, 3, 8, 16, 16, 3)]
    assert len(tasks) == 6


# -------------------------------------------------------------------------------------------------------------- reader


def test_few_files_stay_open(store):
    one = reader.ShardReader(store.shard_set, open_files=1)
    places = store.ranges(np.arange(len(store)))
    whole = [store.shard_set.read_image(*place[1:]) for place in places]
    assert one.read(places) == whole
    assert one.read(places[::-1]) == whole[::-1]
    assert len(one._files) == 1


def test_remote_pictures_are_those_of_local_shards(world, towers, tmp_path, seaweed):
    local = store_of(tmp_path, world)
    expected = first_of(view_of(local, towers), 0, range(3))
    for number, shard in enumerate(local.shard_set.shards):
        url = f"s3://{seaweed.bucket}/loading/{shard.name}.tar"
        storage.write_bytes(url, Path(local.shard_set.url(number)).read_bytes())
        local.shard_set.shards[number] = shard._replace(url=url)
    storage.exists(local.shard_set.url(0))  # this process has a client and its thread before it forks
    for count in (0, 2):
        for one, two in zip(expected, first_of(view_of(local, towers), count, range(3), piece_pairs=9), strict=True):
            same(one, two)
    storage.remove(local.shard_set.url(1))
    with pytest.raises(ShardError, match=r"in shard 00001: s3://.*not found"):
        first_of(view_of(local, towers, size=72), 2)
    content = storage.read_bytes(local.shard_set.url(0))
    storage.write_bytes(local.shard_set.url(1), content[:700])
    with pytest.raises(ShardError, match=r"uid .* in shard 00001: s3://.*00001\.tar ends before byte"):
        first_of(view_of(local, towers, size=72), 1)


@pytest.mark.parametrize("gap", [0, 1 << 20])
def test_near_ranges_travel_together(store, monkeypatch, gap):
    monkeypatch.setattr(reader, "_GAP_BYTES", gap)
    for number, shard in enumerate(store.shard_set.shards):
        content = shard_path(store, number).read_bytes()
        store.shard_set.shards[number] = shard._replace(url=f"memory://loading/{shard.name}.tar")
        storage.write_bytes(store.shard_set.url(number), content)
    fs, asked = storage.filesystem("memory://loading")[0], []
    fetch = fs.cat_ranges
    monkeypatch.setattr(type(fs), "cat_ranges", lambda _self, *a, **k: asked.append(len(a[0])) or fetch(*a, **k))
    places = store.ranges(np.random.default_rng(0).permutation(len(store)))
    seen = []
    contents = reader.ShardReader(store.shard_set).read(places, lambda number, together: seen.append(together))
    assert contents == [store.shard_set.read_image(*place[1:]) for place in places]
    assert asked == [2 if gap else len(store)]
    assert seen == [len(store)]


# --------------------------------------------------------------------------------------------------------------- store


def test_a_store_is_sorted_and_its_layers_count_last(world, tmp_path):
    class Layer:
        def captions(self):
            return pa.table({"uid": ["red-bar-1", "red-bar-1", "nobody"], "source": ["alt", "alt", "alt"],
                             "caption": ["older", "newer", "x"], "provenance": [None] * 3})  # fmt: skip

    pairs, _, _ = world.small_world(tmp_path)
    store = PairStore(ShardSet(pairs), ["red-dot-2", "red-bar-1", "blue-bar-0"], [Layer()])
    assert store.uids.to_pylist() == ["blue-bar-0", "red-bar-1", "red-dot-2"]
    assert store.captions_of("alt", np.array([2, 1, 0])) == ["a red dot", "newer", "a blue bar"]
    assert store.captions_of("alias", np.array([0])) == ["bar in blue"]
    with pytest.raises(ShardError, match=r"1 selected uids, e\.g\. 'gone', are not in"):
        PairStore(ShardSet(pairs), ["gone", "red-bar-1"])


def test_many_pairs_cost_no_python_object_each():
    count = 300_000
    uids = [f"{number:08d}" for number in np.random.default_rng(0).permutation(count)]

    class Many:
        shards = ()

        def index(self):
            numbers = np.arange(count)
            return pa.table({"uid": uids, "shard": numbers // 1000, "offset": numbers, "bytes": numbers, "meta": uids})

        def captions(self):
            return pa.table({"uid": uids, "source": ["alt"] * count, "caption": uids, "provenance": uids})

    store = PairStore(Many(), pa.array(uids[: count // 2]))
    rows = np.array([0, 77, count // 2 - 1])
    assert store.captions_of("alt", rows) == store.uids_of(rows)
    assert [uids[place.offset] for place in store.ranges(rows)] == store.uids_of(rows)
    columns = [store.uids, *store.captions.values(), store.shard, store.offset, store.bytes]
    assert all(isinstance(column, pa.Array | np.ndarray) for column in columns)
    assert sum(column.nbytes for column in columns) < 60 * len(store)


# -------------------------------------------------------------------------------------------------------------- tokens


def captions_to_try():
    draw = random.Random(0)
    words = [
        *(
            "dog",
            "don't",
            "naïve",
            "&amp;",
            "&lt;b&gt;",
            "x²",
            "ﬁne",
            "\u201cquoted\u201d",
            "I'm",
            "3.14",
            "DOG",
            "日本",
        ),
        *("e\u0301", "a\u00a0b", "it's", "\tt", "\x1b[31mred", "``", "''", "<|x|>", "<end_of_text>", "ſ", "İ"),
    ]
    printable = string.printable
    yield from (
        "",
        " ",
        "a" * 400,
        "word " * 200,
        "&amp;amp;lt;b",
        "The  Quick\nBrown",
        "don't we'LL",
        "<start_of_text>s",
    )
    for _ in range(1500):
        yield " ".join(draw.choices(words, k=draw.randrange(8)))
        yield "".join(draw.choices(printable, k=draw.randrange(60)))
        yield "".join(chr(draw.choice((draw.randrange(32, 127), draw.randrange(1, 0x3000)))) for _ in range(20))


@pytest.mark.parametrize("options", [{}, {"clean": "canonicalize"}, {"clean": "whitespace"}, {"context_length": 12}])
def test_tokens_are_those_of_open_clips_tokenizer(options):
    theirs, ours = (open_clip.tokenizer.SimpleTokenizer(**options) for _ in range(2))
    captions = list(captions_to_try())
    assert np.array_equal(CaptionTokens(ours)(captions), theirs(captions).numpy())


def test_a_tokenizer_of_another_kind_is_asked_itself():
    class Odd(open_clip.tokenizer.SimpleTokenizer):
        def encode(self, text):
            return [len(text)]

    theirs = Odd()
    assert np.array_equal(CaptionTokens(Odd())(["abc", "de"]), theirs(["abc", "de"]).numpy())


def test_pictures_may_be_of_any_kind(world, towers, tmp_path):
    def encoded(mode, kind):
        sink = io.BytesIO()
        Image.new("RGB", (30, 20), (255, 0, 0)).convert(mode).save(sink, kind)
        return sink.getvalue()

    kinds = [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP")]
    pairs = [Pair(f"{n}", encoded(*kind), kind[1].lower(), {"alt": "x"}, {}) for n, kind in enumerate(kinds)]
    artifact = world.commit(tmp_path, "odd", "shard_set",
                            lambda uri: write_manifest(uri, [write_shard(uri, "00000", pairs)], []))  # fmt: skip
    store = PairStore(ShardSet(artifact), [pair.uid for pair in pairs])
    (batch,) = first_of(view_of(store, towers, view=View(), size=6))
    for uid, image in zip(batch.uids, batch.image, strict=True):
        red, green, blue = image.float().mean(dim=(1, 2)).tolist()
        assert red > 60
        assert (green < 12 and blue < 12) or uid == "1"
