"""The dedup stage: links against brute force, chains, empty pictures, evaluations, the same bytes for any shards."""

import hashlib
import io

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw
from scipy.sparse.csgraph import connected_components

from data import storage
from data.artifacts import Output, Record, open_artifact
from data.curation.alike import contamination, exact, near_caption, near_image, semantic
from data.curation.alike.sketches import band_sizes, ngram_sets, sketch
from data.curation.groups import alone, group_equal, is_linked
from data.curation.match import space_relaxed
from data.curation.specs import DedupSpec, ExactImages, NearCaptions, NearImages, Protected, Semantic
from data.curation.tables import GROUP_SCHEMA, INSPECTION_SCHEMA, PROTECTED_SCHEMA
from data.errors import ArtifactError, RecipeError, ShardError
from data.features import write_features
from data.place import Place
from data.selection import write_split
from data.shards import Pair, read_parquet, write_manifest, write_parquet, write_shard
from data.stage import run_stage

LONG = "a small brown dog runs over the wet green grass of a park in the early morning sun"


# ------------------------------------------------------------------------------------------------------ near images


def hashes(values, nulls=()):
    return pa.chunked_array([pa.array([None if i in nulls else int(v) for i, v in enumerate(values)], pa.uint64())])


def by_brute_force(values, max_distance):
    near = np.bitwise_count(values[:, None] ^ values[None, :]) <= max_distance
    return group_equal(len(values), alone(len(values)), connected_components(near)[1])


@pytest.mark.parametrize("max_distance", range(8))
def test_hand_made_hashes_link_up_to_the_distance_and_no_further(max_distance):
    for distance in range(9):
        bits = sum(1 << (7 * number) for number in range(distance))  # spread over all blocks
        assert near_image.link(hashes([2**63 + 5, 2**63 + 5 ^ bits]), max_distance).tolist() == [
            0, 0 if distance <= max_distance else 1,
        ]  # fmt: skip


@pytest.mark.parametrize("max_distance", range(8))
def test_near_hashes_are_those_of_brute_force(max_distance):
    random = np.random.default_rng(max_distance)
    base = random.integers(0, 2**64, 150, np.uint64)
    copies = [base ^ flips(random, len(base), bits) for bits in (0, 1, 2, 3, 4, 5, 8)]
    values = random.permutation(np.concatenate([base, *copies]))
    labels = near_image.link(hashes(values), max_distance)
    assert labels.tolist() == by_brute_force(values, max_distance).tolist()
    assert is_linked(labels).any()


def flips(random, count, bits):
    one = np.uint64(1) << random.integers(0, 64, (count, bits), np.uint64)
    return np.bitwise_or.reduce(one, axis=1) if bits else np.zeros(count, np.uint64)


@pytest.mark.parametrize("max_distance", [1, 3, 7])
@pytest.mark.parametrize("num_hashes", [2, 10**4, 10**7, 10**9])
def test_every_choice_of_flipped_bits_leaves_a_whole_key(max_distance, num_hashes):
    masks = near_image.block_masks(max_distance, num_hashes, num_hashes**2 / 2)
    random = np.random.default_rng(0)
    flipped = flips(random, 5000, max_distance)
    assert np.any([(flipped & mask) == 0 for mask in masks], axis=0).all()
    assert len(set(map(int, masks))) == len(masks)


def test_twenty_thousand_equal_hashes_are_one_group_beside_a_near_and_a_far_one():
    values = [77] * 20_000 + [77 ^ 0b111, 77 ^ 0b1111_0000]
    labels = near_image.link(hashes(values), 3)
    assert not labels[:-1].any()
    assert labels[-1] == 20_001


def test_a_chain_of_near_hashes_is_one_group():
    chain = [0, 0b111, 0b111111, 0b111111111]  # 3 bits apart each, 9 end to end
    assert near_image.link(hashes(chain), 3).tolist() == [0, 0, 0, 0]
    assert near_image.link(hashes(chain), 2).tolist() == [0, 1, 2, 3]


def test_pictures_without_a_hash_or_checksum_link_to_nothing():
    assert near_image.link(hashes([5, 5, 5, 5], nulls=(0, 2)), 3).tolist() == [0, 1, 2, 1]
    assert near_image.link(hashes([5], nulls=(0,)), 3).tolist() == [0]
    content = pa.chunked_array([[None, b"a" * 16, None], [b"a" * 16, b"b" * 16]], pa.binary(16))
    assert exact.link(content).tolist() == [0, 1, 2, 1, 4]
    assert exact.link(pa.chunked_array([[None, None]], pa.binary(16))).tolist() == [0, 1]


# ---------------------------------------------------------------------------------------------------- near captions


def link_captions(tmp_path, captions, min_similarity=0.9, ngram_words=2, parts=1, order=None):
    uris = []
    for number, part in enumerate(np.array_split(np.array(captions, object), parts)):
        uris.append(str(tmp_path / f"{number}-{parts}.parquet"))
        write_parquet(uris[-1], sketch(pa.array(part, pa.large_string()), ngram_words, 128, min_similarity, 0))
    order = np.arange(len(captions)) if order is None else order
    return near_caption.link(uris, order, min_similarity)


def ngrams_of(caption, ngram_words):
    words = [word for word in space_relaxed(caption or "").split() if any(map(str.isalnum, word))]
    runs = {tuple(words[i : i + ngram_words]) for i in range(len(words) - ngram_words + 1)}
    return runs if len(words) > ngram_words else set()


def captions_by_brute_force(captions, min_similarity, ngram_words):
    sets = [ngrams_of(caption, ngram_words) for caption in captions]
    near = [[bool(a) and bool(b) and len(a & b) / len(a | b) >= min_similarity for b in sets] for a in sets]
    return group_equal(len(sets), alone(len(sets)), connected_components(np.array(near))[1])


def some_captions(seed, count):
    """Captions and copies of them with words changed, dropped, repeated; some short, blank or missing."""
    random = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(300)]
    captions = [None, "  ", "dog", "dog", "a dog", "a dog", "Dog!", "a big dog", "A big, dog."]
    while len(captions) < count:
        caption = list(random.choice(words, random.integers(4, 40)))
        captions.append(" ".join(caption))
        for _ in range(random.integers(0, 4)):
            caption = list(caption)
            caption[random.integers(0, len(caption))] = str(random.choice(words))
            captions.append(" ".join(caption[: len(caption) - random.integers(0, 2)]))
    return captions


@pytest.mark.parametrize(("min_similarity", "ngram_words"), [(0.9, 2), (0.8, 1), (0.5, 3), (1.0, 2)])
def test_near_captions_are_those_of_brute_force(tmp_path, min_similarity, ngram_words):
    captions = some_captions(0, 500)
    labels = link_captions(tmp_path, captions, min_similarity, ngram_words, parts=3)
    wanted = captions_by_brute_force(captions, min_similarity, ngram_words)
    assert labels.tolist() == wanted.tolist()
    assert is_linked(labels).sum() > 2


def test_captions_around_the_bound(tmp_path):
    ten = [f"w{number}" for number in range(10)]
    nine_of_ten, eight_of_ten = ten[:9], [*ten[:9], "x"]  # word sets: 9/10, and 9/11 = 0.82
    captions = [" ".join(words) for words in (ten, nine_of_ten)]
    assert link_captions(tmp_path, captions, 0.9, 1).tolist() == [0, 0]
    assert link_captions(tmp_path, captions, 0.91, 1).tolist() == [0, 1]
    assert link_captions(tmp_path, [captions[0], " ".join(eight_of_ten)], 0.9, 1).tolist() == [0, 1]


def test_short_captions_are_shared_by_good_pairs_and_link_nothing(tmp_path):
    captions = ["a dog", "a dog", "A dog!", "a brown dog", "A brown dog!", None, None, "", ""]
    assert link_captions(tmp_path, captions).tolist() == [0, 1, 2, 3, 3, 5, 6, 7, 8]
    assert link_captions(tmp_path, ["a dog", None]).tolist() == [0, 1]


def test_word_order_counts_and_case_and_punctuation_do_not(tmp_path):
    backwards = " ".join(reversed(LONG.split()))
    assert link_captions(tmp_path, [LONG, backwards, LONG.upper() + " ..."]).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("template", "is_alike"), [(" x{0}", True), (" x{0} and", False), (" x{0} y{0} z{0}", False)])
def test_captions_of_one_template_are_linked_or_never_compared(tmp_path, monkeypatch, template, is_alike):
    """2,000 captions share their first nine words; a quadratic search would ask 2 million times."""
    captions = ["one two three four five six seven eight nine" + template.format(number) for number in range(2000)]
    asked, plain = [], near_caption._jaccard

    def counted(left, right):
        asked.append(1)
        return plain(left, right)

    monkeypatch.setattr(near_caption, "_jaccard", counted)
    monkeypatch.setattr(near_caption, "_link_runs", near_caption._link_runs.py_func)
    labels = link_captions(tmp_path, captions, 0.8)
    assert is_linked(labels).all() == is_alike
    assert is_linked(labels).any() == is_alike
    assert len(set(labels.tolist())) == (1 if is_alike else len(captions))
    assert len(asked) < 2 * len(captions)


def test_many_copies_of_one_caption_cost_one(tmp_path):
    labels = link_captions(tmp_path, [LONG] * 20_000 + [LONG + " today"], parts=2)
    assert not labels.any()


def test_rows_go_where_the_order_says(tmp_path):
    captions = ["other words stand in this one", LONG, "yet another one is here", LONG + "."]
    assert link_captions(tmp_path, captions, order=np.array([3, 1, 0, 2]), parts=2).tolist() == [0, 1, 1, 3]


def test_sets_of_ngrams_by_hand():
    found = ngram_sets(["a b a b", None, "a b", "x, y z"], 2)
    assert found.rows.tolist() == [0, 3]
    assert np.diff(found.indptr).tolist() == [2, 2]  # {a b, b a} and {x y, y z}
    assert len(set(found.ngrams.tolist())) == 4
    assert len(ngram_sets([], 2).rows) == 0


def test_a_sketch_depends_on_the_caption_alone():
    captions = some_captions(1, 50)
    whole = sketch(pa.array(captions, pa.large_string()), 2, 64, 0.8, 3).to_pylist()
    single = [sketch(pa.array([caption], pa.large_string()), 2, 64, 0.8, 3).to_pylist()[0] for caption in captions]
    assert whole == single
    assert whole != sketch(pa.array(captions, pa.large_string()), 2, 64, 0.8, 4).to_pylist()


def test_bands_are_as_wide_as_recall_allows():
    assert band_sizes(128, 0.9) == (16, 8)
    assert band_sizes(128, 1.0) == (1, 128)
    for similarity in (0.4, 0.6, 0.8, 0.95):
        bands, width = band_sizes(128, similarity)
        assert bands * width <= 128
        assert (1 - similarity**width) ** bands <= 1e-3


# --------------------------------------------------------------------------------------------------------- semantic


def features_of(seed, count, dimension=16):
    random = np.random.default_rng(seed)
    base = random.normal(size=(count, dimension))
    near = base[: count // 2] + 0.02 * random.normal(size=(count // 2, dimension))
    found = np.concatenate([base, near])
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_in_one_cluster_semantic_links_are_those_of_brute_force():
    features = features_of(0, 800)  # more than a tile
    labels = semantic.link(features, np.arange(len(features)), 1, 0.05, 0)
    near = features @ features.T > 0.95
    assert labels.tolist() == group_equal(len(near), alone(len(near)), connected_components(near)[1]).tolist()
    assert is_linked(labels).sum() > 700


def test_semantic_links_do_not_depend_on_the_order_of_the_feature_set():
    features = features_of(1, 300)
    wanted = semantic.link(features, np.arange(len(features)), 7, 0.05, 0)
    order = np.random.default_rng(0).permutation(len(features))
    assert semantic.link(features[order], np.argsort(order), 7, 0.05, 0).tolist() == wanted.tolist()
    assert is_linked(wanted).sum() > 100


def test_epsilon_bounds_the_angle_and_pairs_without_a_feature_stay_alone():
    angle = np.deg2rad([0, 10, 90, 17])
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    rows = np.array([0, 1, -1, 2])
    assert semantic.link(features, rows, 1, 0.02, 0).tolist() == [0, 0, 2, 3]  # cos 10 degrees = 0.985
    assert semantic.link(features, rows, 1, 0.01, 0).tolist() == [0, 1, 2, 3]
    assert semantic.link(features, np.array([-1, -1]), 5, 0.1, 0).tolist() == [0, 1]


# ---------------------------------------------------------------------------------------------------- contamination


def pictures(rows, name=None):
    """Rows (uid, content letter or None, phash or None[, evaluation])."""
    columns = list(zip(*rows, strict=True)) if rows else [[], [], [], []][: 3 + bool(name)]
    content = pa.array([None if c is None else c.encode() * 16 for c in columns[1]], pa.binary(16))
    table = {"uid": pa.array(columns[0], pa.large_string()), "content": content, "phash": hashes_or_null(columns[2])}
    return pa.table(table | ({"evaluation": pa.array(columns[3], pa.string())} if name else {}))


def hashes_or_null(values):
    return pa.array(list(values), pa.uint64())


def found(pairs, evaluations, distance=3):
    table = contamination.find(pictures(pairs), pictures(evaluations, "evaluation"), distance)
    assert table.schema == PROTECTED_SCHEMA
    return [tuple(row.values()) for row in table.to_pylist()]


def test_the_nearest_evaluation_picture_is_named():
    held = [("z", "z", 0b1, "test"), ("y", "y", 0b11, "alpha"), ("x", "x", 0b110, "alpha"), ("w", "w", 0b11, "alpha")]
    assert found([("p", "p", 0b0)], held) == [("p", "test", "z", "near_image", 1)]
    assert found([("p", "p", 0b0)], held[1:]) == [("p", "alpha", "w", "near_image", 2)]
    assert found([("p", "p", 0b0)], [(*held[0][:3], "zeta"), ("v", "v", 0b10, "beta")])[0][1] == "beta"
    assert found([("p", "p", 0b1111 << 40)], held) == []


def test_the_same_bytes_go_before_the_same_hash():
    held = [("a", "other", 7, "alpha"), ("b", "p", 7, "beta")]
    held = [(uid, content[0], phash, name) for uid, content, phash, name in held]
    assert found([("p", "p", 7)], held) == [("p", "beta", "b", "exact", 0)]


def test_pictures_without_a_hash_are_contaminated_by_bytes_only():
    held = [("a", "a", None, "test"), ("b", None, None, "test"), ("c", "c", 5, "test")]
    assert found([("p", "a", None), ("q", None, None), ("r", "r", None)], held) == [("p", "test", "a", "exact", 0)]
    assert found([("p", "a", None)], []) == []
    assert found([], held) == []


@pytest.mark.parametrize("distance", [0, 3, 7])
def test_contamination_is_that_of_brute_force(distance):
    random = np.random.default_rng(distance)
    held = random.integers(0, 2**64, 120, np.uint64)
    near = np.concatenate([held[:80] ^ flips(random, 80, bits) for bits in (0, 2, 3, 5, 7, 9)])
    pairs = [(f"p{number:04d}", None, int(value)) for number, value in enumerate(near)]
    evaluations = [(f"e{number:03d}", None, int(value), f"{number % 3}") for number, value in enumerate(held)]
    wanted = []
    for uid, _, value in pairs:
        bits, name, other = min(((value ^ there).bit_count(), name, other) for other, _, there, name in evaluations)
        wanted += [(uid, name, other, "near_image", bits)] if bits <= distance else []
    assert found(pairs, evaluations, distance) == wanted
    assert wanted


# -------------------------------------------------------------------------------------------------------- the stage


def commit(root, kind, name, write):
    print_ = hashlib.sha256(name.encode()).hexdigest()
    out = Output(str(root), name, print_)
    if storage.exists(out.final_uri):
        return out.final_uri
    write(out.uri)
    return out.commit(Record(kind=kind, stage=kind, revision=1, fingerprint=print_, config={})).uri


def inspected(uri, name, rows):
    """Write an inspection of rows (uid, content, phash, entropy)."""
    blank = dict.fromkeys(INSPECTION_SCHEMA.names)
    known = [
        {**blank, "problem": "" if phash is not None else "unreadable", "uid": uid, "phash": phash, "entropy": entropy,
         "content": None if content is None else hashlib.blake2b(content, digest_size=16).digest()}
        for uid, content, phash, entropy in rows
    ]  # fmt: skip
    write_parquet(storage.join(uri, "inspection", f"{name}.parquet"), pa.Table.from_pylist(known, INSPECTION_SCHEMA))


class Pool:
    """Pairs as dicts (uid, content, phash, entropy, caption, split), in shards."""

    def __init__(self, root, shards):
        self.root, self.shards = root, shards

    def parents(self):
        names = [f"{number:05d}" for number in range(len(self.shards))]

        def write_pairs(uri):
            tars = [
                write_shard(uri, name, [Pair(p["uid"], b"x", "png", {"alt": p["caption"]}, {}) for p in shard])
                for name, shard in zip(names, self.shards, strict=True)
            ]
            write_manifest(uri, tars, [])

        def write_splits(uri):
            for name, shard in zip(names, self.shards, strict=True):
                columns = {key: pa.array([p[key] for p in shard], pa.string()) for key in ("uid", "split")}
                write_split(uri, pa.table(columns), name)

        def write_inspection(uri):
            for name, shard in zip(names, self.shards, strict=True):
                inspected(uri, name, [(p["uid"], p["content"], p["phash"], p["entropy"]) for p in shard])

        return {
            "pairs": commit(self.root, "shard_set", "pairs", write_pairs),
            "split": commit(self.root, "split", "split", write_splits),
            "inspection": commit(self.root, "inspection", "inspection", write_inspection),
        }


def pair(uid, content, phash, caption="dog", split="train", entropy=7.0):
    return {"uid": uid, "content": content, "phash": phash, "caption": caption, "split": split, "entropy": entropy}


def dedup(root, shards, more=None, place=None, **fields):
    spec = DedupSpec(pairs="pairs", split="split", inspection="inspection", **fields)
    parents = {**Pool(root, shards).parents(), **(more or {})}
    return run_stage("dedup", spec, parents, place or Place(root=str(root)))


def rows_of(artifact, name):
    return [tuple(row.values()) for row in read_parquet(artifact.at(name)).to_pylist()]


WORKED = [
    pair("a", b"one", 0b0),
    pair("b", b"one", 0b0),
    pair("c", b"two", 0b11, LONG),
    pair("d", b"three", 2**40 - 1, LONG + "."),
    pair("e", b"four", 2**60 - 1),  # like no other
    pair("f", None, None),
    pair("g", None, None),
    pair("h", b"blank", 9, entropy=0.0),
    pair("i", b"blank", 9, entropy=0.0),
    pair("j", b"blank too", 9, entropy=0.5),
    pair("v", b"five", 2**50 - 1, split="val"),
    pair("w", b"one", 0b0, split="val"),
    pair("x", b"blank", 9, split="test", entropy=0.0),
]
ALIKE = (ExactImages(), NearImages(), NearCaptions())


def test_worked_pool(tmp_path):
    artifact = dedup(tmp_path, [WORKED], alike=ALIKE)
    assert read_parquet(artifact.at("groups.parquet")).schema == GROUP_SCHEMA
    assert rows_of(artifact, "groups.parquet") == [
        ("a", "a", ["exact", "near_image"]), ("b", "a", ["exact", "near_image"]),
        ("c", "a", ["near_caption", "near_image"]), ("d", "a", ["near_caption"]),
        ("h", "h", ["exact"]), ("i", "h", ["exact"]),
    ]  # fmt: skip
    assert rows_of(artifact, "protected.parquet") == [
        ("a", "val", "w", "exact", 0), ("b", "val", "w", "exact", 0), ("c", "val", "w", "near_image", 2),
        ("h", "test", "x", "exact", 0), ("i", "test", "x", "exact", 0),
    ]  # fmt: skip
    assert artifact.record.counts == {
        "pairs": 10, "groups": 2, "grouped_pairs": 6, "redundant": 4,
        "linked_by_exact": 4, "linked_by_near_caption": 2, "linked_by_near_image": 3,
        "protected": 5, "protected_by_test": 2, "protected_by_val": 3,
    }  # fmt: skip
    assert artifact.record.metrics["largest_groups"] == [
        {"group": "a", "pairs": 4, "by": ["exact", "near_caption", "near_image"], "uids": ["a", "b", "c", "d"]},
        {"group": "h", "pairs": 2, "by": ["exact"], "uids": ["h", "i"]},
    ]


def test_nothing_is_protected_that_was_not_asked_for(tmp_path):
    artifact = dedup(tmp_path, [WORKED], protect_splits=False)
    assert rows_of(artifact, "protected.parquet") == []
    assert artifact.record.counts["protected"] == 0


def test_a_pool_without_likeness_has_empty_tables_of_the_schemas(tmp_path):
    artifact = dedup(tmp_path, [[pair("a", b"a", 0), pair("b", b"b", 2**40 - 1)]], alike=ALIKE)
    assert read_parquet(artifact.at("groups.parquet")).equals(GROUP_SCHEMA.empty_table())
    assert read_parquet(artifact.at("protected.parquet")).equals(PROTECTED_SCHEMA.empty_table())
    assert artifact.record.counts["redundant"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_shards_and_their_order_do_not_change_a_byte(tmp_path, seed):
    random = np.random.default_rng(seed)
    base = random.integers(0, 2**64, 40, np.uint64)
    captions = some_captions(seed, 300)
    pool = [
        pair(f"u{number:03d}", f"{number % 90}".encode(), int(base[number % 40] ^ flips(random, 1, number % 5)[0]),
             captions[number] or "", ("train", "train", "train", "val")[random.integers(4)], random.choice([0.2, 5.0]))
        for number in range(240)
    ]  # fmt: skip
    shuffled = [pool[number] for number in random.permutation(len(pool))]
    one = dedup(tmp_path / "one", [pool], alike=ALIKE)
    many = dedup(tmp_path / "many", [shuffled[:17], [], shuffled[17:150], shuffled[150:]], alike=ALIKE)
    assert one.record.checksums == many.record.checksums
    assert set(one.record.checksums) == {"groups.parquet", "protected.parquet"}
    assert one.record.counts == many.record.counts
    assert one.record.metrics == many.record.metrics
    assert min(count for name, count in one.record.counts.items()) > 0


def test_a_killed_stage_goes_on_with_the_sketches_that_it_has(tmp_path, monkeypatch):
    shards = [[pair(f"u{n}{i}", f"{n}{i}".encode(), None, f"{LONG} {n}") for i in range(4)] for n in range(3)]
    fields = {"alike": (NearCaptions(),)}
    whole = dedup(tmp_path / "whole", shards, **fields)
    from data.curation import dedup as module

    done, plain = [], module.sketch

    def dies(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return plain(*arguments)

    monkeypatch.setattr(module, "sketch", dies)
    with pytest.raises(KeyboardInterrupt):
        dedup(tmp_path / "killed", shards, **fields)
    calls = []
    monkeypatch.setattr(module, "sketch", lambda *arguments: (calls.append(1), plain(*arguments))[1])
    resumed = dedup(tmp_path / "killed", shards, **fields)
    assert len(calls) == 1
    assert resumed.record.checksums == whole.record.checksums


def test_semantic_links_come_from_the_feature_set(tmp_path):
    features = np.array([[1, 0], [0, 1], [0.999, 0.0447]], np.float32)
    uri = commit(tmp_path, "feature_set", "features", lambda uri: write_features(
        uri, ["e", "b", "a"], features, [], np.zeros((0, 2), np.float32)
    ))  # fmt: skip
    pool = [pair("a", b"a", 1), pair("b", b"b", 2**30 - 1), pair("c", None, None), pair("e", b"e", 2**60 - 1)]
    fields = {"alike": (Semantic(features="embed", clusters=1),)}
    artifact = dedup(tmp_path, [pool], {"alike.0.features": uri}, **fields)
    assert rows_of(artifact, "groups.parquet") == [("a", "a", ["semantic"]), ("e", "a", ["semantic"])]
    assert artifact.record.counts["linked_by_semantic"] == 2
    with pytest.raises(ArtifactError, match="uid 'd' was not embedded, nor were 0 others; add the splits"):
        dedup(tmp_path / "b", [[*pool, pair("d", b"d", 0)]], {"alike.0.features": uri}, **fields)


def picture(seed):
    """A drawing with shapes of its own."""
    random, image = np.random.default_rng(seed), Image.new("RGB", (240, 180), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = int(random.integers(0, 200)), int(random.integers(0, 140))
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        draw.rectangle((left, top, left + int(random.integers(20, 90)), top + int(random.integers(20, 90))), colour)
    return image


def saved(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def as_pair(uid, content, **more):
    image = Image.open(io.BytesIO(content))
    phash = int(str(imagehash.phash(image.convert("L"))), 16)
    return pair(uid, content, phash, entropy=image.convert("L").entropy(), **more)


def test_a_scaled_and_compressed_copy_of_a_protected_picture_is_found(tmp_path):
    original = picture(0)
    copies = [saved(original.resize((120, 90)), "JPEG", quality=60), saved(original, "WEBP", quality=70)]
    pool = [as_pair(f"copy{number}", content) for number, content in enumerate(copies)]
    pool += [as_pair(f"other{seed}", saved(picture(seed))) for seed in range(1, 30)]
    evaluation = as_pair("held", saved(original))
    uri = commit(tmp_path, "inspection", "evaluation", lambda uri: inspected(
        uri, "00000", [tuple(evaluation[key] for key in ("uid", "content", "phash", "entropy"))]
    ))  # fmt: skip
    fields = {"protect": {"benchmark": Protected(inspection="inspect_benchmark")}}
    artifact = dedup(tmp_path, [pool], {"protect.benchmark.inspection": uri}, **fields)
    found = rows_of(artifact, "protected.parquet")
    assert [row[:4] for row in found] == [
        ("copy0", "benchmark", "held", "near_image"), ("copy1", "benchmark", "held", "near_image"),
    ]  # fmt: skip
    assert artifact.record.counts["protected_by_benchmark"] == 2


def test_empty_pictures_protect_by_bytes_only(tmp_path):
    """Every blank picture has the same hash; that must not make them all contaminated."""
    white, grey = saved(Image.new("RGB", (64, 64), "white")), saved(Image.new("RGB", (80, 80), "grey"))
    pool = [as_pair("a", white), as_pair("b", grey), as_pair("v", white, split="val")]
    assert pool[0]["phash"] == pool[1]["phash"]
    artifact = dedup(tmp_path, [pool])
    assert rows_of(artifact, "protected.parquet") == [("a", "val", "v", "exact", 0)]
    assert rows_of(artifact, "groups.parquet") == []


@pytest.mark.parametrize("rows", [[], [("a", None, None, None)]])
def test_an_evaluation_without_a_picture_is_refused(tmp_path, rows):
    uri = commit(tmp_path, "inspection", "evaluation", lambda uri: inspected(uri, "00000", rows))
    fields = {"protect": {"bench": Protected(inspection="inspect_bench")}}
    with pytest.raises(ArtifactError, match=r"protect\.bench holds no picture and would protect nothing; inspect"):
        dedup(tmp_path, [WORKED], {"protect.bench.inspection": uri}, **fields)


def test_an_evaluation_with_the_name_of_a_split_is_refused(tmp_path):
    uri = commit(tmp_path, "inspection", "evaluation", lambda uri: inspected(uri, "0", [("a", b"a", 1, 5.0)]))
    with pytest.raises(RecipeError, match=r"protect\.val: is the name of a split too; choose another label"):
        dedup(tmp_path, [WORKED], {"protect.val.inspection": uri}, protect={"val": Protected(inspection="x")})


def test_empty_splits_and_foreign_inspections_are_refused(tmp_path):
    with pytest.raises(ShardError, match="stage dedup: no pair is in splits trian; name others in splits"):
        dedup(tmp_path / "a", [WORKED], splits=("trian",))
    pool = Pool(tmp_path / "b", [WORKED])
    parents = pool.parents()
    inspected(parents["inspection"], "00000", [(p["uid"], b"", 1, 5.0) for p in WORKED[::-1]])
    spec = DedupSpec(pairs="pairs", split="split", inspection="inspection")
    with pytest.raises(ArtifactError, match="shard 00000 holds other pairs than the split"):
        run_stage("dedup", spec, parents, Place(root=str(tmp_path / "b")))


def test_restart_state_is_gone_when_the_stage_is_done(tmp_path):
    artifact = dedup(tmp_path, [WORKED], alike=ALIKE)
    assert open_artifact(artifact.uri, "duplicates").record.checksums.keys() == {"groups.parquet", "protected.parquet"}
    assert not [name for name, _ in storage.list_files(str(tmp_path), recursive=True) if "sketches" in name]
