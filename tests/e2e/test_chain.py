"""The whole chain as a user runs it: killed in the middle, continued, reused, changed at its end, read by open_clip."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]
COMMAND = [str(Path(sys.executable).with_name("clipworks")), "run", "tiny"]
INSIDE = re.compile(r"^[a-z0-9_-]+-[0-9a-f]{12}$")


def artifacts(root: Path) -> dict[str, str]:
    """Stage name -> directory of every artifact a person sees in the root."""
    return {path.name.rpartition("-")[0]: path.name for path in root.iterdir() if INSIDE.match(path.name)}


def run(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, "--root", str(root), *more], capture_output=True, text=True, timeout=1800, cwd=root.parent
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def survivors(root: Path) -> list[str]:
    """Command lines of processes that still work for this root."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(root).encode() in path.read_bytes() or str(root).encode() in path.with_name("cmdline").read_bytes():
                found.append(path.with_name("cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A run that was killed while it pretrained, then completed by the same command."""
    root = tmp_path_factory.mktemp("chain") / "runs"
    root.mkdir()
    victim = subprocess.Popen(
        [*COMMAND, "--root", str(root)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root.parent
    )
    deadline = time.monotonic() + 600
    while not any('"metrics"' in path.read_text() for path in root.glob(".events/pretrain-*.jsonl")):
        assert victim.poll() is None, victim.stdout.read()
        assert time.monotonic() < deadline
        assert all((root / name / "record.json").exists() for name in artifacts(root).values())
        time.sleep(0.2)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert "pretrain" not in artifacts(root)
    deadline = time.monotonic() + 30
    while survivors(root) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = survivors(root)
    before = artifacts(root)
    return root, left, before, run(root)


def test_the_children_end_with_the_killed_parent(chain):
    assert chain[1] == []


def test_the_next_run_completes_and_keeps_what_was_complete(chain):
    root, _, before, done = chain
    after = artifacts(root)
    assert before.items() <= after.items()
    assert {"pairs", "curate", "rewrite", "pretrain", "refine", "moe", "distil", "evaluate_distilled", "report"} <= set(
        after
    )
    assert all((root / name / "record.json").exists() for name in after.values())
    assert str(root / after["report"] / "report.html") in done.stdout


def test_running_again_reuses_everything(chain):
    root = chain[0]
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/record.json")}
    done = run(root)
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/record.json")} == before
    assert "reused" in done.stdout
    assert "made" not in done.stdout


def test_a_changed_last_stage_runs_alone(chain):
    root = chain[0]
    before = set(root.glob("*/record.json"))
    run(root, "--set", "stages.report.title=Another title")
    new = set(root.glob("*/record.json")) - before
    assert [path.parent.name.rpartition("-")[0] for path in new] == ["report"]
    assert "Another title" in (next(iter(new)).parent / "report.html").read_text()


def test_the_report_is_one_page_that_asks_nobody_else(chain):
    page = (chain[0] / artifacts(chain[0])["report"] / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    for label in ("untrained", "pretrained", "refined", "moe", "distilled"):
        assert label in page


def test_lineage_and_curves_are_on_record(chain):
    root, names = chain[0], artifacts(chain[0])
    record = json.loads((root / names["moe"] / "record.json").read_text())
    refine = json.loads((root / names["refine"] / "record.json").read_text())
    assert record["parents"]["init"] == refine["fingerprint"]
    assert record["metrics"]["checks"]["router/equal experts equal the dense model"] < 1e-5
    lines = [json.loads(line) for line in (root / names["moe"] / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["phase"] for line in lines)) == ["expert_1", "expert_2", "router"]
    assert str(root) not in json.dumps(record)


@pytest.mark.parametrize(
    ("stage", "features"),
    [("pretrain", "features_pretrained"), ("refine", "features_refined"), ("distil", "features_distilled")],
)
def test_open_clip_loads_the_checkpoint_and_gives_our_features(chain, stage, features):
    import numpy as np
    import open_clip
    import torch
    from PIL import Image

    from data.artifacts import open_artifact
    from data.features import FeatureSet
    from data.shards import ShardSet

    root, names = chain[0], artifacts(chain[0])
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{root / names[stage]}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{root / names[stage]}")
    ours = FeatureSet(open_artifact(str(root / names[features])))
    shard_set = ShardSet(open_artifact(str(root / names["pairs"])))
    places = {row["uid"]: row for row in shard_set.index().to_pylist()}
    pictures = []
    for uid in ours.uids[:8]:
        row = places[uid]
        picture = Image.open(io.BytesIO(shard_set.read_image(row["shard"], row["offset"], row["bytes"]))).convert(
            "RGBA"
        )
        pictures.append(
            preprocess(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
        )
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack(pictures), normalize=True).numpy()
        texts = model.encode_text(tokenizer(ours.texts[:8]), normalize=True).numpy()
    assert np.abs(images - ours.images[:8]).max() < 1e-5
    assert np.abs(texts - ours.text_features[:8]).max() < 1e-5


def test_search_finds_pictures_and_draws_a_sheet(chain, tmp_path):
    root, names = chain[0], artifacts(chain[0])
    command = [COMMAND[0], "search", str(root / names["distil"]), "red apple"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("**/*.png"))) + done.stdout.count(".png") >= 1


def test_every_run_is_in_wandbs_offline_folder(chain):
    assert list(chain[0].glob("wandb/**/*.wandb"))
