"""verify: a clean set is clean; each kind of damage is found, counted and named."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from data.artifacts import Artifact
from data.errors import ArtifactError, UserError
from data.place import Place
from data.shards import CAPTION_SCHEMA, INDEX_SCHEMA, Pair, read_parquet, write_parquet, write_shard
from data.specs import FolderPool, IngestSpec, ShardPool, SplitSpec
from data.stage import run_stage
from data.verify import VerifyReport, verify


def picture(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.frombytes("RGB", (16, 16), random.Random(seed).randbytes(768)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        pairs = [Pair(f"{name}{n}", picture(n), "png", {"alt": f"c{n}"}, {}) for n in range(4)]
        write_shard(str(tmp_path / "pool"), name, pairs)
    return tmp_path / "pool" / "shards"


@pytest.fixture
def shard_set(tmp_path: Path) -> Artifact:
    """Eight pairs in tars of its own."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        (images / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{n}.png,caption {n}\n" for n in range(8)))
    pool = FolderPool(images=str(images), captions=str(tmp_path / "t.csv"))
    return run_stage("pairs", IngestSpec(pool=pool, pairs_per_shard=4), {}, Place(root=str(tmp_path / "runs")))


def reasons(report: VerifyReport) -> set[str]:
    assert report.counts["problems"] == len(report.problems)
    for reason in {problem.reason for problem in report.problems}:
        assert report.counts[f"problem_{reason}"] == sum(problem.reason == reason for problem in report.problems)
    return {problem.reason for problem in report.problems}


@pytest.mark.parametrize("decode", [True, False])
def test_a_clean_set_has_no_problem(shard_set: Artifact, pool: Path, tmp_path: Path, decode: bool) -> None:
    expected = {"shards": 2, "pairs": 8, "captions": 8, "images": 8, "problems": 0}
    linked = run_stage("linked", IngestSpec(pool=ShardPool(url=str(pool))), {}, Place(root=str(tmp_path / "runs")))
    for uri in (shard_set.uri, linked.uri, str(pool)):
        report = verify(uri, decode)
        assert report.ok and report.counts == expected, report


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def tar_of(shard_set: Artifact) -> Path:
    return Path(shard_set.at("shards", "00000.tar"))


def edit_rows(
    shard_set: Artifact, folder: str, schema: pa.Schema, edit: Callable[[list[dict[str, object]]], object]
) -> None:
    uri = shard_set.at(folder, "00000.parquet")
    rows = read_parquet(uri).to_pylist()
    edit(rows)
    write_parquet(uri, pa.Table.from_pylist(rows, schema))


def first_offset(shard_set: Artifact) -> int:
    return int(read_parquet(shard_set.at("index", "00000.parquet"))["offset"][1].as_py())


def test_a_flipped_picture_byte_is_found_twice(shard_set: Artifact) -> None:
    flip(tar_of(shard_set), first_offset(shard_set) + 100)
    report = verify(shard_set.uri)
    uid = read_parquet(shard_set.at("index", "00000.parquet"))["uid"][1].as_py()
    assert set(report.problems) == {("00000", "", "checksum_mismatch"), ("00000", uid, "unreadable_image")}
    assert not report.ok


def test_a_flipped_header_byte_is_located(shard_set: Artifact) -> None:
    flip(tar_of(shard_set), first_offset(shard_set) - 512)
    assert reasons(verify(shard_set.uri)) == {"checksum_mismatch", "bad_header", "wrong_offset"}


def test_a_truncated_tar_is_found(shard_set: Artifact) -> None:
    tar = tar_of(shard_set)
    tar.write_bytes(tar.read_bytes()[: first_offset(shard_set) + 10])
    report = verify(shard_set.uri)
    assert reasons(report) == {"size_mismatch", "checksum_mismatch", "torn_tar", "unreadable_image", "wrong_offset"}
    assert report.counts["images"] == 8
    tar.unlink()
    assert "missing_tar" in reasons(verify(shard_set.uri))


@pytest.mark.parametrize("name", ["index/00000.parquet", "captions/00000.parquet"])
def test_side_files_that_are_damaged_or_gone_are_found(shard_set: Artifact, name: str) -> None:
    what = f"unreadable_{name.split('/')[0]}"
    flip(Path(shard_set.at(name)), 30)
    assert "checksum_mismatch" in reasons(verify(shard_set.uri))
    Path(shard_set.at(name)).write_bytes(b"PAR1")
    assert {"checksum_mismatch", what} <= reasons(verify(shard_set.uri))
    Path(shard_set.at(name)).unlink()
    assert {"missing_file", what} <= reasons(verify(shard_set.uri))


@pytest.mark.parametrize(
    ("folder", "schema", "edit", "reason"),
    [
        ("captions", CAPTION_SCHEMA, lambda rows: rows.pop(), "missing_caption"),
        ("captions", CAPTION_SCHEMA, lambda rows: rows[0].update(caption=" "), "missing_caption"),
        ("captions", CAPTION_SCHEMA, lambda rows: rows.append({**rows[0], "uid": "other"}), "caption_without_pair"),
        ("index", INDEX_SCHEMA, lambda rows: rows.pop(), "pair_count_mismatch"),
        ("index", INDEX_SCHEMA, lambda rows: rows.append(rows[0]), "duplicate_uid"),
        ("index", INDEX_SCHEMA, lambda rows: rows[0].update(offset=rows[1]["offset"]), "wrong_offset"),
        ("index", INDEX_SCHEMA, lambda rows: rows[0].update(offset=-5), "wrong_offset"),
        ("index", INDEX_SCHEMA, lambda rows: rows[0].update(bytes=rows[0]["bytes"] - 1), "wrong_offset"),
    ],
)
def test_tables_that_disagree_are_found(
    shard_set: Artifact, folder: str, schema: pa.Schema, edit: Callable[[list[dict[str, object]]], object], reason: str
) -> None:
    edit_rows(shard_set, folder, schema, edit)
    assert reason in reasons(verify(shard_set.uri, decode=False))


def test_a_folder_of_tars_is_checked_through_the_same_reader(pool: Path) -> None:
    flip(pool / "a.tar", 0)
    with tarfile.open(pool / "c.tar", "w") as tar:
        for name, content in (
            ("b0.png", picture(0)),
            ("b0.txt", b"again"),
            ("x.png", picture(1)),
            ("y.txt", b"no image"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    report = verify(str(pool))
    assert reasons(report) == {"bad_header", "missing_image", "duplicate_uid", "missing_caption"}
    assert report.counts["pairs"] == 7
    assert ("c.tar", "b0", "duplicate_uid") in report.problems


def test_what_is_neither_is_one_line(shard_set: Artifact, tmp_path: Path) -> None:
    for uri in (tmp_path / "gone", tmp_path / "images"):
        with pytest.raises(UserError, match=r"no folder|no \.tar"):
            verify(str(uri))
    split = run_stage("split", SplitSpec(pairs="pairs"), {"pairs": shard_set.uri}, Place(root=shard_set.root))
    with pytest.raises(ArtifactError, match="is a split"):
        verify(split.uri)
    Path(shard_set.at("shards.json")).write_text(json.dumps([{"name": 1}]))
    with pytest.raises(UserError, match=r"shards\.json cannot be read"):
        verify(shard_set.uri)
