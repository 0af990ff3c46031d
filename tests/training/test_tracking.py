"""W&B offline: one run a stage that really ran, in the run's group, with its config, its metrics and its record."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from components.runtime import SPECS
from data.artifacts import Output, Record
from data.events import Events
from training import surgeries
from training.specs import Upcycle
from training.towers import checkpoint_outcome, create_towers
from training.tracking import Tracked, Where, flat, follow, summary
from training.wandb_runs import CONFIG_KEYS, headline

CONFIG = {"kind": "train", "seed": 3, "phases": {"warm": {"optimizer": {"lr": 0.001}}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What W&B's own reader finds after a run with a finished, a failed, a reused and a waiting stage."""
    folder = tmp_path_factory.mktemp("run")
    stages = []
    since = time.time()
    for name in ("pretrain", "broken", "reused", "waiting"):
        out = Output(str(folder), name, name[0] * 64)
        stages.append(Tracked(name, "train", CONFIG, out.events_uri, name[0] * 64, {"init": "i" * 64}))
        events = Events(out.events_uri, name)
        events.emit("reused" if name == "reused" else "progress", done=0, total=1, unit="pairs")
        if name in ("pretrain", "broken"):
            events.emit("started")
            for step in range(4):
                events.metrics(step, {"loss": 4.0 - step})
        if name == "pretrain":
            with out.lock():
                record = Record(kind="checkpoint", stage="train", revision=1, fingerprint="p" * 64, config={})
                said = {"counts": {"pairs": 7}, "metrics": {"best": {"loss": 1.0}}, "parents": {"init": "i" * 64}}
                artifact = out.commit(record.model_copy(update=said))
            events.emit("finished", artifact=artifact.uri, seconds=1.5)
        if name == "broken":
            events.emit("failed", error="ModelError", message="diverged")
    stop = threading.Event()
    stop.set()
    shared = {"recipe": {"name": "small"}, "place": {"train_workers": 2}, "versions": {"torch": "2"}}
    follow(stages, Where("offline", "clipworks", "run-7", str(folder / "wandb"), since, shared), stop)
    return {path.name: read(path) for path in (folder / "wandb").glob("wandb/*run-*/*.wandb")}


def read(path: Path) -> list[dict[str, Any]]:
    """Records of one `.wandb` file, by W&B's own inspector."""
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [wandb, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def of(runs: dict[str, list[dict[str, Any]]], stage: str) -> list[dict[str, Any]]:
    return next(
        records for records in runs.values() if any(r.get("run", {}).get("display_name") == stage for r in records)
    )


def test_only_stages_that_ran_have_a_run(runs: dict[str, list[dict[str, Any]]]) -> None:
    names = [record["run"]["display_name"] for records in runs.values() for record in records if "run" in record]
    assert sorted(set(names)) == ["broken", "pretrain"]
    assert len(runs) == 2


def test_a_run_has_its_group_and_config(runs: dict[str, list[dict[str, Any]]]) -> None:
    run = next(record["run"] for record in of(runs, "pretrain") if "run" in record)
    assert (run["run_group"], run["job_type"], run["project"]) == ("run-7", "train", "clipworks")
    config = run["config"]["update"]
    assert config["phases"] == CONFIG["phases"]
    assert config["seed"] == 3
    assert config["recipe"] == {"name": "small"}
    assert (config["place"], config["run"], config["fingerprint"]) == ({"train_workers": 2}, "run-7", "p" * 64)


def test_metrics_have_their_steps(runs: dict[str, list[dict[str, Any]]]) -> None:
    history = [record["history"] for record in of(runs, "pretrain") if "history" in record]
    assert len(history) == 4
    assert "4" in json.dumps(history[0])


def test_the_summary_is_the_record(runs: dict[str, list[dict[str, Any]]]) -> None:
    text = json.dumps(of(runs, "pretrain"))
    for part in ('"best/loss"', '"counts/pairs"', '"parents/init"', "p" * 64):
        assert part in text


def test_a_failure_is_said(runs: dict[str, list[dict[str, Any]]]) -> None:
    assert "ModelError: diverged" in json.dumps(of(runs, "broken"))


def artifacts_of(runs: dict[str, list[dict[str, Any]]], stage: str) -> list[dict[str, Any]]:
    return [record["artifact"] for record in of(runs, stage) if record["type"] == "artifact"]


def test_the_result_is_an_artifact_by_reference(runs: dict[str, list[dict[str, Any]]]) -> None:
    artifact = next(one for one in artifacts_of(runs, "pretrain") if one["name"] == "pretrain")
    assert artifact["type"] == "checkpoint"
    entry = artifact["manifest"]["contents"][0]
    assert entry["digest"] == "p" * 64
    assert entry["ref"].startswith("file://")
    assert entry["ref"].endswith("/pretrain-pppppppppppp")
    assert "local_path" not in entry, "no byte of it goes to W&B"
    assert "p" * 12 in artifact["aliases"]


def test_a_parent_that_is_gone_is_said(runs: dict[str, list[dict[str, Any]]]) -> None:
    assert "parents_missing" in json.dumps(of(runs, "pretrain"))
    assert "i" * 64 in json.dumps(of(runs, "pretrain"))


def test_one_stage_that_cannot_be_told_does_not_silence_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = []
    for name, artifact in (("lost", str(tmp_path / "not-there")), ("broken", "")):
        events = Events(str(tmp_path / f"{name}.jsonl"), name)
        events.emit("started")
        events.emit("finished", artifact=artifact, seconds=1.0) if artifact else events.emit(
            "failed", error="ModelError", message="diverged"
        )
        stages.append(Tracked(name, "train", {}, str(tmp_path / f"{name}.jsonl")))
    stop = threading.Event()
    stop.set()
    follow(stages, Where("offline", "clipworks", "run-8", str(tmp_path / "wandb"), 0.0), stop)
    assert "ArtifactError" in capfd.readouterr().err
    found = {path.name: read(path) for path in (tmp_path / "wandb").glob("wandb/*run-*/*.wandb")}
    assert "ModelError: diverged" in json.dumps(of(found, "broken"))


def test_no_stage_has_a_field_that_the_shared_config_would_hide() -> None:
    assert not {name for spec in SPECS.values() for name in spec.model_fields} & set(CONFIG_KEYS)


def test_a_headline_comes_with_its_interval() -> None:
    row = {"label": "refined", "value": 0.4, "low": 0.3, "high": 0.5, "n": 70, "chance": 0.1, "unit": "fraction"}
    said = headline({"final": "refined", "rows": [row]})
    assert said == {f"headline/refined/{name}": row[name] for name in ("value", "low", "high", "n", "chance")}
    assert headline(None) == {}


def test_nested_metrics_by_path() -> None:
    assert flat({"a": {"b": 1, "c": [1]}, "d": "x"}) == {"a/b": 1, "d": "x"}


def test_what_a_model_costs_is_in_its_runs_summary(tmp_path: Path, world: Any) -> None:
    dense = create_towers(world.TINY)
    mixed, _ = surgeries.apply(Upcycle(experts=("init",) * 4, top_k=2), dense, {"init": dense.model.state_dict()})
    said = {}
    for name, towers in (("dense", dense), ("mixed", mixed)):
        outcome, print_ = checkpoint_outcome(towers), name[0] * 64
        out = Output(str(tmp_path), name, print_)
        record = Record(kind="checkpoint", stage="train", revision=1, fingerprint=print_, config={})
        with out.lock():
            made = out.commit(record.model_copy(update={"counts": outcome.counts, "metrics": outcome.metrics}))
        said[name] = summary(made, None)
    assert said["dense"]["active_parameters"] == said["dense"]["counts/parameters"] == dense.parameter_count()
    assert said["dense"]["active_parameters"] < said["mixed"]["active_parameters"] < said["mixed"]["counts/parameters"]
    # of a block's FLOPs the FFN's are two thirds and doubled
    assert 1.4 < said["mixed"]["forward_flops_per_pair"] / said["dense"]["forward_flops_per_pair"] < 1.8
