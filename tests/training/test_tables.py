"""What W&B gets of an evaluation: every number, mistakes and the worst classes, and nothing of other artifacts."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import storage
from data.artifacts import Artifact, Output, Record
from data.events import Events
from evaluation.rows import Rows, write_rows
from training.tables import tables_of
from training.tracking import Tracked, Where, follow

LABELS = ["cat", "cat", "cat", "dog", "owl", "owl"]
SAID = ["cat", "dog", "owl", "dog", "cat", "cat"]


def entry(metric: str, file: str, **more: Any) -> dict[str, Any]:
    fields = {
        "set": "pets", "split": "test", "task": "kinds", "kind": "zero_shot", "direction": "", "baseline": "",
        "file": file, "metric": metric, "value": 1 / 3, "low": 0.0, "high": 0.7, "chance": 1 / 3, "better": "higher",
        "unit": "fraction", "n": 6, "clusters": 6, "ties": 0, "dropped": 1,
    }  # fmt: skip
    return fields | more


@pytest.fixture
def commit(tmp_path: Path) -> Callable[[str, dict[str, Any]], Artifact]:
    """An artifact of a kind with this report and the rows of one task."""

    def made(kind: str, report: dict[str, Any]) -> Artifact:
        out = Output(str(tmp_path), kind, kind[0] * 64)
        ids = [f"p{number}" for number in range(6)]
        correct = np.array([a == b for a, b in zip(LABELS, SAID, strict=True)], np.int64)
        with out.lock():
            rows = Rows(ids, ids, LABELS, SAID, {"correct": correct}, dropped={"gone": "no_label"})
            write_rows(out.at("rows", "pets/test/kinds.parquet"), rows)
            plain = Rows(ids, ids, LABELS, SAID, {"nll": np.zeros(6)})
            write_rows(out.at("rows", "pets/test/calibration.parquet"), plain)
            storage.write_json(out.at("report.json"), report)
            return out.commit(Record(kind=kind, stage="evaluate", revision=1, fingerprint=kind[0] * 64, config={}))

    return made


REPORT = {
    "rows": [
        entry("top1", "pets/test/kinds.parquet"),
        entry("top1", "pets/test/kinds.majority.parquet", baseline="majority"),  # its rows are not read
        entry("nll", "pets/test/calibration.parquet", task="calibration", kind="calibration", chance=None),
    ]
}


def test_numbers_come_with_their_interval_chance_and_baselines(commit: Callable[..., Artifact]) -> None:
    numbers = tables_of(commit("evaluation", REPORT))["numbers"]
    rows = [dict(zip(numbers.columns, row, strict=True)) for row in numbers.rows]
    assert [(row["task"], row["metric"], row["baseline"]) for row in rows] == [
        ("kinds", "top1", ""), ("kinds", "top1", "majority"), ("calibration", "nll", ""),
    ]  # fmt: skip
    assert (rows[0]["low"], rows[0]["high"], rows[0]["n"], rows[0]["dropped"]) == (0.0, 0.7, 6, 1)
    assert rows[2]["chance"] is None


def test_mistakes_and_worst_classes_by_hand(commit: Callable[..., Artifact]) -> None:
    found = tables_of(commit("evaluation", REPORT))
    mistakes = [dict(zip(found["mistakes"].columns, row, strict=True)) for row in found["mistakes"].rows]
    assert {row["sample"] for row in mistakes} == {"p1", "p2", "p4", "p5"}
    assert all(row["label"] != row["prediction"] for row in mistakes)
    classes = [row[3:] for row in found["worst_classes"].rows]
    assert classes == [["owl", 2, 0.0], ["cat", 3, 1 / 3], ["dog", 1, 1.0]]
    confusions = [row[3:] for row in found["confusions"].rows]
    assert confusions == [["owl", "cat", 2, 2], ["cat", "dog", 1, 3], ["cat", "owl", 1, 3]]


def test_a_report_names_its_models_and_their_differences(commit: Callable[..., Artifact]) -> None:
    difference = {
        "label": "b", "against": "a", "set": "pets", "split": "test", "task": "kinds", "metric": "top1", "before": 0.2,
        "after": 0.3, "value": 0.1, "low": -0.1, "high": 0.3, "p": 0.4, "p_corrected": 0.8, "verdict": "none",
    }  # fmt: skip
    rows = [entry("top1", "", label="a"), entry("top1", "", label="b")]
    found = tables_of(commit("report", {"rows": rows, "differences": [difference]}))
    assert set(found) == {"numbers", "differences"}
    assert [row[0] for row in found["numbers"].rows] == ["a", "b"]
    assert found["differences"].rows[0][-1] == "none"


def test_other_artifacts_have_none(commit: Callable[..., Artifact]) -> None:
    assert tables_of(commit("checkpoint", {"rows": []})) == {}


def test_wandb_writes_them_offline(commit: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = commit("evaluation", REPORT)
    events = Events(str(tmp_path / "events"), "evaluate")
    events.emit("started")
    events.emit("finished", artifact=artifact.uri, seconds=1.0)
    stop = threading.Event()
    stop.set()
    stage = Tracked("evaluate", "evaluate", {}, str(tmp_path / "events"))
    follow([stage], Where("offline", "clipworks", "run-1", str(tmp_path / "wandb"), 0.0), stop)
    written = {path.name.partition("_0_")[0]: json.loads(path.read_text()) for path in tmp_path.rglob("*.table.json")}
    assert set(written) == {"numbers", "mistakes", "worst_classes", "confusions"}
    assert len(written["numbers"]["data"]) == 3
