"""Every component: a thin face with strings only, documented beside its code."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import components
from components.runtime import SPECS

FOLDER = Path(components.__file__).parent


def test_one_folder_a_kind() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/component.py")} == set(SPECS)


@pytest.mark.parametrize("kind", SPECS)
def test_a_component_is_thin(kind: str) -> None:
    component = getattr(import_module(f"components.{kind}.component"), kind)
    assert list(inspect.signature(component.python_func).parameters) == ["name", "config", "parents", "place", "run"]
    assert set(inspect.get_annotations(component.python_func).values()) == {str}
    source = inspect.getsource(component.python_func)
    body = source[source.rindex('"""') + 3 :].split()
    assert " ".join(body) == (
        "from components.runtime import run_component "
        f'return run_component("{kind}", name, config, parents, place, run)'
    )


@pytest.mark.parametrize("kind", SPECS)
def test_a_readme_says_parents_fields_and_output(kind: str) -> None:
    text = (FOLDER / kind / "README.md").read_text()
    assert text.startswith(f"# {kind}\n")
    assert f"`{SPECS[kind].MAKES}`" in text
    named = set(re.findall(r"`(\w+)`", text))
    shown = {name for name in SPECS[kind].model_fields if name in named or f"`{name}." in text}
    hidden = set(SPECS[kind].model_fields) - shown
    assert not hidden - {"kind"}, f"{kind}/README.md does not name {sorted(hidden)}"


@pytest.mark.parametrize("kind", SPECS)
def test_the_example_in_a_readme_is_valid(kind: str) -> None:
    text = (FOLDER / kind / "README.md").read_text()
    config = re.search(r'config="""(.*?)"""', text, re.DOTALL)
    parents = re.search(r'parents="""(.*?)"""', text, re.DOTALL)
    assert config
    assert parents
    spec = SPECS[kind].model_validate_json(config[1])
    assert [line.partition("=")[0] for line in parents[1].splitlines()] == list(spec.roles())
