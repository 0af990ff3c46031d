"""The curate stage on a tiny shard set: the worked table as pairs, independence of shards, and every reason."""

import pyarrow as pa
import pytest

from data.artifacts import Output, Record
from data.errors import ShardError
from data.place import Place
from data.selection import kept_uids, read_entries, read_selection, write_split
from data.shards import Pair, write_manifest, write_shard
from data.specs import Balance, CurateSpec, EntryFile, PoolNgrams
from data.stage import run_stage

WORKED = {"u0": "a black dog", "u1": "dog, photo of the dog", "u2": "The dog", "u3": "cat.", "u4": "catalog"}


def commit(root, kind, name, write):
    out = Output(str(root), name, name.ljust(64, "0"))
    write(out.uri)
    return out.commit(Record(kind=kind, stage=kind, revision=1, fingerprint=name.ljust(64, "0"), config={})).uri


def curate(root, shards, balance, split_of=None, seed=0, **fields):
    """Curate pairs given as one dict (uid -> caption) per shard."""

    def write_pairs(uri):
        tars = [
            write_shard(
                uri, f"{n:05d}", [Pair(u, b"x", "png", {"alt": c} if c is not None else {}, {}) for u, c in s.items()]
            )
            for n, s in enumerate(shards)
        ]
        write_manifest(uri, tars, [])

    uids = sorted(uid for shard in shards for uid in shard)
    splits = [(split_of or {}).get(uid, "train") for uid in uids]
    parents = {
        "pairs": commit(root, "shard_set", f"pairs{len(shards)}", write_pairs),
        "split": commit(root, "split", "split", lambda uri: write_split(uri, pa.table({"uid": uids, "split": splits}))),
    }
    spec = CurateSpec(pairs="pairs", split="split", balance=balance, seed=seed, **fields)
    return run_stage("curate", spec, parents, Place(root=str(root)))


@pytest.fixture
def worked(tmp_path):
    path = tmp_path / "entries.txt"
    path.write_text("dog\nblack dog\ncat\nphoto of\nthe\n")
    return Balance(metadata=(EntryFile(path=str(path)),), t=2)


def test_worked_table(tmp_path, worked):
    artifact = curate(tmp_path / "runs", [WORKED], worked)
    table = {row["uid"]: row for row in read_selection(artifact).to_pylist()}
    assert [table[uid]["p_keep"] for uid in WORKED] == [1, 1, 2 / 3, 1, 0]
    assert table["u4"]["reason"] == "unmatched"
    entries = {row["entry"]: row for row in read_entries(artifact).to_pylist()}
    assert {name: row["count"] for name, row in entries.items()} == {
        "dog": 3, "black dog": 1, "cat": 1, "photo of": 1, "the": 1,
    }  # fmt: skip
    assert entries["dog"]["p"] == 2 / 3
    names = [row["entry"] for row in read_entries(artifact).to_pylist()]
    assert sorted(names[i] for i in table["u1"]["entries"]) == ["dog", "photo of", "the"]


def test_report_numbers_of_the_worked_table(tmp_path, worked):
    metrics = curate(tmp_path / "runs", [WORKED], worked).record.metrics
    assert (metrics["t"], metrics["entries"], metrics["matching"]) == (2, 5, "exact")
    assert (metrics["head_entries"], metrics["tail_entries"], metrics["matched_fraction"]) == (1, 4, 0.8)
    assert metrics["expected_kept"] == pytest.approx(3 + 2 / 3)
    assert metrics["top_entries"][0]["entry"] == "dog"
    assert metrics["top_entries"][0]["before"] == 3
    assert metrics["entry_counts"]["edges"][:4] == [0, 1, 2, 4]
    assert metrics["entry_counts"]["before"][:3] == [0, 4, 1]
    assert sum(metrics["entry_counts"]["after"]) == 5


def test_kept_is_draw_below_p_keep_and_reasons_add_up(tmp_path):
    pool = {f"u{i}": f"dog number {i % 4}" for i in range(400)} | {"none": None, "blank": "  "}
    artifact = curate(tmp_path, [pool], Balance(metadata=(PoolNgrams(min_count=5),), t=60))
    rows = read_selection(artifact).to_pylist()
    assert all(row["kept"] == (row["draw"] < row["p_keep"]) for row in rows if row["reason"] != "no_caption")
    assert all((row["reason"] == "") == row["kept"] for row in rows)
    counts = artifact.record.counts
    assert (counts["pairs"], counts["dropped_no_caption"], counts["dropped_unmatched"]) == (402, 2, 0)
    assert counts["kept"] + sum(n for name, n in counts.items() if name.startswith("dropped")) == 402
    # p of "dog" and of "number" is 0.15, of "dog number" too, of each number 0.6: 1 - 0.85^3 0.4^2 = 0.90
    assert 320 < counts["kept"] < 390
    assert [row["uid"] for row in rows] == sorted(row["uid"] for row in rows)


def test_independent_of_shards_and_order(tmp_path):
    pool = {f"u{i}": f"dog {'red' if i % 3 else 'blue'}" for i in range(120)}
    items = list(pool.items())
    balance = Balance(metadata=(PoolNgrams(),), t=20)
    one = curate(tmp_path / "a", [pool], balance)
    three = curate(tmp_path / "b", [dict(items[80:]), dict(items[:10][::-1]), dict(items[10:80])], balance)
    assert 0 < one.record.counts["kept"] < 120
    assert read_selection(one).equals(read_selection(three))
    other_seed = curate(tmp_path / "c", [pool], balance, seed=1)
    assert kept_uids(other_seed) != kept_uids(one)


def test_only_the_named_splits_count(tmp_path, worked):
    artifact = curate(tmp_path / "runs", [WORKED], worked, split_of={"u1": "test", "u2": "test"})
    assert {row["uid"] for row in read_selection(artifact).to_pylist()} == {"u0", "u3", "u4"}
    counts = {row["entry"]: row["count"] for row in read_entries(artifact).to_pylist()}
    assert counts["dog"] == 1


def test_no_balance_keeps_every_pair_with_a_caption(tmp_path):
    artifact = curate(tmp_path, [{"a": "dog", "b": None}], None)
    assert kept_uids(artifact) == ["a"]
    assert artifact.record.counts["dropped_no_caption"] == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "dropped_unmatched 2.*add metadata"),
        ({"splits": ("validation",)}, "splits validation are empty"),
        ({"caption_source": "rewrite"}, "dropped_no_caption 2.*'rewrite'"),
    ],
)
def test_empty_selection_says_why(tmp_path, worked, fields, told):
    with pytest.raises(ShardError, match=told) as error:
        curate(tmp_path / "runs", [{"a": "sun", "b": "moon"}], worked, **fields)
    assert "\n" not in str(error.value)
