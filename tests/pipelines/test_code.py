"""Code that a run brings along: packed from a checkout, checked, used in place of the image's, and told of."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from components.code import PACKAGES, fetch
from data import storage
from data.artifacts import CODE, open_artifact
from data.errors import RecipeError, StorageError
from pipelines.cluster.code import checkout, pack, upload_code

BOOT = """
import json, sys
from components.runtime import run_component
print("URI", run_component(**json.load(sys.stdin)))
"""
ON_RAY = """
import data.brought
from data.shardwise import each_shard
from data.stage import Outcome


def do(number):
    import inspect, os
    return {"file": inspect.getsourcefile(data.brought), "code": os.environ["CLIPWORKS_CODE"]}


def run(spec, work):
    said, = each_shard(work, "step", ["a"], do)
    assert "_ray_pkg" in said["file"], said
    return Outcome({"inside": len(said["code"])})
"""


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A git checkout of these packages, with one change, one new file, and what no archive should hold."""
    folder = tmp_path / "checkout"
    for name in PACKAGES:
        files = [path for path in (checkout() / name).rglob("*") if path.suffix in (".py", ".css", ".j2")]
        for path in files:
            target = folder / path.relative_to(checkout())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (folder / ".gitignore").write_text("*.secret\n__pycache__/\n")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    ingest = folder / "data" / "ingest.py"
    ingest.write_text(ingest.read_text() + "\nfrom data.brought import run  # noqa\n")
    (folder / "data" / "brought.py").write_text(
        "from data.stage import Outcome\n\n\ndef run(spec, work):\n    return Outcome({'brought': 1})\n"
    )
    (folder / "data" / "key.secret").write_text("a secret")
    (folder / "data" / "link.py").symlink_to("/etc/hostname")
    return folder


def names(content: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(content)).namelist())


def test_packing_takes_what_git_does_not_ignore_and_gives_equal_bytes(changed: Path) -> None:
    content = pack(changed)
    assert content == pack(changed)
    assert {"data/brought.py", "data/ingest.py", "evaluation/templates/report.css"} <= names(content)
    assert not {"data/key.secret", "data/link.py", ".gitignore"} & names(content)
    (changed / "data" / "brought.py").write_text("x = 1\n")
    assert content != pack(changed)


def test_what_is_no_checkout_or_too_large_is_refused(changed: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no components/ in it"):
        pack(tmp_path)
    (changed / "data" / "weights.bin").write_bytes(b"0" * 20_000_001)
    with pytest.raises(RecipeError, match=r"data/weights\.bin has 20,000,001"):
        pack(changed)


def archive(path: Path, *members: str) -> str:
    """A zip named by its digest."""
    import hashlib

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for member in members:
            made.writestr(member, b"0" * (30_000_000 if "bomb" in member else 1))
    uri = path / f"{hashlib.sha256(stream.getvalue()).hexdigest()}.zip"
    uri.write_bytes(stream.getvalue())
    return str(uri)


@pytest.mark.parametrize("member", ["data/../../evil.py", "/etc/evil", "other/x.py", "data/bomb.py"])
def test_a_hostile_archive_is_refused_whole(tmp_path: Path, member: str) -> None:
    uri = archive(tmp_path, "data/good.py", member)
    with pytest.raises(StorageError):
        fetch(uri, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_an_archive_is_what_its_name_says(tmp_path: Path) -> None:
    uri = archive(tmp_path, "data/good.py")
    assert len(fetch(uri, tmp_path / "unpacked")) == 64
    Path(uri).write_bytes(Path(uri).read_bytes() + b" ")
    with pytest.raises(StorageError, match="not what its name says"):
        fetch(uri, tmp_path / "again")


def component(pictures: Path, root: Path, code: str | None, **place: Any) -> subprocess.CompletedProcess[str]:
    """The ingest component in a process of its own, as a pod would run it."""
    pool = {"source": "folder", "images": str(pictures / "images"), "captions": str(pictures / "captions.csv")}
    task = {
        "kind": "ingest", "name": "pairs", "config": json.dumps({"kind": "ingest", "pool": pool}), "parents": "",
        "place": json.dumps({"root": str(root), "code": code, "wandb_mode": "disabled", **place}), "run": "mine",
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != CODE} | {
        "PYTHONPATH": str(Path(__file__).parents[2])
    }
    return subprocess.run(
        [sys.executable, "-P", "-c", BOOT], input=json.dumps(task), capture_output=True, text=True, env=environment,
        timeout=120,
    )  # fmt: skip


def test_a_component_runs_the_code_that_was_brought_and_its_record_says_so(
    changed: Path, pictures: Path, tmp_path: Path
) -> None:
    uri = upload_code(str(tmp_path / "runs"), changed)
    assert upload_code(str(tmp_path / "runs"), changed) == uri
    done = component(pictures, tmp_path / "runs", uri)
    assert done.returncode == 0, done.stderr
    made = open_artifact(done.stdout.split("URI ")[1].strip())
    assert made.record.counts == {"brought": 1}
    assert made.record.packages["clipworks"].endswith("+code." + storage.name_of(uri)[:12])

    installed = component(pictures, tmp_path / "other", None)
    made = open_artifact(installed.stdout.split("URI ")[1].strip())
    assert made.record.counts["pairs"] == 12
    assert "+code" not in made.record.packages["clipworks"]


def test_a_failure_inside_is_left_once_with_its_own_words(changed: Path, pictures: Path, tmp_path: Path) -> None:
    (changed / "data" / "brought.py").write_text("def run(spec, work):\n    raise ValueError('from the new code')\n")
    done = component(pictures, tmp_path / "runs", upload_code(str(tmp_path / "runs"), changed))
    assert done.returncode == 1
    left = json.loads((tmp_path / "runs" / ".runs" / "mine" / "failures" / "pairs.json").read_text())
    assert left["error"] == "ValueError"
    assert left["message"] == "from the new code"


def test_rays_workers_get_the_code_too(changed: Path, pictures: Path, tmp_path: Path) -> None:
    (changed / "data" / "brought.py").write_text(ON_RAY)
    uri = upload_code(str(tmp_path / "runs"), changed)
    done = component(pictures, tmp_path / "runs", uri, data_workers=1, cpus_per_worker=1)
    assert done.returncode == 0, done.stderr
    assert open_artifact(done.stdout.split("URI ")[1].strip()).record.counts == {"inside": 64}
