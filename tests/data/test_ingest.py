"""Pools in: folders and tars become shard sets, what is unusable has a reason, the same pool gives the same bytes."""

import io
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data import ingest, sources, storage
from data.artifacts import Artifact
from data.curation.specs import EntryFile, PageTitles, PoolNgrams, Unigrams, WordNet
from data.errors import RecipeError, ShardError, UserError
from data.events import read_events
from data.place import Place
from data.shards import Pair, ShardSet, write_shard
from data.sources import entry_files_identity, pool_identity
from data.specs import FolderPool, IngestSpec, ShardPool
from data.stage import run_stage
from data.verify import verify


def picture(seed: int = 0, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192)).save(sink, kind)
    return sink.getvalue()


def ingested(pool: FolderPool | ShardPool, root: Path, **numbers: int) -> Artifact:
    return run_stage("pairs", IngestSpec(pool=pool, **numbers), {}, Place(root=str(root)))


def content_of(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def captions_of(artifact: Artifact) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in ShardSet(artifact).captions().to_pylist():
        found.setdefault(row["uid"], {})[row["source"]] = row["caption"]
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        (folder / "sub" / f"{number}.png").write_bytes(picture(number))
    (folder / "photo.JPG").write_bytes(picture(9, "JPEG"))
    (folder / "broken.png").write_bytes(picture()[:40])
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    (folder / "notes.txt").write_text("x")
    (tmp_path / "secret.png").write_bytes(picture(7))
    return folder


def write_table(images: Path, text: str, name: str = "table.csv") -> FolderPool:
    path = images.parent / name
    path.write_text(text)
    return FolderPool(images=str(images), captions=str(path))


def test_every_row_of_a_folder_is_a_pair_a_caption_or_has_a_reason(images: Path, tmp_path: Path) -> None:
    rows = {
        "sub/0.png,zero,007": "", "sub/1.png,one,x": "", "./sub//0.png,nought,y": "", "photo.JPG,a photo,z": "",
        "sub/0.png,zero,again": "duplicate_caption", "sub/2.png, ,x": "empty_caption",
        "sub/9.png,gone,x": "missing_image",
        "broken.png,torn,x": "unreadable_image", "page.jpg,a page,x": "unreadable_image",
        "notes.txt,text,x": "unsupported_format",
        "../secret.png,out,x": "unsafe_path", "sub/../../secret.png,out,x": "unsafe_path",
        f"{tmp_path}/secret.png,out,x": "unsafe_path",
        ",nothing,x": "missing_image_path", "sub/3.png,one too many,x,y": "bad_row", "sub/4.png": "bad_row",
    }  # fmt: skip
    artifact = ingested(write_table(images, "\n".join(["image,caption,label", *rows]) + "\n\n"), tmp_path / "runs")
    expected = Counter(reason for reason in rows.values() if reason)
    assert Counter(row["reason"] for row in ShardSet(artifact).dropped().to_pylist()) == expected
    reasons = {f"dropped_{reason}": count for reason, count in expected.items()}
    assert artifact.record.counts == {"pairs": 3, "shards": 1, "dropped": expected.total(), **reasons}
    assert sorted(map(str, captions_of(artifact).values())) == sorted(
        map(str, [{"alt": "zero", "alt2": "nought"}, {"alt": "one"}, {"alt": "a photo"}])
    )
    metas = [json.loads(meta) for meta in ShardSet(artifact).index()["meta"].to_pylist()]
    assert sorted(meta["label"] for meta in metas) == ["007", "x", "z"]
    assert sorted(ShardSet(artifact).index()["ext"].to_pylist()) == ["jpg", "png", "png"]


def test_formats_of_the_table_give_the_same_pairs(images: Path, tmp_path: Path) -> None:
    rows = [{"image": f"sub/{n}.png", "caption": f'the "{n}", a line\nbreak', "score": n / 2} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quoted = ["\t".join(['"' + str(v).replace('"', '""') + '"' for v in row.values()]) for row in rows]
    (tmp_path / "t.tsv").write_text("\ufeffimage\tcaption\tscore\r\n" + "\r\n".join(quoted))
    found = []
    for kind in ("parquet", "jsonl", "tsv"):
        pool = FolderPool(images=str(images), captions=str(tmp_path / f"t.{kind}"))
        artifact = ingested(pool, tmp_path / kind)
        found.append(captions_of(artifact))
        assert artifact.record.counts["pairs"] == 3
    assert found[0] == found[1] == found[2]
    assert sorted(c["alt"] for c in found[0].values()) == [row["caption"] for row in rows]


def test_a_column_of_uids_names_the_pairs(images: Path, tmp_path: Path) -> None:
    lines = [
        "id,image,caption",
        "u1,sub/0.png,a",
        "u1,sub/1.png,b",
        "u2,sub/0.png,c",
        "a.b,sub/2.png,d",
        "u1,sub/0.png,e",
    ]
    pool = write_table(images, "\n".join(lines)).model_copy(update={"uid_column": "id"})
    artifact = ingested(pool, tmp_path / "runs")
    assert captions_of(artifact) == {"u1": {"alt": "a", "alt2": "e"}, "u2": {"alt": "c"}}
    assert artifact.record.counts["dropped_duplicate_uid"] == artifact.record.counts["dropped_bad_uid"] == 1


def test_hostile_rows_of_jsonl_are_dropped_with_a_reason(images: Path, tmp_path: Path) -> None:
    lines = [
        b'{"image": "sub/0.png", "caption": "fine", "a": NaN, "b": {"c": ["\\ud800"]}}', b"{", b"[1]", b"[" * 100_000,
        b'{"image": "sub/1.png", "caption": "\\udcff"}', b'{"image": "sub/2.png", "caption": "' + b"x" * 70_000 + b'"}',
        b'{"image": "sub/\\u0000.png", "caption": "nul"}', b'{"caption": "no image"}',
        b'{"image": null, "caption": null}',
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    artifact = ingested(FolderPool(images=str(images), captions=str(tmp_path / "t.jsonl")), tmp_path / "runs")
    assert artifact.record.counts == {
        "pairs": 1, "shards": 1, "dropped": 8, "dropped_bad_json": 3, "dropped_caption_not_utf8": 1,
        "dropped_caption_too_large": 1, "dropped_unsafe_path": 1, "dropped_missing_image_path": 2,
    }  # fmt: skip
    assert json.loads(ShardSet(artifact).index()["meta"].to_pylist()[0]) == {"b": {"c": ["\\ud800"]}}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"image_column": "imgae"},
            r"pool.image_column: no column 'imgae'; did you mean 'image'\?; the file has 'image', 'caption'",
        ),
        ({"caption_column": "text"}, "pool.caption_column: no column 'text'"),
        ({"captions": "gone.csv"}, "pool.captions: no file gone.csv"),
        ({"captions": "table.xlsx"}, "pool.captions: table.xlsx is none of .csv"),
        ({"images": "gone"}, "pool.images: no folder gone"),
    ],
)
def test_a_wrong_folder_pool_is_one_line(images: Path, tmp_path: Path, change: dict[str, str], text: str) -> None:
    pool = write_table(images, "image,caption\nsub/0.png,a\n").model_copy(update=change)
    if change.get("captions") == "table.xlsx":
        (tmp_path / "table.xlsx").write_text("x")
        pool = pool.model_copy(update={"captions": str(tmp_path / "table.xlsx")})
        text = "table.xlsx is none of .csv"
    with pytest.raises(UserError, match=text) as caught:
        ingested(pool, tmp_path / "runs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("t.parquet", b"no parquet"), ("t.csv", b'image,caption\n"sub/0.png,a\n')]
)
def test_an_unreadable_table_is_one_line(images: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShardError, match="cannot be parsed") as caught:
        ingested(FolderPool(images=str(images), captions=str(tmp_path / name)), tmp_path / "runs")
    assert "\n" not in str(caught.value)


def test_nothing_usable_is_an_error_that_counts_the_reasons(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no pair .* is usable \(missing_image 2, empty_caption 1\)"):
        ingested(write_table(images, "image,caption\nx.png,a\ny.png,b\nsub/0.png,\n"), tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("pairs-*"))
    with pytest.raises(ShardError, match="the pool is empty"):
        ingested(write_table(images, "image,caption\n"), tmp_path / "runs")


def test_ingesting_again_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    pool = write_table(images, "image,caption\n" + "".join(f"sub/{n}.png,c{n}\n" for n in range(5)))
    first, second = (ingested(pool, tmp_path / name, pairs_per_shard=2) for name in ("one", "two"))
    assert first.record.counts["shards"] == 3
    assert content_of(first.uri) == content_of(second.uri)


def test_an_ended_ingest_goes_on_at_the_first_missing_shard(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = write_table(images, "image,caption\nbroken.png,b\n" + "".join(f"sub/{n}.png,c{n}\n" for n in range(5)))
    whole = ingested(pool, tmp_path / "one", pairs_per_shard=2)
    made: list[str] = []

    def write_two(folder: str, name: str, pairs: object) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return write_shard(folder, name, pairs)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest, "write_shard", write_two)
    with pytest.raises(KeyboardInterrupt):
        ingested(pool, tmp_path / "two", pairs_per_shard=2)
    assert not list((tmp_path / "two").glob("pairs-*"))
    made.clear()
    resumed = ingested(pool, tmp_path / "two", pairs_per_shard=2)
    assert made == ["00002"]
    assert content_of(resumed.uri) == content_of(whole.uri)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        pairs = [
            Pair(f"{name}{n}", picture(n), "png", {"alt": f"caption {n}", "other": "o"}, {"tar": name})
            for n in range(3)
        ]
        write_shard(str(tmp_path / "pool"), name, pairs)
    (tmp_path / "pool" / "shards" / "a_stats.json").write_text("{}")
    return tmp_path / "pool" / "shards"


def test_tars_are_indexed_where_they_lie(tars: Path, tmp_path: Path) -> None:
    artifact = ingested(ShardPool(url=str(tars)), tmp_path / "runs")
    shard_set = ShardSet(artifact)
    assert not list(Path(artifact.uri).rglob("*.tar"))
    assert [shard.url for shard in shard_set.shards] == [str(tars / "a.tar"), str(tars / "b.tar")]
    rows = shard_set.index().to_pylist()
    assert [shard_set.read_image(r["shard"], r["offset"], r["bytes"]) for r in rows] == [
        picture(n % 3) for n in range(6)
    ]
    assert captions_of(artifact)["b2"] == {"alt": "caption 2", "other": "o"}
    assert json.loads(rows[5]["meta"]) == {"tar": "b"}
    assert artifact.record.counts == {"pairs": 6, "shards": 2, "dropped": 0}
    again = ingested(ShardPool(url=str(tars)), tmp_path / "again")
    assert content_of(again.uri) == content_of(artifact.uri)


def test_pools_and_shard_sets_may_be_remote(tars: Path, images: Path, tmp_path: Path) -> None:
    remote = f"memory://{tmp_path.name}"
    for path in (*tars.glob("*.tar"), *images.rglob("*.png")):
        storage.write_bytes(f"{remote}/{path.relative_to(tmp_path)}", path.read_bytes())
    storage.write_bytes(f"{remote}/t.csv", b"image,caption\nsub/0.png,zero\nsub/8.png,gone\n")
    local = ingested(ShardPool(url=str(tars)), tmp_path / "runs")
    artifact = run_stage(
        "pairs", IngestSpec(pool=ShardPool(url=f"{remote}/pool/shards")), {}, Place(root=f"{remote}/runs")
    )
    assert ShardSet(artifact).index().equals(ShardSet(local).index())
    row = ShardSet(artifact).index().to_pylist()[4]
    assert ShardSet(artifact).read_image(row["shard"], row["offset"], row["bytes"]) == picture(1)
    assert verify(artifact.uri).ok and verify(f"{remote}/pool/shards").ok
    pool = FolderPool(images=f"{remote}/images", captions=f"{remote}/t.csv")
    folder = run_stage("folder", IngestSpec(pool=pool), {}, Place(root=f"{remote}/runs"))
    assert folder.record.counts == {"pairs": 1, "shards": 1, "dropped": 1, "dropped_missing_image": 1}
    assert verify(folder.uri).ok


def test_uids_that_come_again_in_another_tar_are_dropped(tars: Path, tmp_path: Path) -> None:
    shutil.copy(tars / "a.tar", tars / "c.tar")
    artifact = ingested(ShardPool(url=str(tars)), tmp_path / "runs")
    assert artifact.record.counts == {"pairs": 6, "shards": 2, "dropped": 3, "dropped_duplicate_uid": 3}


def test_a_torn_tar_is_said_and_its_good_pairs_are_kept(tars: Path, tmp_path: Path) -> None:
    tar = tars / "b.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    artifact = ingested(ShardPool(url=str(tars)), tmp_path / "runs")
    counts = artifact.record.counts
    assert counts["damaged_shards"] == counts["dropped_torn_tar"] == 1
    assert 3 < counts["pairs"] < 6
    events = read_events(str(tmp_path / "runs" / ".events" / f"{Path(artifact.uri).name}.jsonl"))
    assert any("b.tar is damaged (torn_tar 1)" in event.get("message", "") for event in events)


def test_a_pool_without_tars_is_one_line(tmp_path: Path) -> None:
    for url, text in ((tmp_path / "gone", "no folder"), (tmp_path, "no .tar file"), (tmp_path / "x.tar", "is a file")):
        if url.suffix:
            url.write_bytes(b"")
        with pytest.raises(ShardError, match=text):
            pool_identity(ShardPool(url=str(url)))


@pytest.mark.parametrize("whole_bytes", [sources.WHOLE_POOL_BYTES, 0])
def test_identity_is_the_content_and_not_the_path(
    tars: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(sources, "WHOLE_POOL_BYTES", whole_bytes)
    before = pool_identity(ShardPool(url=str(tars)))
    moved = tars.rename(tars.with_name("moved"))
    assert pool_identity(ShardPool(url=str(moved))) == before
    (moved / "readme.txt").write_text("no tar")
    assert pool_identity(ShardPool(url=str(moved))) == before
    content = bytearray((moved / "a.tar").read_bytes())
    content[600] ^= 1
    (moved / "a.tar").write_bytes(content)
    changed = pool_identity(ShardPool(url=str(moved)))
    assert changed != before
    (moved / "a.tar").rename(moved / "c.tar")
    assert pool_identity(ShardPool(url=str(moved))) not in (before, changed)


def test_identity_of_a_folder_pool_sees_pictures_and_captions(images: Path) -> None:
    pool = write_table(images, "image,caption\nsub/0.png,a\n")
    seen = [pool_identity(pool)]
    (images / "sub" / "0.png").write_bytes(picture(99))
    seen.append(pool_identity(pool))
    Path(pool.captions).write_text("image,caption\nsub/0.png,b\n")
    seen.append(pool_identity(pool))
    (images / "notes.txt").write_text("not a picture")
    assert pool_identity(pool) == seen[-1]
    assert len({str(identity) for identity in seen}) == 3


@pytest.mark.parametrize("kind", [EntryFile, Unigrams, PageTitles])
def test_identity_of_entry_files_is_their_content_by_position(
    tmp_path: Path, kind: type[EntryFile | Unigrams | PageTitles]
) -> None:
    path = tmp_path / "entries.txt"
    path.write_text("dog\t5\n")
    first = entry_files_identity([PoolNgrams(), kind(path=str(path))])
    assert list(first) == ["1"]
    moved = shutil.copy(path, tmp_path / "moved.txt")
    assert entry_files_identity([PoolNgrams(), kind(path=str(moved))]) == first
    path.write_text("cat\t5\n")
    assert entry_files_identity([PoolNgrams(), kind(path=str(path))]) != first
    assert entry_files_identity([PoolNgrams(), WordNet()]) == {}
    with pytest.raises(RecipeError, match=r"^metadata\.1\.path: no file .*gone"):
        entry_files_identity([PoolNgrams(), kind(path=str(tmp_path / "gone"))])


def test_identity_of_a_wordnet_folder_is_its_four_files(tmp_path: Path) -> None:
    for name in sources.WORDNET_FILES:
        (tmp_path / name).write_text(name)
    first = entry_files_identity([WordNet(folder=str(tmp_path))])
    (tmp_path / "index.noun").write_text("not read")
    assert entry_files_identity([WordNet(folder=str(tmp_path))]) == first
    (tmp_path / "data.adv").write_text("other")
    assert entry_files_identity([WordNet(folder=str(tmp_path))]) != first
    (tmp_path / "data.adv").unlink()
    with pytest.raises(RecipeError, match=r"^metadata\.0\.folder: no data\.adv in .*; give the folder of WordNet"):
        entry_files_identity([WordNet(folder=str(tmp_path))])
    with pytest.raises(RecipeError, match=r"^metadata\.1\.folder: no folder .*gone"):
        entry_files_identity([PoolNgrams(), WordNet(folder=str(tmp_path / "gone"))])
