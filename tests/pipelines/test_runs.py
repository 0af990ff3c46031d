"""`clipworks runs`: the list, one run, what differs, one page; and records that are broken, lost or in a bucket."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import storage
from data.artifacts import Output, Record
from data.errors import RecipeError
from data.events import Events
from data.place import Place
from evaluation.rows import Rows, write_rows
from pipelines.cli import main
from pipelines.here.liveness import is_alive, this_process
from pipelines.recipe import parse_recipe
from pipelines.review import diff as review_diff
from pipelines.review import listing as review
from pipelines.runs import RunRecord, StageOfRun, read_run, read_runs, scan_runs, write_run
from pipelines.yaml_text import parse_yaml


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "runs")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that succeeds prints."""

    def run(*arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured
        return captured.out

    return run


# ------------------------------------------------------------------------------------------------------------- state


def test_this_process_lives_and_an_ended_one_does_not() -> None:
    program = "from pipelines.here.liveness import this_process; print(this_process())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd(),
                           env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}).stdout.strip()  # fmt: skip
    assert is_alive(this_process()) is True
    assert is_alive(ended) is False
    boot, namespace, number, start = str(this_process()).split("/")
    assert is_alive(f"{boot}/{namespace}/{number}/{int(start) + 1}") is False, "another process with this id"
    assert is_alive(f"{boot}/1/{number}/{start}") is None, "a container's"
    assert is_alive(f"other/{namespace}/{number}/{start}") is None, "another machine's"
    assert is_alive(None) is None


def state_of(root: str, record: RunRecord) -> review.State:
    return review.Seen(root, record).state


def test_a_run_that_says_running_is_looked_at(root: str, made_runs: Any) -> None:
    process = this_process()
    lives = made_runs.make_run(root, "lives", state="running", value=None, process=process)
    assert state_of(root, lives).name == "running"
    assert review.Seen(root, lives).stages == {"pretrain": "made", "report": "to come"}

    boot, namespace, number, start = str(process).split("/")
    gone = lives.model_copy(update={"process": f"{boot}/{namespace}/{number}/{int(start) + 1}"})
    assert state_of(root, gone) == review.State("lost", "its process is gone")
    assert review.Seen(root, gone).stages["report"] == "missing"

    elsewhere = made_runs.make_run(root, "elsewhere", state="running", value=None, age_hours=5)
    assert state_of(root, elsewhere) == review.State("lost?", "no sign of life for 5.0 h")
    Events(storage.join(root, ".events", f"{elsewhere.stages['report'].artifact}.jsonl"), "report").emit("started")
    assert state_of(root, elsewhere).name == "running", "it said something just now"

    done = made_runs.make_run(root, "done", state="running", age_hours=5)
    assert state_of(root, done) == review.State("finished", "every artifact is there")


# -------------------------------------------------------------------------------------------------------------- list


def test_broken_and_foreign_records_do_not_end_the_list(
    root: str, made_runs: Any, said: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    made_runs.make_run(root, "good")
    texts = {"torn": '{"name": ', "foreign": '{"name": "foreign"}', "copied": None, "newer": None}
    whole = (Path(root) / ".runs/good/run.json").read_text()
    for name, text in texts.items():
        folder = Path(root, ".runs", name)
        folder.mkdir()
        newer = json.dumps({**json.loads(whole), "name": "newer", "from_the_future": 1})
        (folder / "run.json").write_text(text or (newer if name == "newer" else whole))
    Path(root, ".runs/only-failures/failures").mkdir(parents=True)
    records, unreadable = scan_runs(root)
    assert [record.name for record in records] == ["good"] == [record.name for record in read_runs(root)]
    reasons = dict(unreadable)
    assert reasons.keys() == texts.keys()
    assert "not JSON" in reasons["torn"]
    assert reasons["foreign"] == "state: field required"
    assert reasons["copied"] == "says that it is run 'good'"
    assert "from_the_future" in reasons["newer"]
    out = said("runs", "list", "--root", root)
    assert "foreign: unreadable: state: field required" in out
    assert len(json.loads(said("runs", "list", "--root", root, "--json"))) == 5


def test_a_line_a_run_with_state_stages_and_headline(root: str, made_runs: Any, said: Callable[..., str]) -> None:
    made_runs.make_run(root, "old", value=0.3, age_hours=9)
    made_runs.make_run(root, "new", lr=0.01, value=0.5, group="rates", age_hours=1)
    made_runs.make_run(root, "broke", lr=0.1, value=None, state="failed", age_hours=4)
    rows = json.loads(said("runs", "list", "--root", root, "--json"))
    assert [row["name"] for row in rows] == ["new", "broke", "old"]
    assert [row["state"] for row in rows] == ["finished", "failed", "finished"]
    headline = rows[0]["headline"]
    assert (headline["label"], headline["value"], headline["low"], headline["high"]) == ("pretrained", 0.5, 0.46, 0.54)
    assert (rows[1]["headline"]["metric"], rows[1]["headline"]["low"]) == ("pretrain loss", None)
    assert rows[1]["stages"] == {"made": 1, "reused": 0, "failed": 1, "to come": 0, "missing": 0, "removed": 0}
    out = said("runs", "list", "--root", root)
    assert "50.0 %" in out
    assert "1 made, 1 failed: report" in out
    assert "2 min 05 s" in out
    assert "old" not in said("runs", "list", "--root", root, "--group", "rates")


def test_an_empty_root_says_so(root: str, said: Callable[..., str]) -> None:
    assert said("runs", "list", "--root", root) == f"no runs below {root}\n"


def test_hundreds_of_runs_cost_one_listing_of_the_root(
    root: str, made_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = made_runs.make_run(root, "run-0")
    for number in range(1, 300):
        write_run(root, record.model_copy(update={"name": f"run-{number}", "started": record.started + number}))
    asked = []
    listed = storage.list_folders
    monkeypatch.setattr(storage, "list_folders", lambda uri: asked.append(uri) or listed(uri))
    runs, unreadable = review.see(root)
    assert (len(runs), unreadable) == (300, [])
    assert runs[0].record.name == "run-299"
    assert asked == [f"{root}/.runs", root]


# -------------------------------------------------------------------------------------------------------------- show


def test_everything_of_one_run(root: str, made_runs: Any, said: Callable[..., str], small: dict[str, Any]) -> None:
    record = made_runs.make_run(root, "monday", image="clipworks:7", code="s3://b/code-abc.zip")
    storage.write_json(storage.join(root, ".runs/monday/failures/report.json"), {})
    out = said("runs", "show", "monday", "--root", root)
    for part in (
        "clipworks run small --name monday", "torch 2.15.0", "clipworks:7", "not reproducible from the image alone",
        record.stages["pretrain"].artifact, "95 % interval", "untrained (control)", "report.html",
        "failures report", f"{root}/.runs/monday/run.json",
    ):  # fmt: skip
        assert part in out, part
    whole = json.loads(said("runs", "show", "monday", "--root", root, "--json"))
    assert whole["record"]["recipe"] == record.recipe

    recipe = parse_recipe(small)
    write_run(root, record.model_copy(update={"recipe": recipe.to_dict()}))
    again = parse_recipe(parse_yaml(said("runs", "show", "monday", "--root", root, "--recipe"), "shown"))
    assert again == recipe
    assert [*again.stages] == [*recipe.stages]
    assert json.dumps(again.to_dict()) == json.dumps(recipe.to_dict()), "the order of phases is part of a recipe"


def test_an_unknown_run_is_one_line_with_the_nearest(root: str, made_runs: Any, refused: Callable[..., str]) -> None:
    made_runs.make_run(root, "monday")
    for arguments in (("show", "mondy"), ("diff", "monday", "mondy"), ("rerun", "mondy"), ("report", "mondy")):
        assert "did you mean 'monday'?" in refused("runs", *arguments, "--root", root)


# -------------------------------------------------------------------------------------------------------------- diff


def evaluation(root: str, name: str, right: list[int]) -> StageOfRun:
    """An evaluation of one task with these answers right, and its draws."""
    count = len(right)
    hits = np.array(right, np.int64)
    out = Output(root, "evaluate", (name * 64)[:64])
    draws_R = np.array([hits[np.random.default_rng(seed).integers(0, count, count)].mean() for seed in range(200)])
    entry = {
        "set": "small", "split": "unseen", "task": "retrieval", "kind": "retrieval", "direction": "", "baseline": "",
        "file": "small/unseen/retrieval.parquet", "metric": "R@1", "value": float(hits.mean()), "low": 0.0, "high": 1.0,
        "chance": 0.1, "better": "higher", "unit": "fraction", "n": count, "clusters": count, "ties": 0, "dropped": 0,
        "samples": "same", "candidates": 10,
    }  # fmt: skip
    sink = io.BytesIO()
    np.save(sink, draws_R[None].astype(np.float32))
    ids = [f"p{number}" for number in range(count)]
    with out.lock():
        write_rows(out.at("rows", entry["file"]), Rows(ids, ids, ids, ids, {"R@1": hits, "correct": hits}))
        storage.write_bytes(out.at("draws.npy"), sink.getvalue())
        storage.write_json(out.at("report.json"), {"rows": [entry], "guard": {}, "extra": {}})
        config = {"bootstrap": {"draws": 200, "seed": 0}}
        record = Record(kind="evaluation", stage="evaluate", revision=1, fingerprint=(name * 64)[:64], config=config)
        out.commit(record)
    return StageOfRun(fingerprint=(name * 64)[:64], artifact=out.name, reused=False)


def with_evaluation(root: str, record: RunRecord, name: str, right: list[int]) -> RunRecord:
    recipe = {**record.recipe, "stages": {**record.recipe["stages"], "evaluate": {"kind": "evaluate"}}}
    stages = {**record.stages, "evaluate": evaluation(root, name, right)}
    changed = record.model_copy(update={"recipe": recipe, "stages": stages})
    write_run(root, changed)
    return changed


def test_only_what_differs_and_whether_it_is_luck(root: str, made_runs: Any, said: Callable[..., str]) -> None:
    first = made_runs.make_run(root, "a", lr=0.001, value=0.4)
    second = made_runs.make_run(root, "b", lr=0.01, value=0.5, image="clipworks:8")
    with_evaluation(root, first, "a", [0] * 30 + [1] * 10)
    with_evaluation(root, second, "b", [0] * 8 + [1] * 32)
    found = json.loads(said("runs", "diff", "a", "b", "--root", root, "--json"))
    assert [(one["path"], one["old"], one["new"]) for one in found["recipe"]] == [
        ("stages.pretrain.phases.warm.optimizer.lr", 0.001, 0.01)
    ]
    assert found["stages"] == {
        "pretrain": "its fields", "report": "what it is made of", "evaluate": "what it is made of",
    }  # fmt: skip
    number = found["numbers"][0]
    assert (number["before"], number["after"], number["verdict"]) == (0.25, 0.8, "helped")
    assert number["low"] > 0
    assert number["p"] == pytest.approx(2 / 2**22), "22 answers changed, all for the better: exact sign flips"
    assert {one["path"] for one in found["where"]} == {"image"}
    out = said("runs", "diff", "a", "b", "--root", root)
    assert "stages.pretrain.phases.warm.optimizer.lr: 0.001 -> 0.01" in out
    assert "helped" in out
    assert "seed" not in out, "what is equal is not printed"
    assert "pretrain.final.loss" in out


def test_equal_runs_are_said_to_be_equal(root: str, made_runs: Any, said: Callable[..., str]) -> None:
    made_runs.make_run(root, "a")
    made_runs.make_run(root, "b", age_hours=3)
    equal = "a and b are equal: recipe, artifacts, numbers, versions and place\n"
    assert said("runs", "diff", "a", "b", "--root", root) == equal


def test_another_pool_is_named_where_no_field_differs(root: str, made_runs: Any) -> None:
    first = made_runs.make_run(root, "a")
    recipe = {**first.recipe, "stages": {"pairs": {"kind": "ingest"}}}
    pair = [
        first.model_copy(update={"name": name, "recipe": recipe, "stages": {
            "pairs": StageOfRun(fingerprint=name * 64, artifact=f"pairs-{name * 12}", reused=False)
        }}) for name in ("a", "b")
    ]  # fmt: skip
    found = review_diff.diff_runs(*(review.Seen(root, record) for record in pair))
    assert found.changed == {"pairs": "what its pool holds"}
    assert not found.is_empty


# ------------------------------------------------------------------------------------------------------------ report


class Page(HTMLParser):
    """Links, scripts' addresses, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_page_over_many_runs(root: str, made_runs: Any, said: Callable[..., str]) -> None:
    for number, lr in enumerate((0.001, 0.003, 0.01)):
        made_runs.make_run(root, f"trial-{number}", lr=lr, value=0.3 + 10 * lr, group="rates", age_hours=9 - number)
    made_runs.make_run(root, "broke", lr=0.3, value=None, state="failed")
    evil = made_runs.make_run(root, "evil", lr=0.5, value=None)
    stages = {**evil.recipe["stages"], "pretrain": {"kind": "train", "note": "<script>alert(1)</script>"}}
    write_run(root, evil.model_copy(update={"recipe": {**evil.recipe, "name": "<b>bad</b>", "stages": stages}}))
    Path(root, ".runs/torn").mkdir()
    Path(root, ".runs/torn/run.json").write_text("<img src=x>")
    assert said("runs", "report", "--root", root, "--title", "Rates & more") == f"5 runs: {root}/runs.html\n"
    text = Path(root, "runs.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1, "what a recipe holds is text"
    assert "<script>alert(1)" not in text
    assert "img" not in page.tags
    assert "http" not in " ".join(page.addresses)
    reports = [one for one in page.addresses if one.endswith("report.html")]
    assert reports
    assert all(Path(root, one).exists() for one in reports), "relative to the page"
    dots = text[text.index('<div class="dots">') : text.index('<section id="runs">')]
    assert dots.index("trial-2") < dots.index("trial-1") < dots.index("trial-0"), "the best first"
    assert "3 trials; the highest" in text
    headings = text[text.index('class="matrix"') :]
    assert "<wbr>lr" in headings
    assert "min" not in page.text.partition("What the recipes have otherwise")[2].partition("Unreadable")[0]
    assert "is damaged" in page.text
    assert 'role="img"' in text
    assert text.count("<svg") == 2, "one frame of losses, one parallel view"


def test_chosen_runs_and_one_sweep(root: str, made_runs: Any, said: Callable[..., str], tmp_path: Path) -> None:
    made_runs.make_run(root, "a", group="s")
    made_runs.make_run(root, "b", lr=0.02)
    output = tmp_path / "elsewhere" / "page.html"
    said("runs", "report", "b", "--root", root, "-o", output)
    page = Page(output.read_text())
    assert "1 run below runs/" in page.text
    assert (output.parent / next(one for one in page.addresses if one.endswith("report.html"))).exists()
    assert said("runs", "report", "--group", "s", "--root", root).startswith("1 runs")


# ---------------------------------------------------------------------------------------------------------------- s3


def test_runs_in_a_bucket(seaweed: Any, made_runs: Any, said: Callable[..., str], tmp_path: Path) -> None:
    root = f"s3://{seaweed.bucket}/reviewed-{time.time_ns()}"
    made_runs.make_run(root, "a", lr=0.001, value=0.4)
    made_runs.make_run(root, "b", lr=0.01, value=0.5)
    made_runs.make_run(root, "c", lr=0.1, value=None, state="failed")
    rows = json.loads(said("runs", "list", "--root", root, "--json"))
    assert {row["name"]: row["stages"]["made"] for row in rows} == {"a": 2, "b": 2, "c": 1}
    assert "pretrain.final.loss" in said("runs", "diff", "a", "b", "--root", root)
    assert f"{root}/.runs/a/run.json" in said("runs", "show", "a", "--root", root)
    said("runs", "report", "--root", root)
    page = Page(storage.read_bytes(f"{root}/runs.html").decode())
    address = next(one for one in page.addresses if one.endswith("report.html"))
    assert storage.exists(f"{root}/{address}")
    said("runs", "report", "--root", root, "-o", tmp_path / "page.html")
    assert f"{root}/{address}" in Page((tmp_path / "page.html").read_text()).addresses, (
        "no relative way out of a bucket"
    )


def test_read_run_names_the_record_that_cannot_be_read(root: str, made_runs: Any) -> None:
    made_runs.make_run(root, "a")
    Path(root, ".runs/a/run.json").write_text("{}")
    with pytest.raises(RecipeError, match="not a readable run record"):
        read_run(root, "a")
    assert Place(root=root).root == root
