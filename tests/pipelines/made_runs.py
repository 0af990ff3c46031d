"""Runs as they are found below a root, made without running anything: records, checkpoints with logs, reports."""

import json
import time
from typing import Any

from data import storage
from data.artifacts import Output, Record
from data.spec import digest
from pipelines.runs import RunRecord, StageOfRun, State, write_run

NOW = time.time()


def recipe_of(lr: float, seed: int = 0, title: str = "Small") -> dict[str, Any]:
    """What a record holds of a recipe, as far as these tests look."""
    stages = {
        "pretrain": {"kind": "train", "seed": seed, "phases": {"warm": {"optimizer": {"lr": lr}}}},
        "report": {"kind": "report", "title": title},
    }
    return {
        "name": "small",
        "title": title,
        "purpose": "p",
        "hardware": "h",
        "minutes": 1.0,
        "expect": "e",
        "stages": stages,
    }


def headline(value: float, label: str = "pretrained") -> dict[str, Any]:
    """A report's headline: a control and the model."""
    common = {"set": "small", "split": "unseen", "task": "retrieval", "metric": "R@10", "unit": "fraction",
              "better": "higher", "n": 140, "chance": 0.05}  # fmt: skip
    rows = [
        {**common, "label": name, "control": control, "value": own, "low": max(0.0, own - 0.04), "high": own + 0.04}
        for name, own, control in (("untrained", 0.05, True), (label, value, False))
    ]
    return {"set": "small", "split": "unseen", "task": "retrieval", "metric": "R@10", "final": label, "rows": rows}


def commit(
    root: str, stage: str, kind: str, config: dict[str, Any], files: dict[str, str], **said: Any
) -> tuple[str, str]:
    """Write an artifact; return its fingerprint and folder name."""
    print_ = digest([stage, config])
    out = Output(root, stage, print_)
    if not storage.exists(storage.join(out.final_uri, "record.json")):
        with out.lock():
            for name, text in files.items():
                storage.write_bytes(out.at(name), text.encode())
            out.commit(Record(kind=kind, stage=stage, revision=1, fingerprint=print_, config=config, **said))
    return print_, out.name


def log_of(lr: float) -> str:
    """A training log that falls faster with a larger rate."""
    lines = [
        {
            "phase": "warm",
            "step": step,
            "samples_seen": 64 * step,
            "loss": 4 / (1 + 40 * lr * step / 10) + 0.02 * (step % 3),
        }
        for step in range(1, 41)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_run(
    root: str, name: str, *, lr: float = 0.001, value: float | None = 0.4, state: State = "finished", seed: int = 0,
    age_hours: float = 1.0, **fields: Any,
) -> RunRecord:  # fmt: skip
    """A run whose stages are complete; without a `value`, its report is not."""
    recipe = recipe_of(lr, seed)
    train, train_folder = commit(
        root, "pretrain", "checkpoint", {"lr": lr, "seed": seed}, {"metrics.jsonl": log_of(lr)},
        counts={"pairs": 12}, metrics={"final": {"loss": round(0.5 / (1 + 100 * lr), 4)}},
    )  # fmt: skip
    print_, folder = digest(["report", lr, seed]), f"report-{digest(['report', lr, seed])[:12]}"
    if value is not None:
        config = {"of": train, "value": value}
        print_, folder = commit(
            root, "report", "report", config, {"report.html": "<p>a page"}, metrics={"headline": headline(value)}
        )
    stages = {
        "pretrain": StageOfRun(fingerprint=train, artifact=train_folder, reused=False),
        "report": StageOfRun(fingerprint=print_, artifact=folder, reused=False),
    }
    started = NOW - 3600 * age_hours
    ended = None if state == "running" else started + 125
    record = RunRecord(
        name=name, state=state, started=started, ended=ended, command=("clipworks", "run", "small", "--name", name),
        recipe=recipe, place={"root": root, "train_workers": 1}, stages=stages, versions={"torch": "2.15.0"},
        failed_stage="report" if state == "failed" else None, **fields,
    )  # fmt: skip
    write_run(root, record)
    return record
