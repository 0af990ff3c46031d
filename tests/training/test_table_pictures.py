"""Thumbnails for W&B: what the final model got wrong and right, bounded, and no picture that may not be shown."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import storage
from data.artifacts import Artifact, Output, Record
from data.place import Place
from data.shards import ShardSet
from data.spec import digest
from data.specs import FolderPool, IngestSpec
from data.stage import run_stage
from evaluation.rows import Rows, write_rows
from training.table_pictures import COLUMNS, SIDE, Picture, examples

COUNT = 24


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    """A shard set of pictures of two vendors."""
    images = tmp_path / "images"
    images.mkdir()
    lines = ["image,caption,vendor"]
    for number in range(COUNT):
        Image.new("RGB", (90, 40), (number, 0, 0)).save(images / f"{number}.png")
        lines.append(f"{number}.png,thing {number},{'free' if number % 2 else 'owned'}")
    captions = tmp_path / "captions.csv"
    captions.write_text("\n".join(lines) + "\n")
    spec = IngestSpec(pool=FolderPool(images=str(images), captions=str(captions)))
    return run_stage("pairs", spec, {}, Place(root=str(tmp_path / "runs")))


@pytest.fixture
def evaluation(pairs: Artifact) -> Artifact:
    """An evaluation of those pairs: every third answer is right."""
    uids = ShardSet(pairs).index()["uid"].to_pylist()
    correct = np.array([number % 3 == 0 for number in range(COUNT)], np.int64)
    entry = {"file": "s/t/kinds.parquet", "set": "s", "split": "t", "task": "kinds", "direction": "", "baseline": ""}
    other = {**entry, "file": "s/t/find.parquet", "task": "find", "direction": "text_to_image"}
    out = Output(pairs.root, "evaluate", "e" * 64)
    with out.lock():
        rank = np.where(correct == 1, 1, 5)
        rows = Rows(uids, uids, ["a"] * COUNT, ["b"] * COUNT, {"correct": correct, "rank": rank})
        write_rows(out.at("rows", entry["file"]), rows)
        storage.write_json(out.at("report.json"), {"rows": [entry, {**entry, "baseline": "majority"}, other]})
        return out.commit(Record(kind="evaluation", stage="evaluate", revision=1, fingerprint="e" * 64, config={}))


def report_of(evaluation: Artifact, pairs: Artifact, vendors: list[str]) -> Artifact:
    """A report that may show the pictures of these vendors."""
    print_ = digest(vendors)
    out = Output(pairs.root, "report", print_)
    config, metrics = {"sets": {"s": {"vendors": vendors}}}, {"headline": {"final": "refined", "rows": []}}
    parents = {"evaluations.refined": evaluation.fingerprint, "sets.s.pairs": pairs.fingerprint}
    record = Record(kind="report", stage="report", revision=1, fingerprint=print_, config=config)
    with out.lock():
        storage.write_bytes(out.at("report.html"), b"page")
        return out.commit(record.model_copy(update={"metrics": metrics, "parents": parents}))


def test_a_few_wrong_and_right_pictures_small_and_only_of_vendors_that_may_be_shown(
    pairs: Artifact, evaluation: Artifact
) -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in examples(report_of(evaluation, pairs, ["free"]))]
    assert [row["right"] for row in rows].count(False) == 6
    assert [row["right"] for row in rows].count(True) == 2
    assert {row["task"] for row in rows} == {"kinds"}, "captions that ask for pictures are no pictures"
    for row in rows:
        picture = row["picture"]
        assert isinstance(picture, Picture)
        with Image.open(io.BytesIO(picture.png)) as image:
            assert max(image.size) == SIDE
            assert image.getpixel((5, 5))[0] % 2 == 1, "of the vendor that may be shown"
    everything = examples(report_of(evaluation, pairs, []))
    assert len(everything) == 8
    assert examples(report_of(evaluation, pairs, ["nobody"])) == []
