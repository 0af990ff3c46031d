"""Gives training tests their tiny world (world.py lies beside them; tests are no package)."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch


def _load(name):
    spec = importlib.util.spec_from_file_location(f"clipworks_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world():
    return _load("world")


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(1)
