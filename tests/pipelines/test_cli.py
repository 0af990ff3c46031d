"""The other commands, and what the command line refuses before anything runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from pipelines.cli import main, make_parser
from pipelines.commands import recipes
from pipelines.yaml_text import to_yaml


def test_ingest_then_verify(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(pictures / "images"), "--captions", str(pictures / "captions.csv"), "--pairs-per-shard", "5"]
    assert main([*words, "--root", str(tmp_path / "runs"), "--name", "mine"]) == 0
    out = capsys.readouterr().out
    made = next((tmp_path / "runs").glob("mine-*"))
    assert str(made) in out
    assert "12 pairs" in out
    assert main(["verify", str(made)]) == 0
    assert "3 shards, 12 pairs" in capsys.readouterr().out

    assert main(["ingest", str(made / "shards"), "--root", str(tmp_path / "again")]) == 0  # its own tars, as a pool
    assert "12 pairs" in capsys.readouterr().out

    tar = next((made / "shards").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[600] ^= 0xFF
    tar.write_bytes(bytes(content))
    assert main(["verify", str(made)]) == 1
    assert tar.stem in capsys.readouterr().out


def test_ingest_of_a_pool_in_yaml(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = {"source": "folder", "images": str(pictures / "images"), "captions": str(pictures / "captions.csv")}
    (tmp_path / "pool.yaml").write_text(to_yaml(pool))
    assert main(["ingest", str(tmp_path / "pool.yaml"), "--root", str(tmp_path / "runs")]) == 0
    assert "12 pairs" in capsys.readouterr().out


def preflight(capsys: pytest.CaptureFixture[str], recipe: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and findings by section."""
    code = main(["preflight", str(recipe), "--json", *words])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["fits"] is (code == 0)
    return code, found["sections"]


SMALL_VIT = (
    "stages.init.architecture={embed_dim: 8, vision_cfg: {layers: 1, width: 64}, text_cfg: {width: 64, layers: 1}}"
)


def test_preflight_before_anything_has_run(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", SMALL_VIT, "--root", str(tmp_path / "runs")]
    code, found = preflight(capsys, small_file, *words)
    assert code == 0
    assert found.keys() == {"place", "pretrain"}
    assert "not known before ingest has run" in found["pretrain"][0]["said"]
    assert {"shards", "batch", "memory", "disk"} == {finding["what"] for finding in found["pretrain"]}
    assert main(["preflight", str(small_file), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "place"
    assert "pretrain" in lines
    assert not (tmp_path / "runs").exists()


def test_preflight_of_three_shards_for_four_ranks_with_two_workers_each(
    small_file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path / "runs")]
    ingest = [
        "ingest",
        str(pictures / "images"),
        "--captions",
        str(pictures / "captions.csv"),
        "--pairs-per-shard",
        "4",
    ]
    assert main([*ingest, *root]) == 0
    capsys.readouterr()
    (tmp_path / "place.yaml").write_text("train_workers: 4\nloader_workers: 2\ncpus_per_worker: 1\n")
    words = [
        "--set",
        SMALL_VIT,
        "--set",
        "stages.pairs.pairs_per_shard=4",
        "--place",
        str(tmp_path / "place.yaml"),
        *root,
    ]
    code, found = preflight(capsys, small_file, *words)
    assert code == 0
    said = {finding["what"]: finding["said"] for finding in found["pretrain"]}
    assert said["shards"].startswith("3 shards, 12 pairs: 4 ranks x 2 loader workers; 3 pairs a rank and epoch")
    assert "an epoch has 12 pairs, a global batch 16" in said["pairs"]

    (tmp_path / "place.yaml").write_text("train_workers: 3\n")
    code, found = preflight(capsys, small_file, *words)
    assert code == 2
    unfit = [finding for finding in found["pretrain"] if finding["level"] == "unfit"]
    assert [finding["fix"] for finding in unfit] == ["use 15, or other train_workers"] * 2


def test_preflight_of_what_cannot_be_says_so_with_exit_code_2(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = preflight(capsys, small_file, "--root", str(tmp_path))  # its towers lack a vision_cfg
    assert code == 2
    assert found["init"][0]["said"] == "architecture: 'vision_cfg' is missing; give an open_clip model config"
    code, found = preflight(capsys, small_file, "--root", str(small_file / "runs"))
    assert code == 2
    assert found.keys() == {"place"}
    assert found["place"][0]["what"] == "root"


WRONG = [
    (["preflight", "quickstrat"], ["'quickstrat': no such recipe"]),
    (["preflight", "RECIPE", "--place", "PLACE_TYPO"], ["train_wokers"]),
    (["run", "nothing.yaml"], ["nothing.yaml: no such file"]),
    (["run", "quickstrat"], ["'quickstrat': no such recipe", "did you mean 'quickstart'"]),
    (["run", "FOLDER/"], ["cannot read"]),
    (["plan", "PICTURE"], ["no such recipe"]),
    (["run", "RECIPE", "--place", "nothing.yaml"], ["nothing.yaml: cannot read"]),
    (["run", "RECIPE", "--place", "PLACE_TYPO"], ["train_wokers", "'train_workers'"]),
    (["run", "RECIPE", "--place", "PLACE_VALUE"], ["train_workers: 0"]),
    (["run", "RECIPE", "--place", "PLACE_LIST"], ["a place is a mapping"]),
    (["run", "RECIPE", "--root", "RECIPE/runs"], ["cannot write here", "--root"]),
    (["run", "RECIPE", "--root", "what://x/y"], ["what://x/y", "s3://bucket/path"]),
    (["run", "RECIPE", "--name", "../up"], ["--name '../up'"]),
    (["run", "RECIPE", "--set", "stages.pairs.pool.captions=gone.csv", "--root", "ROOT"], ["stages.pairs", "gone.csv"]),
    (["run", "RECIPE", "--set", "stages.pairs.pool.images=gone", "--root", "ROOT"], ["gone"]),
    (["ingest", "gone", "--root", "ROOT"], ["gone"]),
    (["ingest", "FOLDER", "--root", "ROOT"], ["no .tar file"]),
    (["ingest", "IMAGES", "--captions", "gone.csv", "--root", "ROOT"], ["gone.csv"]),
    (["ingest", "IMAGES", "--captions", "CAPTIONS", "--caption-column", "txt", "--root", "ROOT"], ["'txt'"]),
    (
        ["ingest", "IMAGES", "--captions", "CAPTIONS", "--pairs-per-shard", "0", "--root", "ROOT"],
        ["pairs_per_shard: 0"],
    ),
    (["ingest", "gone.yaml", "--root", "ROOT"], ["gone.yaml: cannot read"]),
    (["ingest", "PLACE_LIST", "--root", "ROOT"], ["pool"]),
    (["verify", "gone"], ["gone"]),
    (["verify", "FOLDER"], [""]),
    (["search", "gone", "red apple"], ["gone"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_a_wrong_command_is_one_line(
    arguments: list[str], words: list[str], data_file: Path, pictures: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    places = {
        "PLACE_TYPO": "train_wokers: 2",
        "PLACE_VALUE": "train_workers: 0",
        "PLACE_LIST": "[1]",
        "FOLDER": None,
        "RECIPE": str(data_file),
        "PICTURE": str(pictures / "images" / "0.png").replace("/", "%"),
        "IMAGES": str(pictures / "images"),
        "CAPTIONS": str(pictures / "captions.csv"),
        "ROOT": str(tmp_path / "runs"),
    }
    (tmp_path / "folder").mkdir()
    filled = []
    for word in arguments:
        first, *rest = word.split("/") if not word.startswith("what") and not word.startswith("..") else [word]
        value = places.get(first, first)
        if first.startswith("PLACE"):
            (tmp_path / f"{first}.yaml").write_text(str(value))
            value = str(tmp_path / f"{first}.yaml")
        filled.append("/".join([str(tmp_path / "folder") if first == "FOLDER" else str(value), *rest]))
    line = refused(*filled, is_silent="txt" not in arguments)  # a column is missed only after the stage has started
    for word in words:
        assert word in line
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("[a-z]*"))


def test_every_command_has_help_and_does_something() -> None:
    parser = make_parser()
    actions = next(action for action in parser._actions if action.dest == "command")
    assert isinstance(actions.choices, dict)
    for name, command in actions.choices.items():
        inner = [action for action in command._actions if action.dest == "action"]
        leaves = list(inner[0].choices.values()) if inner else [command]  # type: ignore[union-attr, call-overload]
        assert all(callable(leaf.get_default("do")) for leaf in leaves), name
    assert all(choice.help for choice in actions._choices_actions)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("error", "code"), [(UserError("x"), 2), (KeyboardInterrupt(), 130), (ZeroDivisionError(), 1)])
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise error

    monkeypatch.setattr(recipes, "recipe_list", broken)
    assert main(["recipe", "list"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)


def test_a_closed_pipe_is_no_error(small_file: Path) -> None:
    words = (
        f"{sys.executable} -c 'from pipelines.cli import main; import sys; sys.exit(main())' recipe show {small_file}"
    )
    script = f"set -o pipefail; {words} | head -c 10 >/dev/null"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ}, timeout=60)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
