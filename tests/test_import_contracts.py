"""Who may import whom, and what a recipe's error or `--help` may not wait for."""

import importlib.util
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["pipelines", "components", "evaluation", "training", "data"]
HEAVY = {"torch", "ray", "kfp", "open_clip", "torchvision", "wandb"}

_IMPORT_EACH = """
import importlib, sys
heavy = set(sys.argv[1].split(","))
for name in sys.argv[2:]:
    importlib.import_module(name)
    found = sorted(heavy & sys.modules.keys())
    if found:
        sys.exit(f"{name} imports {', '.join(found)}")
"""


def light_modules() -> list[str]:
    """All modules of data and pipelines, and every `specs` module."""
    names = set(LAYERS)
    for package in LAYERS:
        found = pkgutil.walk_packages([str(ROOT / package)], f"{package}.", onerror=lambda _: None)
        names |= {module.name for module in found if package in ("data", "pipelines") or ".specs" in module.name}
    return sorted(names)


def imported_heavily(names: list[str], heavy: set[str]) -> str:
    command = [sys.executable, "-c", _IMPORT_EACH, ",".join(sorted(heavy)), *names]
    answer = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert answer.returncode in (0, 1), answer.stderr
    assert answer.returncode == 0 or "imports" in answer.stderr, answer.stderr
    return answer.stderr if answer.returncode else ""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_data_pipelines_and_specs_import_without_torch_ray_and_kfp() -> None:
    names = light_modules()
    assert {"data.stage", "data.specs", "training.specs", "evaluation.specs"} <= set(names)
    assert imported_heavily(names, HEAVY) == ""


def test_a_heavy_import_would_be_noticed() -> None:
    assert imported_heavily(["data.errors", "data.spec"], {"pydantic"}).strip() == "data.spec imports pydantic"


def test_imports_point_downwards() -> None:
    answer = lint(ROOT)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("module", "line", "kept"),
    [
        ("data/odd.py", "from training import specs", False),
        ("training/odd.py", "def build():\n    from evaluation import specs\n", False),
        ("pipelines/odd.py", "from data import specs", True),
    ],
)
def test_an_import_upwards_would_be_noticed(tmp_path: Path, module: str, line: str, kept: bool) -> None:
    for name in LAYERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "specs.py").touch()
    (tmp_path / module).write_text(line)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    answer = lint(tmp_path)
    assert (answer.returncode == 0) is kept, answer.stdout


def test_the_contract_names_every_package_from_top_to_bottom() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = settings["contracts"]
    assert contract["layers"] == LAYERS
    assert settings["root_packages"] == sorted(LAYERS)
    assert all(importlib.util.find_spec(name) for name in LAYERS)
