"""A stream of tasks for methods that update a model without its old data: what is learnt, and what is forgotten.

The start knows all things by their short captions. The stream goes on with scenes whose main object is one of the first
third, then of the second; the last third is never updated, as the held-out classes of VR-LwF's protocol. A session's
captions name the main object alone, in the manner of class prompts. Accuracy is zero-shot: a group's scenes, each among
*all* things; among a group's own the things of other groups could not be mixed up with it, which is what is forgotten.
"""

from collections.abc import Callable
from statistics import fmean

from data.curation.specs import CurateSpec, MetaValue
from data.pools.scene_words import NOUNS
from data.stage import StageSpec
from evaluation.specs import Task
from pipelines.methods import _bench as bench
from pipelines.methods.method import Arm, Found, Measure, stage_of
from pipelines.recipes import _scenes as scenes
from pipelines.recipes.vr_lwf import PAIRS, update
from training.specs import TrainSpec, View

_THINGS = tuple(NOUNS)[: scenes.NOUN_COUNT]
_THIRD = -(-len(_THINGS) // 3)
GROUPS = {"first": _THINGS[:_THIRD], "second": _THINGS[_THIRD : 2 * _THIRD], "unseen": _THINGS[2 * _THIRD :]}
LEARNT = ("first", "second")  # in this order
TASKS: dict[str, Task] = {name: scenes.TASKS[name] for name in ("main", "retrieval")}
Session = Callable[[str, str, int], TrainSpec]  # (checkpoint before, selection, seed) -> the session's training
ARMS = {
    "start": bench.START_ARM,
    "fine_tune": Arm("each task fine-tuned in turn, nothing kept", "parent"),
    "joint": Arm("both tasks at once, as many pairs", "control", "the upper end: old data is at hand"),
}


def between(arm: str) -> str:
    """The arm's checkpoints after the first task alone."""
    return f"{arm}_after_first"


def world() -> dict[str, StageSpec]:
    """The bench's scenes, and a selection for each task and for both."""
    both = tuple(name for group in LEARNT for name in GROUPS[group])
    tasks = {**{group: GROUPS[group] for group in LEARNT}, "both": both}
    return {
        **bench.world(),
        **{
            f"task_{name}": CurateSpec(pairs="pairs", split="split", filters=(MetaValue(field="main", values=things),))
            for name, things in tasks.items()
        },
    }


def stream(arm: str, seeds: int, session: Session) -> dict[str, StageSpec]:
    """An arm's chain: each task begins with the checkpoint before it; measured after each."""

    def make(before: str, selection: str) -> Callable[[int], TrainSpec]:
        return lambda seed: named(session(stage_of(before, seed), selection, seed))

    first = bench.trained(between(arm), seeds, make("start", "task_first"), TASKS)
    return {**first, **bench.trained(arm, seeds, make(between(arm), "task_second"), TASKS)}


def named(session: TrainSpec) -> TrainSpec:
    """The session with captions that name the main object alone."""
    view = View(caption_weights={"region1": 1.0}, augment=None)
    phases = {name: phase.model_copy(update={"view": view}) for name, phase in session.phases.items()}
    return session.model_copy(update={"phases": phases})


def base(seeds: int) -> dict[str, StageSpec]:
    """Start, plain fine-tuning in turn, and joint training: what every continual method is compared with."""

    def together(seed: int) -> TrainSpec:
        return named(update({}, {}, stage_of("start", seed), "task_both", seed, len(LEARNT) * PAIRS))

    plain = stream("fine_tune", seeds, lambda init, selection, n: update({}, {}, init, selection, n))
    joint = bench.trained("joint", seeds, together, TASKS)
    return {**world(), **bench.starts(seeds, TASKS), **plain, **joint}


def accuracy(found: Found, arm: str, group: str, split: str = "test") -> float:
    """Zero-shot top-1, among all things, of a group's scenes, by the arm's checkpoint of this seed."""
    from evaluation.rows import file_name, rows_of  # here, for it takes a while and a list of methods needs none of it

    rows = rows_of(found.artifact(stage_of(arm, found.seed, "evaluate")), file_name("scenes", split, "main"))
    correct = rows.numbers["correct"].tolist()
    return fmean(hit for hit, label in zip(correct, rows.labels, strict=True) if label in GROUPS[group])


def backward_transfer(found: Found) -> float:
    """Mean over earlier tasks of accuracy after the last minus accuracy just after learning it; below 0: forgotten."""
    return accuracy(found, found.arm, "first") - accuracy(found, between(found.arm), "first")


def final_accuracy(found: Found) -> float:
    """Mean accuracy over the stream's tasks, after the last."""
    return sum(accuracy(found, found.arm, group) for group in LEARNT) / len(LEARNT)


def retained(found: Found) -> float:
    """Accuracy on the classes that no task updates, minus the start's."""
    return accuracy(found, found.arm, "unseen") - accuracy(found, "start", "unseen")


def measures(streams: tuple[str, ...]) -> dict[str, Measure]:
    """What is told of every arm; `streams` learn the tasks in turn."""
    updated = (*streams, "joint")
    return {
        "backward_transfer": Measure("backward transfer", "higher", compute=backward_transfer, arms=streams),
        "final": Measure("accuracy on the updated classes, at the end", "higher", compute=final_accuracy),
        "retained": Measure("change on classes never updated", "higher", compute=retained, arms=updated),
        "retrieval": Measure("short captions: text -> image R@1", "higher", "test", "retrieval", "text_to_image_R@1"),
        "main": Measure("zero-shot, all main objects", "higher", "test", "main", "top1"),
    }
