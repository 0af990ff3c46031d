"""What a recipe may validate on: a held-out split that is there, and that judges nothing where it chooses weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.yaml_text import to_yaml

VALIDATION = {"split": "split", "name": "val", "every_samples": 16}


def recipe(small: dict[str, Any], validation: dict[str, Any] | None, result: str = "last") -> dict[str, Any]:
    """The small recipe with a split to validate on."""
    made = copy.deepcopy(small)
    made["stages"]["split"]["holdouts"]["val"] = {"by": "fraction", "fraction": 0.2}
    made["stages"]["pretrain"] |= {"validation": validation}
    made["stages"]["pretrain"]["phases"]["warm"]["result"] = result
    return made


@pytest.mark.parametrize(
    ("changes", "result", "words"),
    [
        (None, "best", ["phases.warm.result: 'best'", "add stages.pretrain.validation"]),
        ({"name": "train"}, "last", ["validation.name: 'train'", "held-out split"]),
        ({"name": "vla"}, "last", ["validation.name: 'vla'", "did you mean 'val'"]),
        ({"name": "unseen"}, "best", ["validation.name: 'unseen'", "stages.report.headline"]),
        ({"split": "curate"}, "last", ["validation.split: 'curate'", "where a split is needed"]),
        ({"pairs": 1}, "last", ["validation.pairs: 1"]),
    ],
)
def test_a_wrong_validation_is_one_line(
    changes: dict[str, Any] | None, result: str, words: list[str], small: dict[str, Any], tmp_path: Path,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    file = tmp_path / "broken.yaml"
    file.write_text(to_yaml(recipe(small, None if changes is None else {**VALIDATION, **changes}, result)))
    line = refused("recipe", "show", file)
    for word in words:
        assert word in line


def test_a_split_that_is_trained_on_is_refused(
    small: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    broken = recipe(small, VALIDATION)
    broken["stages"]["match"]["splits"] = broken["stages"]["curate"]["splits"] = ["train", "val"]
    file = tmp_path / "broken.yaml"
    file.write_text(to_yaml(broken))
    assert "'curate' trains on this split" in refused("recipe", "show", file)


@pytest.mark.parametrize(("name", "result"), [("val", "best"), ("val", "last"), ("unseen", "last")])
def test_what_judges_nothing_may_choose_and_what_judges_may_be_watched(
    name: str, result: str, small: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "fine.yaml"
    file.write_text(to_yaml(recipe(small, {**VALIDATION, "name": name}, result)))
    with pytest.raises(AssertionError):  # `refused` finds nothing to refuse
        refused("recipe", "show", file)
