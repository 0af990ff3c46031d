"""What a component's body does: parse, wait for Ray where it is needed, run, and say what failed."""

import json
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from components import runtime
from components.failure import FAILURE_FILE
from components.runtime import parse_parents, run_component, wait_for_ray
from data.artifacts import open_artifact
from data.errors import BackendError, RecipeError, ShardError, StorageError, UserError
from data.place import Place


@pytest.fixture
def place(tmp_path: Path) -> str:
    return Place(root=str(tmp_path / "runs")).model_dump_json()


@pytest.fixture
def config(tmp_path: Path) -> str:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\n" + "".join(f"{number}.png,thing {number}\n" for number in range(3)))
    return json.dumps(
        {"kind": "ingest", "pool": {"source": "folder", "images": str(folder), "captions": str(captions)}}
    )


@pytest.fixture
def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "failure.json"
    monkeypatch.setenv(FAILURE_FILE, str(path))
    monkeypatch.setattr(runtime, "end_with_parent", lambda: None)
    return path


def test_strings_in_a_uri_out(config: str, place: str) -> None:
    uri = run_component("ingest", "pairs", config, "", place)
    assert open_artifact(uri, "shard_set").record.counts["pairs"] == 3
    assert run_component("ingest", "pairs", config, "", place) == uri
    split = json.dumps({"kind": "split", "pairs": "pairs"})
    assert open_artifact(run_component("split", "split", split, f"pairs={uri}", place), "split")


def test_a_users_mistake_is_left_for_the_watching_process(config: str, place: str, failure: Path) -> None:
    wrong = config.replace('"captions"', '"caption_column": "text", "captions"')
    with pytest.raises(UserError):
        run_component("ingest", "pairs", wrong, "", place)
    said = json.loads(failure.read_text())
    assert (said["stage"], said["user_error"]) == ("pairs", True)
    assert said["message"]
    assert "\n" not in said["message"]


def test_a_defect_is_left_with_its_traceback(place: str, failure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(runtime, "run_stage", broken)
    with pytest.raises(ZeroDivisionError):
        run_component("model", "init", '{"architecture": "x"}', "", place)
    said = json.loads(failure.read_text())
    assert (said["user_error"], said["error"]) == (False, "ZeroDivisionError")
    assert "in broken" in said["traceback"]


def test_without_a_watching_process_nothing_is_written(place: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        run_component("model", "init", "{}", "", place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "place", "words"),
    [
        ("{}", "{}", "ModelSpec: .*nothing given"),
        ("not json", "{}", "ModelSpec"),
        ('{"architecture": "x"}', '{"roots": "x"}', "Place.roots"),
        ('{"architecture": "x", "depth": 3}', "{}", "ModelSpec.depth"),
    ],
)
def test_strings_of_another_version_are_one_line(config: str, place: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        run_component("model", "init", config, "", place)
    assert "\n" not in str(caught.value)


def test_parents_are_lines() -> None:
    text = "init=/a b/c\n\nphases.x.teachers.t.features=s3://b/k=v\n"
    assert parse_parents(text) == {"init": "/a b/c", "phases.x.teachers.t.features": "s3://b/k=v"}


@pytest.mark.parametrize("text", ["init", "=/a", "init="])
def test_a_torn_line_of_parents_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="role=uri"):
        parse_parents(text)


def test_a_parent_of_another_kind_is_refused(config: str, place: str) -> None:
    uri = run_component("ingest", "pairs", config, "", place)
    curate = json.dumps({"kind": "curate", "pairs": "pairs", "split": "split"})
    with pytest.raises(UserError, match="is a shard_set, where a split is needed"):
        run_component("curate", "curate", curate, f"pairs={uri}\nsplit={uri}", place)


def test_an_unwritable_root_is_one_line(config: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, ShardError)) as caught:
        run_component("ingest", "pairs", config, "", Place(root=str(tmp_path / "file" / "runs")).model_dump_json())
    assert "\n" not in str(caught.value)


def test_ray_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ray.json"

    def start() -> None:
        time.sleep(0.3)
        (tmp_path / "new").write_text('{"RAY_ADDRESS": "127.0.0.1:1"}')
        (tmp_path / "new").replace(path)

    thread = threading.Thread(target=start)
    thread.start()
    assert wait_for_ray(path) == {"RAY_ADDRESS": "127.0.0.1:1"}
    thread.join()


def test_a_ray_that_failed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ray.json"
    path.write_text('{"error": "OSError: no ports"}')
    with pytest.raises(BackendError, match="no ports"):
        wait_for_ray(path)
    monkeypatch.setattr(runtime, "_RAY_SECONDS", 0.0)
    with pytest.raises(BackendError, match="not up"):
        wait_for_ray(tmp_path / "other.json")
