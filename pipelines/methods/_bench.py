"""The stages that experiments share: one world of scenes, one start a seed, and an arm's checkpoint with its measures.

Equal stages have equal fingerprints, so that all methods start from the very same checkpoints, which are made once.
"""

from collections.abc import Callable, Mapping

from data.specs import IngestSpec
from data.stage import StageSpec
from evaluation.specs import Task
from pipelines.methods.method import Arm, stage_of
from pipelines.recipes import _scenes as scenes
from training.specs import TrainSpec

START = "start"
START_ARM = Arm("the checkpoint that all start from", "start")
DATA = "8,000 composed scenes of real emoji pictures, 48 px, one or two objects; 10 % held out for judging"


def world(pairs: IngestSpec | None = None) -> dict[str, StageSpec]:
    """`pairs` (the bench's by default), `split` (test, val) and `select` (the rest)."""
    return {"pairs": pairs or scenes.pairs(), "split": scenes.split(), "select": scenes.select()}


def towers(seeds: int, context: int = 32) -> dict[str, StageSpec]:
    """Random towers `towers_s{n}`, a seed each: where methods that train from nothing start."""
    return {stage_of("towers", seed): scenes.model(seed, context) for seed in range(seeds)}


def starts(
    seeds: int, tasks: Mapping[str, Task] | None = None, context: int = 32, measure: bool = True
) -> dict[str, StageSpec]:
    """Random towers and arm `start`: a checkpoint `start_s{n}` a seed, pretrained on short captions; its measures."""
    made = towers(seeds, context)
    for seed in range(seeds):
        made[stage_of(START, seed)] = scenes.base(seed, stage_of("towers", seed))
        made |= measured(START, seed, tasks) if measure else {}
    return made


def trained(
    arm: str, seeds: int, make: Callable[[int], TrainSpec], tasks: Mapping[str, Task] | None = None
) -> dict[str, StageSpec]:
    """An arm's checkpoints, `make(seed)` each, and their measures."""
    made: dict[str, StageSpec] = {}
    for seed in range(seeds):
        made[stage_of(arm, seed)] = make(seed)
        made |= measured(arm, seed, tasks)
    return made


def measured(arm: str, seed: int, tasks: Mapping[str, Task] | None = None) -> dict[str, StageSpec]:
    """Features and evaluation of an arm's checkpoint of one seed, by all tasks of the bench or those given."""
    asked = scenes.TASKS if tasks is None else tasks
    features = stage_of(arm, seed, "features")
    return {
        features: scenes.embed(stage_of(arm, seed), asked),
        stage_of(arm, seed, "evaluate"): scenes.evaluate(features, asked),
    }
