"""Labelled pictures: folders a class, a table of labels and wrong captions, digits and textiles from packages."""

import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.artifacts import Artifact
from data.errors import BackendError, RecipeError, ShardError, UserError
from data.place import Place
from data.pools import Planned, class_folders, digits, textile
from data.shards import ShardSet
from data.sources import pool_identity
from data.specs import ClassFolderPool, DigitsPool, DirectionPool, FolderPool, IngestSpec, Pool, TextilePool
from data.stage import run_stage
from data.verify import verify


def picture(seed: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192)).save(sink, "PNG")
    return sink.getvalue()


def ingested(pool: Pool, root: Path, **numbers: int) -> Artifact:
    return run_stage("pairs", IngestSpec(pool=pool, **numbers), {}, Place(root=str(root)))


def metas(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(text) for text in ShardSet(artifact).index()["meta"].to_pylist()]


def captions(artifact: Artifact) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in ShardSet(artifact).captions().to_pylist():
        found.setdefault(row["uid"], {})[row["source"]] = row["caption"]
    return found


def write_pictures(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))


# ---------------------------------------------------------------------------------------------------- folders a class


def test_a_folder_is_a_class_and_its_number_its_place_in_the_alphabet(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pets", "owl/1.png", "cat/1.png", "cat/deep/er/2.png", "loose.png", "cat/note.gif")
    (tmp_path / "pets" / "cat" / "torn.png").write_bytes(picture()[:40])
    artifact = ingested(ClassFolderPool(images=str(tmp_path / "pets")), tmp_path / "runs")
    assert Counter(map(str, metas(artifact))) == {
        "{'class': 'cat', 'cls': 0}": 2, "{'class': 'owl', 'cls': 1}": 1,
    }  # fmt: skip
    dropped = {row["member"]: row["reason"] for row in ShardSet(artifact).dropped().to_pylist()}
    assert dropped == {
        "loose.png": "no_class_folder", "cat/note.gif": "unsupported_format", "cat/torn.png": "unreadable_image",
    }  # fmt: skip
    assert captions(artifact) == {}
    report = verify(artifact.uri)
    assert report.ok and report.counts["pairs"] == 3, report
    assert artifact.record.metrics["data_card"]["classes"] == 2


def test_a_folder_a_split_holds_folders_a_class(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pets", "train/cat/1.png", "train/owl/1.png", "test/owl/1.png", "test/stray.png")
    pool = ClassFolderPool(images=str(tmp_path / "pets"), split_folders=True)
    artifact = ingested(pool, tmp_path / "runs")
    assert sorted((m["split"], m["class"], m["cls"]) for m in metas(artifact)) == [
        ("test", "owl", 1), ("train", "cat", 0), ("train", "owl", 1)
    ]  # fmt: skip
    assert artifact.record.counts["dropped_no_class_folder"] == 1
    assert artifact.record.metrics["data_card"]["splits"] == {"test": 1, "train": 2}


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pets", "train/cat/1.png", "val/owl/1.png")
    with pytest.raises(RecipeError, match=r"pool\.split_folders: the folders of .* are splits \(train, val\); set it"):
        ingested(ClassFolderPool(images=str(tmp_path / "pets")), tmp_path / "runs")
    write_pictures(tmp_path / "pets", "owl/1.png")
    assert len(class_folders.plan(ClassFolderPool(images=str(tmp_path / "pets"))).pairs) == 3


def test_class_folders_have_stable_uids_and_an_identity_of_content(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", "cat/1.png", "owl/1.png")
    write_pictures(tmp_path / "b", "cat/1.png", "owl/1.png")
    one, other = (ClassFolderPool(images=str(tmp_path / name)) for name in "ab")
    assert [p.uid for p in class_folders.plan(one).pairs] == [p.uid for p in class_folders.plan(other).pairs]
    assert pool_identity(one) == pool_identity(other)
    (tmp_path / "b" / "owl" / "1.png").write_bytes(picture(9))
    assert pool_identity(one) != pool_identity(other)
    (tmp_path / "empty").mkdir()
    for folder, text in (("gone", "no folder"), ("empty", "the pool is empty")):
        with pytest.raises(ShardError, match=text):
            ingested(ClassFolderPool(images=str(tmp_path / folder)), tmp_path / "runs")


# ------------------------------------------------------------------------------------------ a table beside a folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", "0.png", "1.png", "2.png")
    return tmp_path / "table.csv"


def folder_pool(table: Path, rows: str, **fields: Any) -> FolderPool:
    table.write_text(rows)
    return FolderPool(images=str(table.parent / "images"), captions=str(table), **fields)


def test_labelled_pictures_need_no_caption(table: Path, tmp_path: Path) -> None:
    rows = "image,caption,label\n0.png,,cat\n1.png,a dog,dog\n1.png,a dog,wolf\n"
    artifact = ingested(folder_pool(table, rows, caption_column=None), tmp_path / "runs")
    assert captions(artifact) == {}
    assert sorted(m["label"] for m in metas(artifact)) == ["cat", "dog"]
    assert [m.get("caption") for m in metas(artifact) if m["label"] == "dog"] == ["a dog"]
    assert artifact.record.counts == {"pairs": 2, "shards": 1, "dropped": 1, "dropped_duplicate_row": 1}
    assert verify(artifact.uri).ok
    captioned = ingested(folder_pool(table, rows), tmp_path / "runs")
    assert captioned.record.counts["dropped_empty_caption"] == 1


def test_more_captions_are_further_sources(table: Path, tmp_path: Path) -> None:
    rows = "id,image,caption,swapped,longer\n"
    rows += "a,0.png,dog bites man,man bites dog,\nb,0.png,dog bites man,dog sees man,x y\n"
    more = {"negative": "swapped", "long": "longer"}
    artifact = ingested(folder_pool(table, rows, more_captions=more, uid_column="id"), tmp_path / "runs")
    assert captions(artifact) == {
        "a": {"alt": "dog bites man", "negative": "man bites dog"},
        "b": {"alt": "dog bites man", "negative": "dog sees man", "long": "x y"},
    }
    assert metas(artifact) == [{}, {}]
    joined = ingested(folder_pool(table, rows, more_captions=more), tmp_path / "joined")
    (found,) = captions(joined).values()
    assert found == {
        "alt": "dog bites man", "negative": "man bites dog", "negative2": "dog sees man", "long": "x y",
    }  # fmt: skip
    assert metas(joined) == [{"id": "a"}]
    alone = ingested(
        folder_pool(table, rows, more_captions=more, caption_column=None, uid_column="id"), tmp_path / "no"
    )
    assert captions(alone)["a"] == {"negative": "man bites dog"}


def test_wrong_further_captions_are_said(table: Path, tmp_path: Path) -> None:
    rows = "image,caption,swapped\n0.png,a,b\n1.png,a," + "x" * 70_000 + "\n"
    with pytest.raises(RecipeError, match=r"pool\.more_captions\.negative: no column 'swaped'; did you mean 'swapped'"):
        ingested(folder_pool(table, rows, more_captions={"negative": "swaped"}), tmp_path / "runs")
    for source in ("alt", "alt2", " "):
        with pytest.raises(ValueError, match="is what caption_column gives; choose another name"):
            folder_pool(table, rows, more_captions={source: "swapped"})
    artifact = ingested(folder_pool(table, rows, more_captions={"negative": "swapped"}), tmp_path / "runs")
    assert artifact.record.counts["dropped_caption_too_large"] == 1


# --------------------------------------------------------------------------------------------- pictures of packages


def shown(pair: Planned) -> np.ndarray:
    assert pair.content is not None
    with Image.open(io.BytesIO(pair.content)) as image:
        return np.asarray(image)


def test_digits_are_those_of_scikit_learn_and_nothing_is_lost(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    pairs = digits.plan(DigitsPool()).pairs
    known = load_digits()
    assert len(pairs) == len({pair.uid for pair in pairs}) == 1797
    assert [pair.meta["digit"] for pair in pairs] == known.target.tolist()
    assert Counter(pair.meta["class"] for pair in pairs)["seven"] == int((known.target == 7).sum()) == 179
    assert (pairs[7].uid, pairs[7].captions) == ("digit-0007", {"alt": "the digit seven"})
    for number in (0, 7, 1796):
        pixels = shown(pairs[number])
        assert pixels.shape == (32, 32)
        assert (np.kron(known.images[number], np.ones((4, 4))) * 255 / 16).round().tolist() == pixels.tolist()
    artifact = ingested(DigitsPool(), tmp_path, pairs_per_shard=1000)
    assert artifact.record.counts == {"pairs": 1797, "shards": 2, "dropped": 0}
    assert verify(artifact.uri).ok
    row = ShardSet(artifact).index().to_pylist()[0]
    content = ShardSet(artifact).read_image(row["shard"], row["offset"], row["bytes"])
    assert content == {pair.uid: pair.content for pair in pairs}[row["uid"]]


@pytest.fixture
def textile_package() -> None:
    pytest.importorskip("conformal_clip_data")


@pytest.mark.usefixtures("textile_package")
def test_textiles_have_three_classes(tmp_path: Path) -> None:
    plan = textile.plan(TextilePool())
    assert Counter(pair.meta["class"] for pair in plan.pairs) == {
        "nominal": 1000, "global defect": 500, "local defect": 500,
    }  # fmt: skip
    assert len({pair.uid for pair in plan.pairs}) == 2000 and plan.dropped == []
    assert all("." not in pair.uid for pair in plan.pairs)
    assert plan.data_card["licence"] == "MIT"
    assert all(pair.meta["class"].split()[0] in f"nominal {pair.captions['alt']}" for pair in plan.pairs)
    artifact = ingested(TextilePool(), tmp_path)
    assert artifact.record.counts == {"pairs": 2000, "shards": 1, "dropped": 0}
    assert str(tmp_path) not in json.dumps(artifact.record.model_dump())
    assert "site-packages" not in json.dumps(artifact.record.model_dump())


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textile, "PACKAGE", "no-such-package")
    with pytest.raises(BackendError, match=r"no-such-package is not installed, and pool 'textile'.*--extra quickstart"):
        pool_identity(TextilePool())


@pytest.mark.usefixtures("textile_package")
def test_a_package_without_its_folders_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textile, "folder_of", lambda *_: tmp_path)
    with pytest.raises(BackendError, match="has no folder 'nominal'; install version") as caught:
        textile.plan(TextilePool())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["digits", "textile"])
def test_identity_of_a_package_s_pictures_is_its_version(source: str, request: pytest.FixtureRequest) -> None:
    from importlib import metadata

    package = {"digits": "scikit-learn", "textile": "conformal-clip-data"}[source]
    if source == "textile":
        request.getfixturevalue("textile_package")
    spec = IngestSpec.model_validate({"pool": {"source": source}})
    assert pool_identity(spec.pool) == {"packages": {package: metadata.version(package)}}


def test_an_unknown_source_names_the_pools() -> None:
    with pytest.raises(ValueError, match="digits"):
        IngestSpec.model_validate({"pool": {"source": "digit"}})
    assert issubclass(BackendError, UserError)


def test_directions_are_pictures_and_their_mirror_images_with_the_names_of_both(tmp_path):
    from data.pools import direction

    pairs = direction.plan(DirectionPool()).pairs
    items = {}
    for pair in pairs:
        items.setdefault(pair.meta["item"], {})[pair.meta["direction"]] = pair
    assert len(items) > 50
    for sides in items.values():
        content = Path(sides["left"].uri).read_bytes()
        left, right = (np.asarray(Image.open(io.BytesIO(sides[s].derive(content)))) for s in ("left", "right"))
        assert np.array_equal(left[:, ::-1], right)
        assert not np.array_equal(left, right), sides["left"].uid
        assert "facing right" in sides["right"].captions["alt"]
        assert "facing" not in sides["left"].captions["alt"]
    artifact = run_stage("pairs", IngestSpec(pool=DirectionPool()), {}, Place(root=str(tmp_path)))
    assert artifact.record.counts["pairs"] == len(pairs) == 2 * len(items)
