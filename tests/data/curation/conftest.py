"""Gives curation tests their small pools (world.py lies beside them; tests are no package)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def world() -> ModuleType:
    path = Path(__file__).with_name("world.py")
    spec = importlib.util.spec_from_file_location("clipworks_tests_curation_world", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
