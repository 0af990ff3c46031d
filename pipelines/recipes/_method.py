"""What the recipes of published methods share: pairs, a checkpoint to start from, the method, before and after.

They run as they are on composed scenes, and on anything else by two values: `--set init=CHECKPOINT` puts any checkpoint
in the place of the small pretrained one, `--set pairs=FOLDER` any shard set in the place of the scenes.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from data.specs import IngestSpec
from data.stage import StageSpec
from evaluation.specs import Geometry, ReportSpec, Retrieval, Shown, Task
from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from training.specs import TrainSpec

# what any pairs can be asked; a method's own questions come with its recipe
TASKS: Mapping[str, Task] = {"retrieval": Retrieval(), "geometry": Geometry()}
HEADLINE = ("scenes", "test", "retrieval", "text_to_image_R@1")


def method_recipe(
    *, name: str, title: str, purpose: str, expect: str, trained: Mapping[str, TrainSpec],
    start: Literal["pretrained", "random"] = "pretrained", tasks: Mapping[str, Task] | None = None,
    pairs: IngestSpec | None = None, more: Mapping[str, StageSpec] | None = None, context: int = 32,
) -> Recipe:  # fmt: skip
    """A recipe around a method's training stages.

    Args:
        name: of the recipe.
        title: of it and of its report.
        purpose: what it is for.
        expect: what it should show.
        trained: the method's stages in order; each reads `pairs`, `select`, and `init` or an earlier one of them.
        start: what `init` is: pretrained on short captions, or random towers.
        tasks: asked besides those of any pairs.
        pairs: the scenes; None: the bench's.
        more: stages that the method reads besides these.
        context: text tokens of the small towers.
    """
    asked = {**TASKS, **(tasks or {})}
    begin: dict[str, StageSpec] = {"init": scenes.model(context=context)}
    if start == "pretrained":
        begin = {"towers": scenes.model(context=context), "init": scenes.base()}
    before: dict[str, StageSpec] = {
        "pairs": pairs or scenes.pairs(),
        "split": scenes.split(),
        "select": scenes.select(),
    }
    measured: dict[str, StageSpec] = {}
    for stage in ("init", *trained):
        measured[f"features_{stage}"] = scenes.embed(stage, asked)
        measured[f"evaluate_{stage}"] = scenes.evaluate(f"features_{stage}", asked)
    stages = {**before, **begin, **(more or {}), **trained, **measured, "report": _report(title, trained, start)}
    return Recipe(
        name=name, title=title, purpose=purpose, hardware="2 CPU cores, 8 GB of memory",
        expect=expect, stages=stages,
    )  # fmt: skip


def _report(title: str, trained: Mapping[str, TrainSpec], start: str) -> ReportSpec:
    chain = ["init", *trained]
    return ReportSpec(
        title=title,
        sets={"scenes": Shown(pairs="pairs")},
        split="split",
        selection="select",
        evaluations={stage: f"evaluate_{stage}" for stage in chain},
        controls=("init",) if start == "random" else (),
        compare={after: before for before, after in pairwise(chain)},
        checkpoints={stage: stage for stage in trained},
        headline=HEADLINE,
    )
