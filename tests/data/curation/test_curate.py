"""The curate stage on a tiny shard set: the worked table as pairs, independence of shards, and every reason."""

import numpy as np
import pyarrow as pa
import pytest

from data.artifacts import Output, Record, find_fingerprint, open_artifact
from data.curation.specs import (
    Balance,
    CaptionLength,
    ClipScore,
    CurateSpec,
    EntryFile,
    ImageSize,
    MatchSpec,
    MetaFlag,
    PoolNgrams,
)
from data.curation.tables import GROUP_SCHEMA, INSPECTION_SCHEMA, PROTECTED_SCHEMA
from data.errors import ShardError
from data.features import write_features
from data.place import Place
from data.selection import kept_uids, read_entries, read_selection, write_split
from data.shards import Pair, write_manifest, write_parquet, write_shard
from data.stage import run_stage

WORKED = {"u0": "a black dog", "u1": "dog, photo of the dog", "u2": "The dog", "u3": "cat.", "u4": "catalog"}


def commit(root, kind, name, write):
    found = find_fingerprint(str(root), name.ljust(64, "0"))
    if found:
        return found.uri
    out = Output(str(root), name, name.ljust(64, "0"))
    write(out.uri)
    return out.commit(Record(kind=kind, stage=kind, revision=1, fingerprint=name.ljust(64, "0"), config={})).uri


def shard_set(root, shards, meta=()):
    """A shard set of pairs given as one dict (uid -> caption) per shard."""

    def write_pairs(uri):
        tars = [
            write_shard(
                uri,
                f"{n:05d}",
                [
                    Pair(u, b"x", "png", {"alt": c} if c is not None else {}, dict(meta).get(u, {}))
                    for u, c in s.items()
                ],
            )
            for n, s in enumerate(shards)
        ]
        write_manifest(uri, tars, [])

    return commit(root, "shard_set", f"pairs{len(shards)}", write_pairs)


def split_of_shards(root, shards, split_of):
    def write(uri):
        for n, shard in enumerate(shards):
            table = pa.table({"uid": list(shard), "split": [split_of.get(uid, "train") for uid in shard]})
            write_split(uri, table, f"{n:05d}")

    return commit(root, "split", "split", write)


def curate(root, shards, metadata, t=2, split_of=None, parents=(), meta=(), splits=("train",), source="alt", **fields):
    """Match and curate; `metadata` None: no balancing."""
    place = Place(root=str(root))
    both = {"pairs": shard_set(root, shards, meta), "split": split_of_shards(root, shards, split_of or {})}
    named = {"pairs": "pairs", "split": "split", "splits": splits, "caption_source": source}
    uris, balance = {**both, **dict(parents)}, None
    if metadata is not None:
        uris["balance.matches"] = run_stage("match", MatchSpec(**named, metadata=metadata), both, place).uri
        balance = Balance(matches="match", t=t)
    spec = CurateSpec(**named, balance=balance, **{role: role for role in dict(parents)}, **fields)
    return run_stage("curate", spec, uris, place)


@pytest.fixture
def worked(tmp_path):
    path = tmp_path / "entries.txt"
    path.write_text("dog\nblack dog\ncat\nphoto of\nthe\n")
    return (EntryFile(path=str(path)),)


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
    matches = pa.parquet.read_table(artifact.parent("balance.matches").at("matches", "00000.parquet")).to_pylist()
    assert [names[i] for i in matches[1]["entries"]] == ["dog", "photo of", "the"]


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
    artifact = curate(tmp_path, [pool], (PoolNgrams(min_count=5),), t=60)
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
    one = curate(tmp_path / "a", [pool], (PoolNgrams(),), t=20)
    three = curate(
        tmp_path / "b", [dict(items[80:]), dict(items[:10][::-1]), dict(items[10:80])], (PoolNgrams(),), t=20
    )
    assert 0 < one.record.counts["kept"] < 120
    assert read_selection(one).equals(read_selection(three))
    other_seed = curate(tmp_path / "c", [pool], (PoolNgrams(),), t=20, seed=1)
    assert not kept_uids(other_seed).equals(kept_uids(one))


def test_only_the_named_splits_count(tmp_path, worked):
    artifact = curate(tmp_path / "runs", [WORKED], worked, split_of={"u1": "test", "u2": "test"})
    assert {row["uid"] for row in read_selection(artifact).to_pylist()} == {"u0", "u3", "u4"}
    counts = {row["entry"]: row["count"] for row in read_entries(artifact).to_pylist()}
    assert counts["dog"] == 1


def test_no_balance_keeps_every_pair_with_a_caption(tmp_path):
    artifact = curate(tmp_path, [{"a": "dog", "b": None}], None)
    assert kept_uids(artifact).to_pylist() == ["a"]
    assert artifact.record.counts["dropped_no_caption"] == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "dropped_unmatched 2.*add metadata"),
        ({"splits": ("validation",)}, "splits validation are empty"),
        ({"source": "rewrite"}, "dropped_no_caption 2.*'rewrite'"),
    ],
)
def test_empty_selection_says_why(tmp_path, worked, fields, told):
    with pytest.raises(ShardError, match=told) as error:
        curate(tmp_path / "runs", [{"a": "sun", "b": "moon"}], worked, **fields)
    assert "\n" not in str(error.value)


def inspection(root, shards, **columns):
    """An inspection whose pictures are 10 x 10 unless `columns` say otherwise (uid -> value)."""

    def write(uri):
        for n, shard in enumerate(shards):
            rows = [
                {"uid": uid, "problem": "", "width": 10, "height": 10, **{c: of.get(uid) for c, of in columns.items()}}
                for uid in shard
            ]
            write_parquet(f"{uri}/inspection/{n:05d}.parquet", pa.Table.from_pylist(rows, INSPECTION_SCHEMA))

    return commit(root, "inspection", "inspection", write)


def duplicates(root, groups, protected=()):
    def write(uri):
        rows = [{"uid": uid, "group": group, "by": ["exact"]} for uid, group in sorted(groups.items())]
        write_parquet(f"{uri}/groups.parquet", pa.Table.from_pylist(rows, GROUP_SCHEMA))
        rows = [
            {"uid": u, "evaluation": "test", "evaluation_uid": "t", "by": "exact", "distance": 0} for u in protected
        ]
        write_parquet(f"{uri}/protected.parquet", pa.Table.from_pylist(rows, PROTECTED_SCHEMA))

    return commit(root, "duplicates", "duplicates", write)


def features(root, images, texts):
    def write(uri):
        image_features, text_features = (np.array(list(of.values()), np.float32) for of in (images, texts))
        write_features(uri, list(images), image_features, list(texts), text_features)

    return commit(root, "feature_set", "features", write)


def reasons(artifact):
    return {row["uid"]: row["reason"] for row in read_selection(artifact).to_pylist()}


def test_the_first_filter_that_drops_a_pair_is_its_reason(tmp_path):
    shards = [{"a": "a good caption", "b": "x", "c": "a fine caption", "d": "y"}, {"e": None}]
    widths = inspection(tmp_path, shards, width={"a": 10, "b": 3, "c": 3, "d": 10})
    filters = (CaptionLength(min_words=2), ImageSize(min_side=5), MetaFlag(field="NSFW"))
    meta = {"c": {"NSFW": "nsfw"}, "a": {"NSFW": "unlikely"}}
    artifact = curate(tmp_path, shards, None, parents={"inspection": widths}, filters=filters, meta=meta)
    assert reasons(artifact) == {
        "a": "",
        "b": "caption_length",
        "c": "image_size",
        "d": "caption_length",
        "e": "no_caption",
    }
    assert artifact.record.metrics["drops"] == {"caption_length": 3, "image_size": 3, "meta_flag": 1}


def test_of_a_group_one_of_those_that_the_filters_left_stays(tmp_path):
    shards = [{"a": "x", "b": "a long caption"}, {"c": "another caption", "d": "one more caption"}]
    parents = {
        "inspection": inspection(tmp_path, shards, width={"a": 99, "b": 10, "c": 20, "d": 10}),
        "duplicates": duplicates(tmp_path, {"a": "a", "b": "a", "c": "a"}, protected=["d"]),
    }
    with pytest.raises(ShardError, match="no pair is kept"):
        curate(tmp_path / "none", shards[:1], None, filters=(CaptionLength(min_words=9),))
    artifact = curate(tmp_path, shards, None, parents=parents, filters=(CaptionLength(min_words=2),))
    assert reasons(artifact) == {"a": "caption_length", "b": "duplicate", "c": "", "d": "protected"}
    assert artifact.record.counts == {
        "pairs": 4, "kept": 1, "dropped_no_caption": 0, "dropped_caption_length": 1, "dropped_protected": 1,
        "dropped_duplicate": 1,
    }  # fmt: skip


def test_entries_are_counted_over_the_pairs_that_are_left(tmp_path, worked):
    parents = {"duplicates": duplicates(tmp_path / "runs", {"u0": "u0", "u2": "u0"})}
    artifact = curate(tmp_path / "runs", [WORKED], worked, parents=parents)
    counts = {row["entry"]: row["count"] for row in read_entries(artifact).to_pylist()}
    assert counts == {"dog": 2, "black dog": 1, "cat": 1, "photo of": 1, "the": 1}
    assert reasons(artifact)["u2"] == "duplicate"


def test_another_threshold_reads_the_same_matches(tmp_path, worked):
    one, two = (curate(tmp_path / "runs", [WORKED], worked, t=t) for t in (2, 3))
    assert one.record.parents["balance.matches"] == two.record.parents["balance.matches"]
    assert one.fingerprint != two.fingerprint


def test_every_selection_has_its_card(tmp_path, worked):
    artifact = curate(tmp_path / "runs", [WORKED], worked)
    assert {"card.html", "card.json", "entries.parquet", "selection/00000.parquet"} == set(artifact.record.checksums)
    assert open_artifact(artifact.uri, "selection").record.metrics["drops"] == {}


def test_splits_that_were_not_matched_are_named(tmp_path, worked):
    root = tmp_path / "runs"
    split_of = {"u1": "test"}
    curate(root, [WORKED], worked, split_of=split_of)
    both = {"pairs": shard_set(root, [WORKED]), "split": split_of_shards(root, [WORKED], split_of)}
    place = Place(root=str(root))
    matched = run_stage("match", MatchSpec(pairs="p", split="s", metadata=worked), both, place).uri
    spec = CurateSpec(pairs="p", split="s", splits=("train", "test"), balance=Balance(matches="m", t=2))
    with pytest.raises(ShardError, match=r"'u1'.*did not match"):
        run_stage("curate", spec, {**both, "balance.matches": matched}, place)


def test_a_clip_score_is_the_cosine_of_picture_and_caption_and_what_was_not_embedded_goes(tmp_path):
    shards = [{"a": "dog", "b": "cat", "c": "dog"}, {"d": "bird", "e": "dog"}]
    images = {"e": [0.7, 0.7141428], "c": [0.0, 1.0], "b": [0.6, 0.8], "a": [1.0, 0.0]}
    made = features(tmp_path, images, {"cat": [0.8, 0.6], "dog": [1.0, 0.0]})
    # 0.7 is below 0.7 once it is a float32, as the cosines of features are: the bound is rounded alike
    artifact = curate(tmp_path, shards, None, parents={"features": made}, filters=(ClipScore(min_cosine=0.7),))
    assert reasons(artifact) == {"a": "", "b": "", "c": "clip_score", "d": "clip_score", "e": ""}
    none = curate(tmp_path, shards, None, parents={"features": made}, filters=(ClipScore(min_cosine=0.97),))
    assert kept_uids(none).to_pylist() == ["a"]  # b has 0.6 * 0.8 + 0.8 * 0.6 = 0.96
