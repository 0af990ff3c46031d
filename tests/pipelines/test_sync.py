"""`clipworks sync` with W&B's own client against a server on the loopback: lineage, arrival, every way to fail."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.artifacts import Artifact, Output, Record
from data.errors import BackendError, RecipeError
from data.events import Events
from pipelines.cli import main
from pipelines.review.sync import Offline, Server, check_server, levels, offline_runs
from training.tracking import Tracked, Where, follow

API_KEY = "w" * 40


def commit(root: Path, stage: str, kind: str, *parents: Artifact) -> Artifact:
    """A finished artifact of one small file."""
    out = Output(str(root), stage, (stage[:1] * 64))
    with out.lock():
        Path(out.at("x")).write_text(stage)
        record = Record(kind=kind, stage=kind, revision=1, fingerprint=stage[:1] * 64, config={})
        return out.commit(record.model_copy(update={"parents": {one.record.kind: one.fingerprint for one in parents}}))


def track(root: Path, run: str, made: list[Artifact], reused: list[Artifact]) -> None:
    """What the tracker of a run writes offline, when these stages were made and those reused."""
    since = time.time()
    stages = []
    for artifact in [*reused, *made]:
        name = Path(artifact.uri).name.rpartition("-")[0]
        uri = str(root / ".events" / f"{run}-{name}.jsonl")
        there = artifact.uri if artifact in reused else ""
        stages.append(Tracked(name, "ingest", {}, uri, artifact.fingerprint, artifact.record.parents, there))
        if artifact in made:
            events = Events(uri, name)
            events.emit("started")
            events.emit("finished", artifact=artifact.uri, seconds=1.0)
    stop = threading.Event()
    stop.set()
    follow(stages, Where("offline", "clipworks", run, str(root / "wandb"), since), stop)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A root where one run made pairs and a split, and another reused both and trained; the child is listed first."""
    root = tmp_path / "runs"
    root.mkdir()
    pairs = commit(root, "pairs", "shard_set")
    split = commit(root, "cut", "split", pairs)
    track(root, "monday", [pairs, split], [])
    track(root, "tuesday", [commit(root, "trained", "checkpoint", pairs, split)], [pairs, split])
    for one in offline_runs(root / "wandb", "tuesday"):
        one.folder.rename(one.folder.with_name("offline-run-19990101_000000-" + one.folder.name.rpartition("-")[2]))
    return root


@pytest.fixture
def server(fake_wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A W&B server, with its address and key in the environment, and no netrc of the user's."""
    monkeypatch.setenv("WANDB_BASE_URL", fake_wandb.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    _forget()
    yield fake_wandb
    _forget()


def _forget() -> None:
    """Let W&B read its settings from the environment anew."""
    from wandb.sdk import wandb_setup

    wandb_setup._singleton = None  # it has no public way


def test_the_server_learns_who_made_what_and_who_used_it(
    chain: Path, server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sync", "--root", str(chain)]) == 0
    said = capsys.readouterr()
    assert server.made_by() == {"pairs": "pairs", "cut": "cut", "trained": "trained"}
    assert server.edges() == {("pairs", "cut"), ("pairs", "trained"), ("cut", "trained")}
    groups = {run["displayName"]: run["groupName"] for run in server.runs.values()}
    assert groups == {"pairs": "monday", "cut": "monday", "trained": "tuesday"}
    uploads = [name for name in server.files if name.startswith("/up/media") or name.endswith("/x")]
    assert uploads == [], "no byte of an artifact"
    metadata = [one["metadata"] for (name, _), one in server.artifacts.items() if name == "trained"]
    assert metadata[0]["uri"] == f"file://{chain}/trained-tttttttttttt"
    assert "3 synced, 0 not" in said.out
    assert API_KEY not in said.out + said.err

    assert main(["sync", "--root", str(chain)]) == 0
    assert "nothing to sync" in capsys.readouterr().out
    assert not (tmp_path / "wandb").exists(), "W&B's own logs stay below the root"
    for path in chain.rglob("*"):
        assert not path.is_file() or API_KEY.encode() not in path.read_bytes(), path


def test_reused_stages_without_a_wandb_run_get_one_each(tmp_path: Path, server: Any) -> None:
    pairs = commit(tmp_path, "pairs", "shard_set")
    split = commit(tmp_path, "cut", "split", pairs)
    track(tmp_path, "only", [commit(tmp_path, "trained", "checkpoint", split)], [pairs, split])
    assert main(["sync", "--root", str(tmp_path)]) == 0
    assert server.made_by() == {"pairs": "pairs", "cut": "cut", "trained": "trained"}
    assert server.edges() == {("pairs", "cut"), ("cut", "trained")}
    tags = {run["displayName"]: run["tags"] for run in server.runs.values()}
    assert tags["pairs"] == tags["cut"] == ["reused"]
    assert not tags["trained"]


def test_a_live_server_learns_the_same(tmp_path: Path, server: Any) -> None:
    """The tracker's own process, as a run starts it, with `wandb_mode: online`."""
    pairs = commit(tmp_path, "pairs", "shard_set")
    split = commit(tmp_path, "cut", "split", pairs)
    stages = []
    for name, artifact in (("pairs", pairs), ("cut", split)):
        uri = str(tmp_path / f"{name}.jsonl")
        Events(uri, name).emit("started")
        Events(uri, name).emit("finished", artifact=artifact.uri, seconds=1.0)
        stages.append(Tracked(name, "ingest", {}, uri, artifact.fingerprint, artifact.record.parents)._asdict())
    where = Where("online", "clipworks", "live", str(tmp_path / "wandb"), 0.0)._asdict()
    job = tmp_path / "tracking.json"
    job.write_text(json.dumps({"where": where, "stages": stages}))
    words = [sys.executable, "-P", "-m", "training.tracking", str(job)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert server.made_by() == {"pairs": "pairs", "cut": "cut"}
    assert server.edges() == {("pairs", "cut")}
    assert API_KEY not in done.stdout + done.stderr


def test_one_run_of_many(chain: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "monday", "--root", str(chain)]) == 0
    assert set(server.made_by()) == {"pairs", "cut"}
    with pytest.raises(RecipeError, match="did you mean 'monday'"):
        offline_runs(chain / "wandb", "mondy")
    assert "monday/pairs" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "text"), [(401, "refuses the API key (HTTP 401)"), (500, "answers HTTP 500")])
def test_a_server_that_refuses_is_one_line(
    chain: Path, server: Any, refused: Callable[..., str], status: int, text: str
) -> None:
    server.status = status
    line = refused("sync", "--root", chain)
    assert text in line
    assert API_KEY not in line
    assert not any(one.is_synced for one in offline_runs(chain / "wandb"))


def test_no_server_and_no_key_are_one_line(
    chain: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    _forget()
    line = refused("sync", "--root", chain)
    assert "does not answer" in line
    assert API_KEY not in line
    monkeypatch.delenv("WANDB_API_KEY")
    _forget()
    assert "no API key" in refused("sync", "--root", chain)
    _forget()


def test_a_login_page_is_no_wandb_server() -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>log in")

        def log_message(self, *_: object) -> None:
            return None

    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    with pytest.raises(BackendError, match="not a W&B server"):
        check_server(Server(f"http://127.0.0.1:{page.server_port}", API_KEY))
    page.shutdown()
    page.server_close()


def test_a_root_without_wandb_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "--root", str(tmp_path)]) == 0
    assert "nothing to sync" in capsys.readouterr().out


def test_makers_come_before_users_and_the_first_maker_before_the_second() -> None:
    def run(name: str, makes: str, *uses: str) -> Offline:
        return Offline(Path(name), "r", name, makes, uses)

    runs = [run("c", "C", "B"), run("a", "A"), run("b", "B", "A"), run("again", "A"), run("x", "", "not here")]
    at = {one.stage: number for number, level in enumerate(levels(runs)) for one in level}
    assert at["a"] < at["again"]
    assert at["a"] < at["b"] < at["c"]
    assert at["x"] == 0
    circle = [run("p", "P", "Q"), run("q", "Q", "P")]
    assert sum(len(level) for level in levels(circle)) == 2


def test_a_broken_note_is_a_run_without_one(tmp_path: Path) -> None:
    folder = tmp_path / "wandb" / "offline-run-20260101_000000-abc"
    folder.mkdir(parents=True)
    (folder / "clipworks.json").write_text(json.dumps(["foreign"]))
    assert [one.makes for one in offline_runs(tmp_path)] == [""]


def test_what_a_pod_tracks_has_the_whole_recipe_of_its_run(tmp_path: Path) -> None:
    from data import storage
    from data.place import Place
    from training.tracking import _shared

    place = Place(root=str(tmp_path))
    said: dict[str, Any] = {"recipe": {"name": "r"}, "versions": {"torch": "2"}, "image": None}
    storage.write_json(str(tmp_path / ".runs" / "monday" / "run.json"), said)
    shared = _shared(place, "monday")
    assert (shared["recipe"], shared["versions"]) == ({"name": "r"}, {"torch": "2"})
    assert shared["place"]["root"] == str(tmp_path)
    assert "recipe" not in _shared(place, "unknown")
