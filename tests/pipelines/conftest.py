"""A small recipe with every kind of stage but rewrite, pairs for its data stages, and the command in this process."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.yaml_text import parse_yaml, to_yaml

RECIPE = """
name: small
title: Small recipe
purpose: Stands for every recipe in these tests.
hardware: 2 CPU cores
minutes: 3
expect: It ends.
stages:
  pairs:
    kind: ingest
    pool: {source: folder, images: IMAGES, captions: CAPTIONS}
  split: {kind: split, pairs: pairs, holdouts: {unseen: {by: fraction, fraction: 0.2}}}
  match:
    kind: match
    pairs: pairs
    split: split
    metadata: [{source: pool_ngrams, min_count: 2}]
  curate:
    kind: curate
    pairs: pairs
    split: split
    balance: {matches: match, t: 5}
  init: {kind: model, architecture: {embed_dim: 8, note: 'it''s "python3" {c} {{$.x}}'}}
  pretrain:
    kind: train
    init: init
    pairs: pairs
    selection: curate
    phases:
      warm:
        objectives: {contrast: {loss: {objective: info_nce}}}
        optimizer: {lr: 1e-3}
        samples_seen: 64
        global_batch_size: 16
      refine:
        start: warm
        objectives: {distil: {loss: {objective: feature_cosine, teacher: first}}}
        teachers: {first: {teacher: frozen_model, checkpoint: init}}
        optimizer: {lr: 1e-5}
        samples_seen: 32
        global_batch_size: 16
  embed:
    kind: embed
    checkpoint: pretrain
    pairs: pairs
    split: split
    splits: [unseen]
    prompts: [{field: group, templates: ["a {c}"]}]
    queries: [red, "no"]
  evaluate:
    kind: evaluate
    sets:
      small:
        features: embed
        pairs: pairs
        split: split
        splits: [unseen]
        tasks:
          retrieval: {task: retrieval}
          groups: {task: zero_shot, prompts: {field: group, templates: ["a {c}"]}}
  report:
    kind: report
    title: Small
    sets: {small: {pairs: pairs}}
    split: split
    selection: curate
    evaluations: {pretrained: evaluate}
    gallery: {features: embed, split: unseen, queries: [red]}
    headline: [small, unseen, retrieval, "R@10"]
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with twelve pictures and their captions."""
    folder = tmp_path / "pool"
    (folder / "images").mkdir(parents=True)
    rows = ["image,caption"]
    for number in range(12):
        Image.new("RGB", (16, 16), (number * 20, 0, 255 - number * 20)).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,a {'red' if number % 2 else 'blue'} thing {number}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def small(pictures: Path) -> dict[str, Any]:
    """The small recipe as plain values."""
    text = RECIPE.replace("IMAGES", str(pictures / "images")).replace("CAPTIONS", str(pictures / "captions.csv"))
    value: dict[str, Any] = parse_yaml(text, "small")
    return value


@pytest.fixture
def small_file(small: dict[str, Any], tmp_path: Path) -> Path:
    """The small recipe as a file."""
    path = tmp_path / "small.yaml"
    path.write_text(to_yaml(small))
    return path


@pytest.fixture
def data_file(small: dict[str, Any], tmp_path: Path) -> Path:
    """The stages of the small recipe that need neither torch nor Ray, as a file."""
    path = tmp_path / "data.yaml"
    stages = {name: small["stages"][name] for name in ("pairs", "split", "match", "curate")}
    path.write_text(to_yaml({**small, "name": "data-only", "stages": stages}))
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line; it must answer with one line on stderr and exit code 2. Returns that line."""

    def run(*arguments: object, is_silent: bool = True) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.out == "" or not is_silent, captured.out
        assert captured.err.startswith("error: "), captured.err
        assert len(captured.err.splitlines()) == 1, captured.err
        return captured.err

    return run


def _beside(name: str) -> Any:
    """A module of helpers that lies in this folder; tests are no package."""
    spec = importlib.util.spec_from_file_location(f"clipworks_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kfp() -> Iterator[Any]:
    """A Kubeflow Pipelines API on the loopback that executes what it gets (fake_kfp.py)."""
    server = _beside("fake_kfp").FakeKfp()
    yield server
    server.close()


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Kubernetes API on the loopback (fake_pods.py), where KUBECONFIG leads."""
    server = _beside("fake_pods").FakePods()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    yield server
    server.close()


@pytest.fixture
def fake_wandb() -> Iterator[Any]:
    """A W&B server on the loopback that keeps what it is told (fake_wandb.py)."""
    with _beside("fake_wandb").serving() as server:
        yield server


@pytest.fixture
def made_runs() -> Any:
    """Makes runs as they are found below a root, without running anything (made_runs.py)."""
    return _beside("made_runs")
