"""CLOOB: contrast that leaves the own pair out of the denominator, over features recalled from the batch's memory.

InfoLOOB does not fade as a pair is learnt; the Hopfield layer keeps what pairs of a batch share (arXiv 2110.11316). At
test nothing of both is left: plain features of the same towers. The paper pretrains; its code, on CC with a ResNet-50:
batch 512, 70 epochs, AdamW (0.9, 0.999) with eps 1e-8, lr 1e-3, weight decay 0.1, warm-up of 20,000 steps, cosine with
10 hard restarts (`schedule.cycles`), 1 / temperature fixed at 30, beta 8. Here: a small CLIP is trained on, one cosine.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run cloob
Any checkpoint and pairs: clipworks run cloob --set init=ViT-B-32:openai --set pairs=FOLDER
"""

from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import AdamW, CosineSchedule, InfoLOOB, Objective, Phase, Term, TrainSpec, View

PAIRS, BATCH, LR = 7_680, 128, 5e-4
CLOOB = InfoLOOB(hopfield_beta=8.0, scale=30.0)


def tuned(init: str = "init", seed: int = 0, loss: Objective = CLOOB) -> TrainSpec:
    """Training on short captions with this objective."""
    phase = Phase(
        view=View(caption_weights={"alt": 1.0}, augment=None),
        objectives={"contrast": Term(loss=loss)},
        # InfoLOOB's gradients are 30 times smaller than InfoNCE's: a larger eps would slow it down
        optimizer=AdamW(lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
        schedule=CosineSchedule(warmup_samples=PAIRS // 10, cycles=1),
        samples_seen=PAIRS,
        global_batch_size=BATCH,
    )
    return TrainSpec(init=init, pairs="pairs", selection="select", phases={"cloob": phase}, seed=seed)


def recipe() -> Recipe:
    """From a CLIP whose pairs are learnt to one that goes on learning."""
    return method_recipe(
        name="cloob",
        title="CLOOB: InfoLOOB over retrieved features",
        purpose="Train without the saturation of InfoNCE: a pair that is learnt still pulls.",
        expect="Retrieval and zero-shot above those of the start, from plain features.",
        tasks={name: scenes.TASKS[name] for name in ("main", "attribute")},
        trained={"cloob": tuned()},
    )
