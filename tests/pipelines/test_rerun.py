"""`clipworks runs rerun`: bit for bit in another root, reuse in the same one, and what it refuses with which name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import RecipeError
from data.place import Place
from data.stage import run_stage
from pipelines import runs
from pipelines.cli import main
from pipelines.planning.plan import make_plan
from pipelines.recipe import read_recipe
from pipelines.review import rerun
from pipelines.runs import RunRecord, StageOfRun, read_run, write_run
from pipelines.yaml_text import to_yaml


@pytest.fixture(autouse=True)
def clean_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package is: a checkout with changed files cannot be repeated exactly."""
    monkeypatch.setattr(runs, "_commit", dict)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "first")


@pytest.fixture
def original(data_file: Path, root: str) -> RunRecord:
    """A run of the data stages, made in this process, and its record."""
    recipe, place = read_recipe(data_file), Place(root=root, wandb_mode="disabled")
    made: dict[str, str] = {}
    for name in recipe.order():
        spec = recipe.stages[name]
        parents = {role: made[stage] for role, (stage, _) in spec.roles().items()}
        made[name] = run_stage(name, spec, parents, place).uri
    stages = {
        plan.name: StageOfRun(fingerprint=plan.fingerprint, artifact=plan.artifact_name, reused=False)
        for plan in make_plan(recipe, place)
    }
    record = RunRecord(
        name="monday", state="finished", started=1.0, ended=2.0, command=("clipworks", "run", "data.yaml"),
        recipe=recipe.to_dict(), place=place.model_dump(mode="json"), stages=stages, versions=runs.versions(),
    )  # fmt: skip
    write_run(root, record)
    return record


@pytest.mark.e2e
def test_bit_for_bit_in_another_root(
    original: RunRecord, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["runs", "rerun", "monday", "--root", root, "--into", str(again)]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 stages to run" in out
    assert "repeated exactly: 4 artifacts, bit for bit" in out
    repeated = read_run(str(again), "monday-again")
    assert (repeated.state, repeated.recipe) == ("finished", original.recipe)

    record = again / str(original.stages["curate"].artifact) / "record.json"
    value = json.loads(record.read_text())
    value["checksums"][next(iter(value["checksums"]))] = "0" * 64
    record.write_text(json.dumps(value))
    assert main(["runs", "rerun", "monday", "--root", root, "--into", str(again)]) == 1
    out = capsys.readouterr().out
    assert "curate                   differs: same fingerprint, other bytes in" in out
    assert "not repeated exactly: 1 of 4" in out


def test_in_the_same_root_everything_is_reused(
    original: RunRecord, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    del original
    assert main(["runs", "rerun", "monday", "--root", root]) == 0
    out = capsys.readouterr().out
    assert "0 of 4 stages to run" in out
    assert "nothing was computed again; --into NEW does that" in out


def test_a_changed_source_is_named(original: RunRecord, root: str, pictures: Path, refused: Callable[..., str]) -> None:
    del original
    captions = pictures / "captions.csv"
    captions.write_text(captions.read_text().replace("red", "green"))
    problems = rerun.prepare(root, "monday", None, None).problems
    assert problems == [f"stages.pairs: its source has changed: captions ({captions}); bring it back"]
    line = refused("runs", "rerun", "monday", "--root", root, is_silent=False)
    assert "cannot be repeated exactly: one thing differs" in line
    captions.unlink()
    assert any(
        "stages.pairs: " in one and "captions" in one for one in rerun.prepare(root, "monday", None, None).problems
    )


def test_other_versions_commits_images_and_code_are_named(
    original: RunRecord, root: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    code = tmp_path / "code-0123456789ab.zip"
    code.write_bytes(b"other bytes than the name says")
    versions = {**original.versions, "torch": "1.0", "commit": "abc+changed"}
    place = {**original.place, "code": str(code)}
    write_run(root, original.model_copy(
        update={"versions": versions, "image": "clipworks:old", "code": str(code), "place": place}
    ))  # fmt: skip
    problems = rerun.prepare(root, "monday", None, None).problems
    text = "\n".join(problems)
    assert f"torch: was 1.0, is {original.versions['torch']}" in text
    assert "commit: was abc+changed, is not there" in text
    assert "image: was clipworks:old" in text
    assert "holds other bytes than its name says" in text
    assert len(problems) == 4
    assert "4 things differ" in refused("runs", "rerun", "monday", "--root", root, is_silent=False)
    code.unlink()
    assert f"code: {code}: is gone" in rerun.prepare(root, "monday", None, None).problems


def test_a_newer_revision_is_named(original: RunRecord, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.specs import SplitSpec

    del original
    monkeypatch.setattr(SplitSpec, "REVISION", SplitSpec.REVISION + 1)
    problems = rerun.prepare(root, "monday", None, None).problems
    assert len(problems) == 1, "what follows from it is not named too"
    assert problems[0].startswith("stages.split: clipworks makes it otherwise now (revision")


def test_a_dry_run_says_that_it_can(original: RunRecord, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    del original
    assert main(["runs", "rerun", "monday", "--root", root, "--dry-run"]) == 0
    assert capsys.readouterr().out == "run monday can be repeated exactly\n"


def test_a_run_of_a_cluster_says_how(original: RunRecord, root: str, tmp_path: Path) -> None:
    submission = runs.Submission(cluster={"name": "lab"}, run_id="1")
    write_run(root, original.model_copy(update={"submission": submission}))
    with pytest.raises(RecipeError, match="ran on a cluster"):
        rerun.prepare(root, "monday", None, None)
    place = tmp_path / "place.yaml"
    place.write_text(to_yaml({"root": "elsewhere"}))
    assert rerun.prepare(root, "monday", None, Place()).place.root == root


def test_artifacts_that_are_gone_are_no_proof(original: RunRecord, root: str, tmp_path: Path) -> None:
    del original
    made = rerun.prepare(root, "monday", str(tmp_path / "empty"), None)
    outcomes = rerun.compare(made, root)
    assert {one.verdict for one in outcomes} == {rerun.GONE}
    assert not rerun.is_exact(outcomes)


def test_a_recipe_of_another_version_is_one_line(original: RunRecord, root: str, refused: Callable[..., str]) -> None:
    recipe: dict[str, Any] = {**original.recipe, "from_the_future": 1}
    write_run(root, original.model_copy(update={"recipe": recipe}))
    assert "run monday: from_the_future" in refused("runs", "rerun", "monday", "--root", root)
