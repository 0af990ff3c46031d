"""The quickstart's whole chain in miniature: every stage runs, nothing is learnt well.

For tests and for trying a cluster.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run tiny
"""

from pipelines.recipe import Recipe
from pipelines.recipes import _emoji as emoji
from pipelines.recipes import quickstart

SIZE = quickstart.Size(
    concepts=150, t=20, rewritten_captions=6, pretrain=1_280, refine=256, expert=64, router=64, distil=256, batch=64,
    expert_batch=16, tasks=emoji.TASKS,
)  # fmt: skip


def recipe() -> Recipe:
    """Every stage of the quickstart, small."""
    title = "The whole chain in miniature"
    return Recipe(
        name="tiny",
        title=title,
        purpose="Run every stage once, in a few minutes.",
        hardware="2 CPU cores, 8 GB of memory",
        minutes=5,
        expect="Every stage completes; the numbers mean nothing at this size.",
        stages={**quickstart.stages(SIZE), "report": quickstart.report(title)},
    )
