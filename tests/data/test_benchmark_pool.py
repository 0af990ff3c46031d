"""CLIP_benchmark's layout: labels, captions and splits as they were written, on a path, over S3 and over the web."""

import http.server
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import ingest, storage
from data.artifacts import Artifact
from data.errors import ShardError, StorageError, UserError
from data.place import Place
from data.pools import webdataset
from data.pools.benchmark import Benchmark, files_url, list_benchmark_tars, read_benchmark
from data.shards import ShardSet
from data.sources import pool_identity
from data.specs import BenchmarkPool, HoldoutValues, IngestSpec, SplitSpec
from data.stage import run_stage
from data.verify import verify

Members = dict[str, bytes]
CLASSES = ("cat", "dog", "small owl")


def picture(shade: int, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, 7)).save(sink, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return sink.getvalue()


def array(values: Any, dtype: str = "int64") -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array(values, dtype), allow_pickle=dtype == "object")
    return sink.getvalue()


def write_set(
    folder: Path, splits: dict[str, list[Members]], kind: str = "", classes: tuple[str, ...] = CLASSES
) -> Path:
    """A data set: a dict of members is a tar, in the order of the dict."""
    for split, shards in splits.items():
        (folder / split).mkdir(parents=True)
        (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
        for number, members in enumerate(shards):
            with tarfile.open(folder / split / f"{number}.tar", "w") as tar:
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    if classes:
        (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    if kind:
        (folder / "dataset_type.txt").write_text(kind + "\n")
    return folder


def one(label: Members, kind: str = "", classes: tuple[str, ...] = CLASSES, key: str = "s0") -> Callable[[Path], Path]:
    """A data set of one picture with these members."""
    members = {f"{key}.png": picture(0)} | {f"{key}.{name}": content for name, content in label.items()}
    return lambda folder: write_set(folder / "set", {"test": [members]}, kind, classes)


def ingested(url: Path | str, root: Path | str, *splits: str, workers: int = 0) -> Artifact:
    pool = BenchmarkPool(url=str(url), **({"splits": splits} if splits else {}))
    return run_stage("pairs", IngestSpec(pool=pool), {}, Place(root=str(root), data_workers=workers))


def metas(artifact: Artifact) -> dict[str, dict[str, Any]]:
    return {row["uid"]: json.loads(row["meta"]) for row in ShardSet(artifact).index().to_pylist()}


def captions(artifact: Artifact) -> list[tuple[str, str, str]]:
    return [(row["uid"], row["source"], row["caption"]) for row in ShardSet(artifact).captions().to_pylist()]


def content_of(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two splits, three tars; keys repeat in all of them."""
    first = {
        "s0000000.webp": picture(0, "WEBP"),
        "s0000000.cls": b"2",
        "s0000001.webp": picture(1, "WEBP"),
        "s0000001.cls": b"0",
    }
    second = {"s0000000.png": picture(2), "s0000000.cls": b"1\n", "s0000000.json": b'{"region": "Asia", "class": "no"}'}
    train = {"s0000000.jpg": picture(3, "JPEG"), "s0000000.cls": b"0"}
    return write_set(tmp_path / "animals", {"test": [first, second], "train": [train]})


def test_labels_become_metadata_and_keys_that_repeat_stay_apart(animals: Path, tmp_path: Path) -> None:
    artifact = ingested(animals, tmp_path / "runs", "test", "train")
    assert metas(artifact) == {
        "test-0-s0000000": {"split": "test", "cls": 2, "class": "small owl"},
        "test-0-s0000001": {"split": "test", "cls": 0, "class": "cat"},
        "test-1-s0000000": {"split": "test", "cls": 1, "class": "dog", "region": "Asia"},
        "train-0-s0000000": {"split": "train", "cls": 0, "class": "cat"},
    }
    assert captions(artifact) == []
    assert artifact.record.counts == {"pairs": 4, "shards": 3, "dropped": 0}
    card = artifact.record.metrics["data_card"]
    assert (card["type"], card["classes"], card["splits"]) == ("classification", 3, ["test", "train"])
    assert set(metas(ingested(animals, tmp_path / "runs"))) == {uid for uid in metas(artifact) if uid[:4] == "test"}


def test_pictures_are_read_where_they_lie_and_the_set_verifies(animals: Path, tmp_path: Path) -> None:
    artifact = ingested(animals, tmp_path / "runs", "test", "train")
    shard_set = ShardSet(artifact)
    assert not list(Path(artifact.uri).rglob("*.tar"))
    assert [shard.url for shard in shard_set.shards] == [
        str(animals / name) for name in ("test/0.tar", "test/1.tar", "train/0.tar")
    ]
    rows = shard_set.index().to_pylist()
    assert [shard_set.read_image(row["shard"], row["offset"], row["bytes"]) for row in rows] == [
        picture(0, "WEBP"), picture(1, "WEBP"), picture(2), picture(3, "JPEG")
    ]  # fmt: skip
    report = verify(artifact.uri)
    assert report.ok and report.counts["pairs"] == 4, report
    index = Path(artifact.at("index", "test-0.parquet"))
    index.write_bytes(Path(artifact.at("index", "train-0.parquet")).read_bytes())
    assert "wrong_offset" in {problem.reason for problem in verify(artifact.uri).problems}


def test_captions_are_lines_in_order_and_a_picture_without_one_is_no_retrieval_pair(tmp_path: Path) -> None:
    members = {
        "a.png": picture(0), "a.txt": "a cat\n\n an \u00e4pfel \r\na\u2028b\n".encode(),
        "b.png": picture(1), "b.txt": b"\n \n", "c.png": picture(2),
        "d.png": picture(3), "d.txt": b"right", "d.json": b'{"captions": {"negative": "wrong", "alt": "not this"}}',
        "e.png": picture(4), "e.txt": b"one\n\xff\xfe",
    }  # fmt: skip
    artifact = ingested(write_set(tmp_path / "set", {"test": [members]}, "retrieval", ()), tmp_path / "runs")
    assert captions(artifact) == [
        ("test-0-a", "alt", "a cat"), ("test-0-a", "alt2", " an \u00e4pfel "), ("test-0-a", "alt3", "a\u2028b"),
        ("test-0-d", "alt", "right"), ("test-0-d", "negative", "wrong"),
    ]  # fmt: skip
    assert metas(artifact)["test-0-a"] == {"split": "test"}
    dropped = {row["member"]: row["reason"] for row in ShardSet(artifact).dropped().to_pylist()}
    assert dropped == {"b": "missing_caption", "c": "missing_caption", "e": "caption_not_utf8"}


@pytest.mark.parametrize(
    ("label", "kind", "classes", "meta"),
    [
        ({"npy": array([1, 0, 1])}, "multilabel", CLASSES, {"cls": [0, 2], "classes": ["cat", "small owl"]}),
        ({"npy": array([0, 0, 0])}, "multilabel", CLASSES, {"cls": [], "classes": []}),
        ({"npy": array([0, 1, 1], "float32")}, "multilabel", (), {"cls": [1, 2]}),
        ({"npy": array([True, False, False], "bool")}, "", CLASSES, {"cls": [0], "classes": ["cat"]}),
        ({"npy": array([1, 0], "int32")}, "", CLASSES, {"values": [1, 0]}),
        ({"npy": array([1, 0, 7])}, "", CLASSES, {"values": [1, 0, 7]}),
        ({"npy": array([[1, 2], [3, 4]], ">i2")}, "", (), {"values": [[1, 2], [3, 4]]}),
        ({"npy": array(2.5, "float64")}, "", (), {"values": 2.5}),
        ({"npy": array([1, 0, 1]), "cls": b"1"}, "", CLASSES, {"cls": 1, "class": "dog", "values": [1, 0, 1]}),
        ({"cls": b"1"}, "", (), {"cls": 1}),
        ({}, "", CLASSES, {}),
    ],
)
def test_what_an_array_means(
    tmp_path: Path, label: Members, kind: str, classes: tuple[str, ...], meta: dict[str, Any]
) -> None:
    artifact = ingested(one(label, kind, classes)(tmp_path), tmp_path / "runs")
    assert metas(artifact) == {"test-0-s0": {"split": "test", **meta}}


def test_numbers_of_an_array_get_their_names(tmp_path: Path) -> None:
    url = one({"cls": b"1", "npy": array([3, 2010])})(tmp_path)

    def made(*names: str) -> Artifact:
        spec = IngestSpec(pool=BenchmarkPool(url=str(url), value_names=names))
        return run_stage("pairs", spec, {}, Place(root=str(tmp_path / "runs")))

    (meta,) = metas(made("region", "year")).values()
    assert (meta["region"], meta["year"], meta["values"]) == (3, 2010, [3, 2010])
    assert "region" not in next(iter(metas(made()).values()))
    with pytest.raises(ShardError, match=r"array of shape \(2,\), but value_names are region; name each"):
        made("region")


def _promises_too_much() -> bytes:
    """A header for ten tera-numbers before three."""
    content = array([1, 0, 1])
    shape = b"(9999999999999,), }"
    at = content.index(b"(3,), }")
    return content[:at] + shape + content[at + len(shape) :]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cls", b"cat", "bad_label"), ("cls", b"", "bad_label"), ("cls", b"1" * 65, "bad_label"),
        ("npy", b"no numpy", "bad_array"), ("npy", array([1])[:-3], "bad_array"),
        ("npy", _promises_too_much(), "bad_array"),
        ("npy", array([{"a": 1}], "object"), "bad_array"), ("npy", array(["x"], "U1"), "bad_array"),
        ("npy", array([0] * 1025, "int8"), "array_too_large"), ("npy", array([0] * 140_000), "array_too_large"),
        ("png", b"no picture", "unreadable_image"),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_read_is_dropped_with_its_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    good = {"good.png": picture(0), "good.cls": b"0"}
    bad = {"bad.png": picture(1), f"bad.{name}": content}
    folder = write_set(tmp_path / "set", {"test": [{**good, **bad}]})
    artifact = ingested(folder, tmp_path / "runs")
    assert [tuple(row.values()) for row in ShardSet(artifact).dropped().to_pylist()] == [("test-0", "bad", reason)]
    assert list(metas(artifact)) == ["test-0-good"]


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    sink = io.BytesIO()
    np.save(sink, np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(ShardError, match=r"no pair of the pool is usable \(bad_array 1\)"):
        ingested(one({"npy": sink.getvalue()})(tmp_path), tmp_path / "runs")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            one({"cls": b"3"}, key="k7"),
            r"test/0\.tar, k7\.cls: label 3, but classnames\.txt has 3 names; give one name",
        ),
        (one({"cls": b"-1"}), r"s0\.cls: label -1, but classnames"),
        (one({"npy": array([1, 0])}, "multilabel"), r"s0\.npy: label array of shape \(2,\), but .* has 3 names"),
        (one({"npy": array([1, 0, -1])}, "multilabel"), r"s0\.npy: -1 in a label array; write 0 or 1"),
        (one({"npy": array([1, 0, float("nan")], "float64")}, "multilabel"), r"nan in a label array"),
        (one({}, "multi-label"), r"dataset_type\.txt: unknown type 'multi-label'; did you mean 'multilabel'\?"),
        (one({}, classes=("cat", "", "owl")), r"classnames\.txt: line 2 is empty"),
        (one({"png": b"torn"}), r"no pair of the pool is usable \(unreadable_image 1\)"),
    ],
)
def test_a_wrong_set_is_one_line(tmp_path: Path, make: Callable[[Path], Path], text: str) -> None:
    with pytest.raises(ShardError, match=text) as caught:
        ingested(make(tmp_path), tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "runs").glob("pairs-*"))


def test_missing_splits_counts_and_tars_are_one_line(animals: Path) -> None:
    def told(*splits: str) -> str:
        with pytest.raises(ShardError) as caught:
            pool_identity(BenchmarkPool(url=str(animals), splits=splits))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert re.search(r"pool\.splits: no nshards\.txt in .*/animals/tests; did you mean 'test'\?", told("tests"))
    assert re.search(r"no nshards\.txt in .*; splits are test, train$", told("zzz"))
    (animals / "test" / "1.tar").unlink()
    assert re.search(r"animals/test/1\.tar is missing: nshards\.txt says 2 tars", told("train", "test"))
    for text in ("two", "0", "-1", ""):
        (animals / "test" / "nshards.txt").write_text(text)
        assert "is no number of tars" in told("test")
    (animals / "test" / "nshards.txt").write_bytes(b"\xff")
    assert "is not UTF-8 text" in told("test")
    with pytest.raises(ShardError, match=r"no nshards\.txt in .*; check the address"):
        pool_identity(BenchmarkPool(url=str(animals / "gone")))
    for split in ("../test", "a/b", "", "."):
        with pytest.raises(ValueError, match="pattern"):
            BenchmarkPool(url="x", splits=(split,))


def test_what_a_set_says_of_itself(animals: Path) -> None:
    (animals / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n\n {c} \n")
    (animals / "not_a_split").mkdir()
    assert read_benchmark(str(animals)) == Benchmark(
        CLASSES, ("a photo of a {c}.", "{c}"), "classification", ("test", "train")
    )
    (animals / "zeroshot_classification_templates.txt").write_text("a {c}\na photo of it\n")
    with pytest.raises(ShardError, match=r"templates\.txt: line 2 'a photo of it' has no \{c\}; write it where"):
        read_benchmark(str(animals))
    with pytest.raises(ShardError, match="no split here"):
        read_benchmark(str(animals / "test"))


def test_a_set_without_text_files_is_a_classification_of_unknown_classes(tmp_path: Path) -> None:
    folder = one({"cls": b"41"}, classes=())(tmp_path)
    assert read_benchmark(str(folder)) == Benchmark((), (), "classification", ("test",))
    page = "https://huggingface.co/datasets/someone/wds_cars/tree/main"
    assert files_url(page) == page.replace("tree", "resolve")
    assert files_url("s3://bucket/tree/main/") == "s3://bucket/tree/main"


def test_identity_is_labels_pictures_and_names_not_the_place(animals: Path) -> None:
    def seen(*splits: str) -> str:
        return json.dumps(pool_identity(BenchmarkPool(url=str(animals), splits=splits or ("test",))))

    before = seen()
    (animals / "zeroshot_classification_templates.txt").write_text("{c}")
    content = bytearray((animals / "train" / "0.tar").read_bytes())
    content[-1] ^= 1
    (animals / "train" / "0.tar").write_bytes(content)
    animals = animals.rename(animals.with_name("moved"))
    assert seen() == before != seen("test", "train")
    (animals / "classnames.txt").write_text("cat\ndog\nbig owl\n")
    renamed = seen()
    (animals / "dataset_type.txt").write_text("multilabel")
    typed = seen()
    content = bytearray((animals / "test" / "1.tar").read_bytes())
    content[600] ^= 1
    (animals / "test" / "1.tar").write_bytes(content)
    assert len({before, renamed, typed, seen()}) == 4


def test_an_ended_ingest_goes_on_at_the_first_missing_tar(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ingested(animals, tmp_path / "one", "test", "train")
    read: list[str] = []

    def read_one(tape: Any, shard: str, *rest: Any) -> Any:
        if read:
            raise KeyboardInterrupt
        read.append(shard)
        return original(tape, shard, *rest)

    original = webdataset.read_shard
    monkeypatch.setattr("data.pools.tars.read_shard", read_one)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ingested(animals, tmp_path / "two", "test", "train")
        assert not list((tmp_path / "two").glob("pairs-*"))
        read.clear()
    resumed = ingested(animals, tmp_path / "two", "test", "train")
    assert read == ["train-0"]
    assert content_of(resumed.uri) == content_of(whole.uri)


def test_splits_of_the_set_are_splits_of_its_pairs(animals: Path, tmp_path: Path) -> None:
    artifact = ingested(animals, tmp_path / "runs", "test", "train")
    spec = SplitSpec(pairs="pairs", holdouts={"test": HoldoutValues(field="split", values=("test",))})
    split = run_stage("split", spec, {"pairs": artifact.uri}, Place(root=str(tmp_path / "runs")))
    assert {name: split.record.counts[name] for name in ("test", "train")} == {"test": 3, "train": 1}


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_ray_workers_leave_the_same_bytes(animals: Path, tmp_path: Path) -> None:
    alone = ingested(animals, tmp_path / "one", "test", "train")
    spread = ingested(animals, tmp_path / "two", "test", "train", workers=2)
    assert content_of(alone.uri) == content_of(spread.uri)


def test_a_set_on_a_real_s3_server_gives_the_same_pairs(animals: Path, tmp_path: Path, seaweed: Any) -> None:
    remote = f"s3://{seaweed.bucket}/{tmp_path.name}"
    for path in animals.rglob("*.*"):
        storage.write_bytes(storage.join(remote, str(path.relative_to(animals))), path.read_bytes())
    assert read_benchmark(remote) == read_benchmark(str(animals))
    here, there = ingested(animals, tmp_path / "runs"), ingested(remote + "/", tmp_path / "others")
    assert here.record.counts == there.record.counts
    assert ShardSet(here).index().equals(ShardSet(there).index())
    assert verify(there.uri).ok
    storage.remove(remote + "/test/1.tar")
    with pytest.raises(ShardError, match=r"test/1\.tar is missing"):
        list_benchmark_tars(remote, ("test",))


# ------------------------------------------------------------------------------------------------------- over the web


class WholeFiles(http.server.SimpleHTTPRequestHandler):
    """A plain web server: the standard library's, which sends whole files only."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Ranges(WholeFiles):
    """A web server that serves parts of files, as those of data sets do; `sent` counts bytes of tars."""

    sent = 0

    def do_GET(self) -> None:
        """Answer a range with that part; else with the whole file."""
        path = Path(self.translate_path(self.path))
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        self.wfile.write(content[start : end + 1])


@pytest.fixture
def served(animals: Path) -> Iterator[Callable[[type[WholeFiles]], str]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(handler: type[WholeFiles]) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(animals)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_set_on_the_web_gives_the_same_pairs(
    animals: Path, tmp_path: Path, served: Callable[[type[WholeFiles]], str]
) -> None:
    url = served(Ranges)
    assert read_benchmark(url)._replace(splits=()) == read_benchmark(str(animals))._replace(splits=())
    assert read_benchmark(url).splits == ("train", "test")
    here, there = ingested(animals, tmp_path / "runs"), ingested(url, tmp_path / "others")
    shard_set = ShardSet(there)
    assert shard_set.index().equals(ShardSet(here).index())
    row = shard_set.index().to_pylist()[2]
    assert shard_set.shards[row["shard"]].url == f"{url}/test/1.tar"
    assert shard_set.read_image(row["shard"], row["offset"], row["bytes"]) == picture(2)
    assert verify(there.uri).ok
    assert storage.read_bytes(f"{url}/classnames.txt", 1000, 1010) == b""
    with pytest.raises(ShardError, match=r"pool\.splits: no nshards\.txt in http.*/val; splits are train, test"):
        list_benchmark_tars(url, ("val",))
    (animals / "test" / "1.tar").unlink()
    with pytest.raises(ShardError, match=r"/test/1\.tar is missing: nshards\.txt says 2 tars"):
        list_benchmark_tars(url, ("test",))


def test_a_web_server_without_ranges_is_refused_in_one_line(
    tmp_path: Path, served: Callable[[type[WholeFiles]], str]
) -> None:
    url = served(WholeFiles)
    with pytest.raises(ShardError, match=r"sends whole files, not parts of them; copy the data set") as caught:
        ingested(url, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="sends whole files, not ranges"):
        storage.read_bytes(f"{url}/test/0.tar", 512, 600)


def test_a_web_server_that_refuses_or_is_gone_is_one_line(served: Callable[[type[WholeFiles]], str]) -> None:
    class Refuses(WholeFiles):
        def do_GET(self) -> None:
            self.send_error(403)

    for url in (served(Refuses), "http://127.0.0.1:9"):
        with pytest.raises(UserError) as caught:
            read_benchmark(url)
        assert "\n" not in str(caught.value) and "cannot read" in str(caught.value)


def test_a_pool_is_found_by_its_source(animals: Path) -> None:
    spec = IngestSpec.model_validate({"pool": {"source": "benchmark", "url": str(animals)}})
    assert spec.pool == BenchmarkPool(url=str(animals)) and spec.build() is ingest.run
