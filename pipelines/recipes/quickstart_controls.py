"""The quickstart with its second control: the same budget on captions that belong to other pictures.

Everything the quickstart made is reused. Hardware: 2 CPU cores, 8 GB of memory.
Command: clipworks run quickstart_controls
"""

from pipelines.recipe import Recipe
from pipelines.recipes import quickstart


def recipe() -> Recipe:
    """Quickstart, shuffled-caption control, and one report over both."""
    title = "A CLIP of emoji, with its controls"
    made = {
        **quickstart.stages(),
        "pretrain_shuffled": quickstart.pretrain(quickstart.Size(), caption_noise=1.0),
        **quickstart.measured(quickstart.Size(), "pretrain_shuffled", "shuffled"),
        "report": quickstart.report(title, shuffled="pretrain_shuffled"),
    }
    return Recipe(
        name="quickstart_controls",
        title=title,
        purpose="Show that the quickstart's result comes from the pairing of pictures and captions.",
        hardware="2 CPU cores, 8 GB of memory",
        minutes=8,
        expect="The model trained on shuffled captions stays at chance on both held-out axes.",
        stages=made,
    )
