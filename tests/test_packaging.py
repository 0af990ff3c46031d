"""The price of generic package names is paid here: nobody else owns them, and the wheel holds them and nothing else."""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGES = {"components", "data", "evaluation", "pipelines", "training"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = {entry["name"]: entry.get("version", "") for entry in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}


def package_files() -> set[str]:
    """Files of the packages that belong in a wheel."""
    found = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


# --------------------------------------------------------------------------------------------------------- the names


def test_no_other_distribution_owns_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    assert {name: owner for name in PACKAGES if (owner := set(owners.get(name, [])) - {"clipworks"})} == {}


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_our_names_import_our_folders(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin == str(ROOT / name / "__init__.py")
    assert spec.submodule_search_locations == [str(ROOT / name)]


def test_open_clip_is_new_enough_not_to_install_a_package_called_training() -> None:
    assert Version(importlib.metadata.version("open_clip_torch")) >= Version("2.26")
    (declared,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("open_clip_torch")]
    assert not SpecifierSet(declared.removeprefix("open_clip_torch")).contains("2.25")


def test_tests_are_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_gitignore_names_nothing_data() -> None:
    patterns = [line.strip() for line in (ROOT / ".gitignore").read_text().splitlines()]
    named = [line for line in patterns if line and not line.startswith("#") and re.search(r"(^|/)data(/|$)", line)]
    assert named == []


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_git_ignores_no_file_of_the_packages() -> None:
    files = "\n".join([*sorted(package_files()), "data/new.py", "training/runs/new.py"])
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input=files,
        text=True,
        capture_output=True,
        check=False,
    )
    assert ignored.stdout == ""


# --------------------------------------------------------------------------------------------------------- the wheel


def test_the_wheel_holds_the_five_packages_and_nothing_else(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
        entry_points = archive.read("clipworks-0.1.0.dist-info/entry_points.txt").decode()
    held = {name for name in names if not name.startswith("clipworks-0.1.0.dist-info/")}
    assert {name.split("/")[0] for name in held} == PACKAGES
    cards = {f"pipelines/methods/measured/{path.name}" for path in (ROOT / "docs/methods").iterdir()}
    assert held == package_files() | cards
    assert {f"{name}/py.typed" for name in PACKAGES} <= held
    assert any(name.startswith("clipworks-0.1.0.dist-info/licenses/") for name in names)
    assert "clipworks = pipelines.cli:main" in entry_points


def test_packages_hold_code_and_templates_only() -> None:
    known = {".py", ".typed", ".md", ".j2", ".json", ".txt", ".yaml", ".css"}
    assert {name for name in package_files() if Path(name).suffix not in known} == set()
    assert sum((ROOT / name).stat().st_size for name in package_files()) < 3_000_000


def test_every_package_is_typed_and_says_what_it_is() -> None:
    for name in PACKAGES:
        assert (ROOT / name / "py.typed").read_bytes() == b""
        assert len((ROOT / name / "__init__.py").read_text()) > 20


def test_the_licence_is_apache_2() -> None:
    known = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # of the text at apache.org
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == known
    assert PROJECT["project"]["license"] == "Apache-2.0"


# ------------------------------------------------------------------------------------------------- the installation


def test_the_lock_holds_every_dependency_and_this_version() -> None:
    groups = [PROJECT["project"]["dependencies"], PROJECT["dependency-groups"]["dev"]]
    groups += PROJECT["project"]["optional-dependencies"].values()
    names = {re.split(r"[\[<>=~! ]", line)[0].lower().replace("_", "-") for group in groups for line in group}
    assert names - LOCKED.keys() == set()
    assert LOCKED["clipworks"] == importlib.metadata.version("clipworks") == PROJECT["project"]["version"]


def test_what_compiles_for_minutes_is_not_installed() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("llama-cpp-python")


def test_the_console_script_answers_help() -> None:
    script = Path(sys.executable).with_name("clipworks")
    answer = subprocess.run([script, "--help"], capture_output=True, text=True, check=False, cwd="/")
    assert answer.returncode == 0, answer.stderr
    for command in ("run", "plan", "compile", "recipe", "ingest", "verify", "search"):
        assert re.search(rf"\b{command}\b", answer.stdout), command


def test_make_help_names_the_targets() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make (\S+)", told, re.MULTILINE) == ["help", "setup", "quickstart", "test", "check", "clean"]


def test_make_looks_for_the_python_that_the_project_needs() -> None:
    low, high = re.search(r"\(3, (\d+)\) <= sys\.version_info < \(3, (\d+)\)", (ROOT / "Makefile").read_text()).groups()  # type: ignore[union-attr]
    assert PROJECT["project"]["requires-python"] == f">=3.{low},<3.{high}"


def test_make_says_so_where_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit 0\nexit 1\n")
    old.chmod(0o755)
    for name in ("make", "sh"):
        (old.parent / name).symlink_to(str(shutil.which(name)))
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    environment = {"PATH": str(old.parent), "HOME": str(tmp_path)}
    answer = subprocess.run(
        ["make", "test"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "error: no Python >= 3.11, < 3.14 found (python3 is Python 3.9.2); install one or name it" in answer.stderr


def test_ci_runs_the_checks_and_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines.index("make check") < lines.index("make test")
