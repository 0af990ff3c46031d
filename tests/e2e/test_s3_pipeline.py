"""The whole small pipeline with everything in a bucket, whose server is killed while a stage writes: nothing is lost,
nothing is torn, all is reused, and the keys are nowhere.
"""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from data import storage
from data.artifacts import RECORD_NAME, artifacts_below
from pipelines.yaml_text import parse_yaml, to_yaml

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]
CLIPWORKS = str(Path(sys.executable).with_name("clipworks"))
BUCKET, ROOT = "s3://pairs", "s3://pairs/runs"
TOWERS = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Done(NamedTuple):
    """Two runs of the same recipe, and what they left on this machine."""

    first: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    cache: Path
    kills: int


def small_recipe() -> str:
    """The recipe of the pipelines' tests, with towers that can be trained and its pool in the bucket."""
    path = Path(__file__).parent.parent / "pipelines" / "conftest.py"
    spec = importlib.util.spec_from_file_location("pipelines_conftest", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    value = parse_yaml(module.RECIPE, "small")
    pool = value["stages"]["pairs"]["pool"]
    pool["images"], pool["captions"] = f"{BUCKET}/pool/images", f"{BUCKET}/pool/captions.csv"
    value["stages"]["init"]["architecture"] = TOWERS
    value["stages"]["report"]["headline"][-1] = "image_to_text_R@10"
    return to_yaml(value)


def put_pool() -> None:
    """Twelve pictures and their captions."""
    rows = ["image,caption,group"]
    for number in range(12):
        content = io.BytesIO()
        Image.new("RGB", (16, 16), (number * 20, 0, 255 - number * 20)).save(content, "PNG")
        storage.write_bytes(f"{BUCKET}/pool/images/{number}.png", content.getvalue())
        colour = "red" if number % 2 else "blue"
        rows.append(f"{number}.png,a {colour} thing {number},{colour}")
    storage.write_bytes(f"{BUCKET}/pool/captions.csv", ("\n".join(rows) + "\n").encode())


@pytest.fixture(scope="module")
def done(seaweed_of_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """The first run, through a SIGKILL of the server while `pretrain` writes; then the same command again."""
    folder = tmp_path_factory.mktemp("s3-pipeline")
    put_pool()
    storage.write_bytes(f"{BUCKET}/files/small.yaml", small_recipe().encode())
    storage.write_bytes(f"{BUCKET}/files/place.yaml", f"root: {ROOT}\ntrain_workers: 1\ncpus_per_worker: 1\n".encode())
    command = [CLIPWORKS, "run", f"{BUCKET}/files/small.yaml", "--place", f"{BUCKET}/files/place.yaml"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    run = subprocess.Popen(
        [*command, "--name", "first"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env=environment,
    )  # fmt: skip
    kills = 0
    try:
        while run.poll() is None:
            if not kills and wrote("pretrain"):
                seaweed_of_module.kill()
                time.sleep(1.0)
                seaweed_of_module.start()
                seaweed_of_module.wait_until_ready()
                kills += 1
            time.sleep(0.2)
    finally:
        run.kill()
    said, _ = run.communicate()
    first = subprocess.CompletedProcess(run.args, run.returncode, said)
    assert first.returncode == 0, said[-5000:] + log_of(folder)
    again = subprocess.run(
        [*command, "--name", "again"], capture_output=True, text=True, timeout=600, cwd=folder, env=environment
    )
    yield Done(first, again, folder / "cache", kills)


def wrote(stage: str) -> bool:
    """Whether restart state or a first file of this stage is in the bucket."""
    names = [*storage.list_folders(f"{ROOT}/.partial"), *storage.list_folders(ROOT)]
    return any(name.startswith(f"{stage}-") for name in names)


def log_of(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-5000:] for path in folder.rglob("kfp.log"))


def test_the_run_outlives_a_server_that_is_killed_while_it_writes(done: Done) -> None:
    assert done.kills == 1
    assert done.first.stdout is not None
    assert "9 of 9 stages to run" in done.first.stdout
    assert f"report: {ROOT}/report-" in done.first.stdout


def test_running_again_reuses_everything(done: Done) -> None:
    assert done.again.returncode == 0, done.again.stdout + done.again.stderr
    assert "0 of 9 stages to run" in done.again.stdout
    assert " made " not in done.again.stdout


def test_nothing_is_torn(done: Done) -> None:
    made = list(artifacts_below(ROOT))
    assert len(made) == 9
    for artifact in made:
        names = {name for name, _ in storage.list_files(artifact.uri, recursive=True)} - {RECORD_NAME}
        assert names == artifact.record.checksums.keys()
        for name, sha256 in artifact.record.checksums.items():
            assert hashlib.sha256(storage.read_bytes(artifact.at(name))).hexdigest() == sha256, artifact.at(name)


def test_nothing_is_left_over(done: Done) -> None:
    assert storage.list_files(f"{ROOT}/.partial", recursive=True) == []
    fs, path = storage.filesystem(ROOT)
    from data.s3 import begun_uploads

    assert list(begun_uploads(fs, path)) == []


def test_the_commands_read_what_is_in_the_bucket(done: Done, tmp_path: Path) -> None:
    named = {storage.name_of(artifact.uri).rpartition("-")[0]: artifact.uri for artifact in artifacts_below(ROOT)}
    said = {
        words[0]: subprocess.run(
            [CLIPWORKS, *words], capture_output=True, text=True, timeout=600, cwd=tmp_path,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        )
        for words in (
            ["verify", named["pairs"]],
            ["why", uid_of(named["pairs"]), "--root", ROOT],
            ["examples", f"{ROOT}/evaluate", "small/unseen/retrieval/image_to_text", "--right"],
            ["search", f"{ROOT}/pretrain", "red", "-o", f"{BUCKET}/out/found.png"],
            ["compile", f"{BUCKET}/files/small.yaml", "--root", ROOT, "-o", f"{BUCKET}/out/pipeline.yaml"],
            ["recipe", "show", f"{BUCKET}/files/small.yaml"],
        )
    }  # fmt: skip
    for word, answer in said.items():
        assert answer.returncode == 0, (word, answer.stdout, answer.stderr[-3000:])
    assert "12 pairs" in said["verify"].stdout
    assert storage.read_bytes(f"{BUCKET}/out/found.png").startswith(b"\x89PNG")
    assert b"pipelineInfo" in storage.read_bytes(f"{BUCKET}/out/pipeline.yaml")
    assert ROOT not in said["recipe"].stdout


def uid_of(pairs: str) -> str:
    from data.artifacts import open_artifact
    from data.shards import ShardSet

    return str(ShardSet(open_artifact(pairs)).index()["uid"][0])


def test_the_keys_are_in_no_file_and_in_no_object(done: Done, seaweed_of_module: Any) -> None:
    assert done.first.stdout is not None
    texts = {"output": done.first.stdout.encode(), "output again": (done.again.stdout + done.again.stderr).encode()}
    texts |= {str(path): path.read_bytes() for path in done.cache.rglob("*") if path.is_file()}
    texts |= {name: storage.read_bytes(f"{BUCKET}/{name}") for name, _ in storage.list_files(BUCKET, recursive=True)}
    assert any(name.endswith(".wandb") for name in texts)
    assert any(name.endswith("run.json") for name in texts)
    assert any(name.endswith("report.html") for name in texts)
    assert any(name.endswith(("kfp.log", "job.json")) for name in texts)
    for secret in (seaweed_of_module.key, seaweed_of_module.secret):
        found = [name for name, content in texts.items() if secret.encode() in content]
        assert found == []


def test_the_record_of_a_run_is_in_the_bucket(done: Done) -> None:
    record = json.loads(storage.read_bytes(f"{ROOT}/.runs/first/run.json"))
    assert record["state"] == "finished"
    assert all(stage["artifact"] for stage in record["stages"].values())
