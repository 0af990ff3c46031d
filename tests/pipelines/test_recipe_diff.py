"""What differs between two recipes: by hand, and for a real recipe that went through a run's record."""

from typing import Any

import pytest

from data.place import Place
from pipelines.overrides import override
from pipelines.recipe import parse_recipe
from pipelines.recipe_diff import ABSENT, Difference, recipe_diff
from pipelines.runs import RunRecord, read_run, write_run


@pytest.mark.parametrize(
    ("old", "new", "differences"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, [("a.c", 2, 3)]),
        ({"a": 1}, {"b": 2}, [("a", 1, ABSENT), ("b", ABSENT, 2)]),
        ({"a": {"b": {"c": 1}}}, {"a": {}}, [("a.b", {"c": 1}, ABSENT)]),  # a block is one difference
        ({"a": None}, {}, [("a", None, ABSENT)]),
        ({"a": [1, 2]}, {"a": [1, 3]}, [("a.1", 2, 3)]),
        ({"a": [1]}, {"a": [1, 2]}, [("a", [1], [1, 2])]),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),  # a record gives lists back
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": True}, {"a": 1}, [("a", True, 1)]),
        (
            {"p": {"x": {"k": 1}, "y": {"k": 2}}},
            {"p": {"y": {"k": 2}, "x": {"k": 1}}},
            [("p (order)", ["x", "y"], ["y", "x"])],
        ),
        ({"w": {"x": 1, "y": 2}}, {"w": {"y": 2, "x": 1}}, []),  # of plain values the order does not count
        ({"stages": {"x": {"k": 1}, "y": {}}}, {"stages": {"y": {}, "x": {"k": 1}}}, []),
    ],
)
def test_by_hand(old: Any, new: Any, differences: list[Any]) -> None:
    assert recipe_diff(old, new) == [Difference(*row) for row in differences]


def test_a_recipe_keeps_its_order_through_a_runs_record(small: dict[str, Any], tmp_path: Any) -> None:
    recipe = parse_recipe(small)
    record = RunRecord(
        name="one", state="finished", started=0.0, command=(), recipe=recipe.to_dict(), place=Place().model_dump(),
        stages={}, versions={},
    )  # fmt: skip
    write_run(str(tmp_path), record)
    read = read_run(str(tmp_path), "one").recipe
    assert recipe_diff(read, recipe.to_dict()) == []
    assert list(read["stages"]["pretrain"]["phases"]) == ["warm", "refine"]
    changed = override(recipe, ["stages.curate.seed=1"]).to_dict()
    assert recipe_diff(read, changed) == [Difference("stages.curate.seed", 0, 1)]
