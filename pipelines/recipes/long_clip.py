"""Long-CLIP: a CLIP that reads long captions, and still reads short ones as it did.

Text positions are stretched, the first 20 left as they are and frozen; then long captions train beside a short branch:
pictures cut to their first principal components against short captions (arXiv 2403.15378). The paper, by its code:
77 positions become 248 (factor 4), 32 components, lr 1e-6, batch 2,048, label smoothing 0.1 and both terms alike,
logit_scale starting again at 100 and not clamped, 1.2 million pairs for 2 to 6 epochs. Here: 32 positions become 152
(factor 11), for the small towers read no more and long captions have up to 150 tokens; 8 components of 64.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run long_clip
Any checkpoint and pairs: clipworks run long_clip --set init=ViT-B-32:openai --set pairs=FOLDER --set \
'stages.long_clip.phases.long.surgeries=[{surgery: stretch_positions, keep: 20, factor: 4}]'
The caption source is `long`; short captions are its first sentences.
"""

from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import (
    AdamW,
    CosineSchedule,
    FrozenRows,
    InfoNCE,
    Phase,
    PrincipalInfoNCE,
    StretchPositions,
    Term,
    TextSlot,
    TrainSpec,
    View,
)

# open_clip calls them `positional_embedding` or `text.positional_embedding`; the pictures' are `visual.` ...
TEXT_POSITIONS = "[!v]*ositional_embedding"
KEEP, FACTOR = 20, 11
PAIRS, BATCH = 5_120, 128
LR, COMPONENTS = 1e-3, 8
SMOOTHING = 0.1
LONG = Term(loss=InfoNCE(label_smoothing=SMOOTHING))
SHORT = Term(loss=PrincipalInfoNCE(components=COMPONENTS, label_smoothing=SMOOTHING))


def tuned(
    init: str = "init", seed: int = 0, stretch: StretchPositions | None = None, short: Term | None = SHORT,
    pairs: int = PAIRS,
) -> TrainSpec:  # fmt: skip
    """Training on long captions; `stretch` None: at the length the start has, what is too long is cut off."""
    frozen = (FrozenRows(parameter=TEXT_POSITIONS, rows=stretch.keep),) if stretch and stretch.keep else ()
    phase = Phase(
        surgeries=(stretch,) if stretch else (),
        gradients=frozen,
        view=View(caption_weights={"long": 1.0}, texts={"short": first_sentence()} if short else {}, augment=None),
        objectives={"long": LONG, **({"short": short} if short else {})},
        optimizer=AdamW(lr=LR, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=CosineSchedule(warmup_samples=pairs // 10),
        samples_seen=pairs,
        global_batch_size=BATCH,
    )
    return TrainSpec(init=init, pairs="pairs", selection="select", phases={"long": phase}, seed=seed)


def first_sentence() -> TextSlot:
    """The short caption: what the long one says before its first full stop."""
    return TextSlot(caption_weights={"long": 1.0}, first_sentence=True)


def recipe() -> Recipe:
    """From any causal CLIP to one that reads long captions."""
    return method_recipe(
        name="long_clip",
        title="Long-CLIP: long captions, and short ones as before",
        purpose="Let an existing checkpoint read captions beyond its context without losing what it knows of others.",
        expect="Retrieval by long captions far above the start; short captions about where they were.",
        tasks={name: scenes.TASKS[name] for name in ("retrieval_long", "main")},
        trained={"long_clip": tuned(stretch=StretchPositions(keep=KEEP, factor=FACTOR))},
    )
