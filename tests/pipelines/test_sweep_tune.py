"""Sweeps on Ray Tune: one whose driver is killed and goes on, and a population that really copies."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data.artifacts import find_fingerprint, open_artifact
from data.events import Events, read_events
from data.place import Place
from pipelines.recipe import read_recipe
from pipelines.runs import read_runs
from pipelines.sweeps.board import Board
from pipelines.sweeps.cutting import cut
from pipelines.sweeps.spec import parse_sweep
from pipelines.sweeps.study import Study, make_study
from pipelines.sweeps.tuning import Tuning, tune_study
from pipelines.yaml_text import parse_yaml, to_yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PLACE = {"loader_workers": 0, "cpus_per_worker": 1, "wandb_mode": "offline"}


def _world() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep_world", Path(__file__).with_name("sweep_world.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


world = _world()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = world.make_pool(tmp_path_factory.mktemp("pool"))
    return made


def studied(sweep: dict[str, Any]) -> Study:
    return make_study(parse_sweep(to_yaml(sweep), "sweep.yaml"))


def place_of(root: Path) -> Place:
    return Place(root=str(root), ranks="local", **PLACE)  # type: ignore[arg-type]


def shared_in(study: Study, root: Path) -> dict[str, str]:
    """Run what the trials share, here: faster than a run's processes."""
    made: dict[str, str] = world.run_here(study.shared(), place_of(root))
    return made


# --------------------------------------------------------------------------------------------------------------- ASHA


def started(file: Path, root: Path, address: str) -> subprocess.Popen[bytes]:
    place = file.with_name("place.yaml")
    place.write_text(to_yaml(PLACE))
    command = [sys.executable, "-P", "-c", "import sys; from pipelines.cli import main; sys.exit(main())"]
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    with file.with_suffix(".out").open("ab") as out:
        return subprocess.Popen(
            [*command, "sweep", str(file), "--root", str(root), "--place", str(place)], stdout=out,
            stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip


def wait_until(happened: Any, process: subprocess.Popen[bytes], out: Path) -> None:
    while not happened():
        assert process.poll() is None, out.read_text()
        time.sleep(0.1)


def processes_below(root: Path) -> list[str]:
    """Processes of the sweep: those whose command line names its root."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(root) in text:
            found.append(text)
    return found


def test_a_sweep_survives_the_death_of_its_driver_and_its_winner_is_a_recipe(
    session_ray: None, pool: Path, tmp_path: Path
) -> None:
    import ray

    root, file = tmp_path / "runs", tmp_path / "small.yaml"
    sweep = world.sweep(pool, trials=4, scheduler={"asha": {"grace_samples": 32, "reduction": 2}}, samples_seen=320)
    sweep["max_concurrent"] = 2
    file.write_text(to_yaml(sweep))
    study = studied(sweep)
    shared_in(study, root)
    events = root / ".sweeps" / "small" / "trials.jsonl"
    address = ray.get_runtime_context().gcs_address

    first = started(file, root, address)
    wait_until(lambda: events.exists() and '"ended"' in events.read_text(), first, file.with_suffix(".out"))
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_until_gone = time.monotonic() + 60
    while processes_below(root) and time.monotonic() < wait_until_gone:
        time.sleep(0.2)
    assert processes_below(root) == []
    ended = [event["trial"] for event in read_events(str(events)) if event["event"] == "ended"]
    assert 0 < len(ended) < 5

    second = started(file, root, address)
    assert second.wait(800) == 0, file.with_suffix(".out").read_text()
    assert_whole(study, root, tmp_path / "other")
    out = file.with_suffix(".out").read_text()
    assert "winner: trial" in out
    again = started(file, root, address)
    assert again.wait(300) == 0, "a sweep that is over says so again"


def assert_whole(study: Study, root: Path, other: Path) -> None:
    folder = root / ".sweeps" / "small"
    result = json.loads((folder / "sweep.json").read_text())
    states = {row["trial"]: row["state"] for row in result["trials"]}
    assert sorted(states) == [0, 1, 2, 3, 4]
    assert set(states.values()) <= {"finished", "stopped"}
    assert "finished" in states.values()

    made = [name for name in root.iterdir() if name.name.startswith("pretrain-")]
    assert len(made) == Counter(states.values())["finished"]
    for name in made:  # none was trained twice to its end
        said = [event["event"] for event in read_events(str(root / ".events" / f"{name.name}.jsonl"))]
        assert said.count("finished") == 1
    left = [path.name for path in (root / ".partial").iterdir() if not path.name.endswith(".lock")]
    assert left == []
    assert not (folder / "tune").exists()
    assert {record.group for record in read_runs(str(root))} == {"small"}
    assert len(read_runs(str(root))) == 5
    written = json.loads((folder / "trials.wandb.json").read_text())
    assert sorted(written) == [0, 1, 2, 3, 4]
    assert len(list((root / "wandb").glob("wandb/offline-run-*"))) == 5

    best = result["trials"][0]
    assert best["value"] == min(row["value"] for row in result["trials"] if row["state"] == "finished")
    winner, place = read_recipe(folder / "winner.yaml"), parse_yaml((folder / "winner.place.yaml").read_text(), "place")
    shutil.copytree(root, other, ignore=shutil.ignore_patterns("pretrain-*", ".*"))
    uris = world.run_here(cut(winner, ["pretrain"]), Place.model_validate({**place, "root": str(other)}))
    assert world.final_loss(uris["pretrain"]) == best["value"], "to the last digit"
    page = (folder / "sweep.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (folder / "parallel.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------------------------- PBT


def test_a_population_copies_checkpoints_changes_values_and_its_winner_is_a_chain(
    session_ray: None, pool: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    sweep = world.sweep(pool, trials=2, scheduler={"pbt": {"segment_samples": 32, "quantile": 0.5}})
    sweep["space"] = {world.LR: {"log_uniform": [1e-9, 1e-2]}}
    sweep["seed"] = 1
    study = studied(sweep)
    events = Events(str(root / "trials.jsonl"), "small")
    tuning = Tuning(study, "small", shared_in(study, root), place_of(root), str(root / "tune"))
    tune_study(tuning, events, is_own_ray=True)

    board = Board(study.settings, "min")
    for event in read_events(str(root / "trials.jsonl")):
        board.take(event)
    assert [trial.state for trial in board.trials] == ["finished"] * 3, [trial.message for trial in board.trials]
    base, *members = board.trials
    assert [entry["values"] for entry in base.lineage] == [study.settings[0]] * 3, "a baseline copies nobody"
    assert all(len(trial.lineage) == 3 for trial in members)
    firsts = {trial.lineage[0]["fingerprint"] for trial in members}
    assert len(firsts) == 1, "after the first segment the worse of the two went on from the better one's checkpoint"
    assert find_fingerprint(str(root), firsts.pop()) is not None
    changed = [trial for trial in members if trial.lineage[1]["values"] != trial.lineage[0]["values"]]
    assert len(changed) >= 1, "and with other values"

    best = board.best()
    assert best is not None
    from pipelines.sweeps.result import winner_yaml

    (tmp_path / "winner.yaml").write_text(winner_yaml(study, "small", best))
    winner = read_recipe(tmp_path / "winner.yaml")
    assert [name for name in winner.stages if name.startswith("pretrain")] == ["pretrain_1", "pretrain_2", "pretrain"]
    uris = world.run_here(cut(winner, ["pretrain"]), place_of(tmp_path / "other"))
    assert world.final_loss(uris["pretrain"]) == best.value, "to the last digit"
    assert open_artifact(uris["pretrain"]).fingerprint == best.lineage[-1]["fingerprint"]
