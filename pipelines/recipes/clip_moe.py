"""CLIP-MoE: one CLIP becomes a mixture of its own fine-tunings, each taught to tell apart what the last one could not.

Diversified multiplet upcycling (arXiv 2409.19291): FFNs are fine-tuned on batches from one cluster of what the model so
far takes for alike; base and fine-tuned FFNs become the experts of one model, of which only the routers train. The
paper, by its code: 4 experts of which 2 are active, 9 cells a stage, label smoothing 0.1, lr 1e-5 and one epoch for
each expert, then lr 1e-6, one epoch and dropout 0.1 for the routers, on stretched text positions. Here: 3 experts and
4 cells a stage, for most of a third stage's 64 cells would hold less than a batch of 6,800 pairs.
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run clip_moe
Any checkpoint and pairs: clipworks run clip_moe --set init=ViT-B-32:openai --set pairs=FOLDER
Stretched first: --set 'stages.clip_moe.phases.base.surgeries=[{surgery: stretch_positions}]'
"""

from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import (
    AdamW,
    ClusterSampler,
    CosineSchedule,
    InfoNCE,
    Phase,
    RouterBalance,
    Sampler,
    Term,
    TrainSpec,
    UniformSampler,
    Upcycle,
    View,
)

CONTRAST = Term(loss=InfoNCE(multi_positive=True, label_smoothing=0.1))
EXPERT_PAIRS, ROUTER_PAIRS, BATCH = 3_840, 3_840, 128


def fine_tuned(
    sampler: Sampler, trainable: tuple[str, ...] = ("*.mlp.*",), pairs: int = EXPERT_PAIRS, lr: float = 2e-3
) -> Phase:
    """The start trained on: an expert's FFNs by default, at the rate that it was pretrained with."""
    return Phase(
        start="base", trainable=trainable, view=View(sampler=sampler, augment=None), objectives={"contrast": CONTRAST},
        optimizer=AdamW(lr=lr, weight_decay=0.2), schedule=CosineSchedule(warmup_samples=pairs // 10),
        samples_seen=pairs, global_batch_size=BATCH,
    )  # fmt: skip


def routed(upcycle: Upcycle, start: str = "base") -> Phase:
    """Routers alone, with the balance loss."""
    return Phase(
        start=start, surgeries=(upcycle,), trainable=("*.router.weight",), view=View(augment=None),
        objectives={"contrast": CONTRAST, "balance": Term(weight=0.01, loss=RouterBalance())},
        optimizer=AdamW(lr=1e-3, weight_decay=0.01), schedule=CosineSchedule(warmup_samples=ROUTER_PAIRS // 10),
        samples_seen=ROUTER_PAIRS, global_batch_size=BATCH,
    )  # fmt: skip


def untrained(start: str = "init", *surgeries: Upcycle) -> Phase:
    """The start as it is, or after surgeries."""
    return Phase(
        start=start, surgeries=surgeries, objectives={"contrast": CONTRAST}, optimizer=AdamW(lr=1e-3), samples_seen=0,
        global_batch_size=BATCH,
    )  # fmt: skip


def mixture(init: str = "init", seed: int = 0) -> TrainSpec:
    """Two experts from single-cluster batches, each by the clusters of all models before it; then the routers."""
    seen = ("base", "expert_1", "expert_2")
    phases = {"base": untrained()}
    for number in (1, 2):
        phases[seen[number]] = fine_tuned(ClusterSampler(phases=seen[:number], clusters=2))
    phases["router"] = routed(Upcycle(experts=seen, top_k=2))
    return TrainSpec(init=init, pairs="pairs", selection="select", phases=phases, seed=seed)


def continued(init: str = "init", seed: int = 0) -> TrainSpec:
    """What it is compared with: all weights of the start trained on, for as many pairs as the mixture's stages."""
    pairs = 2 * EXPERT_PAIRS + ROUTER_PAIRS
    phases = {"base": untrained(), "continued": fine_tuned(UniformSampler(), ("*",), pairs, lr=5e-4)}
    return TrainSpec(init=init, pairs="pairs", selection="select", phases=phases, seed=seed)


def recipe() -> Recipe:
    """From any checkpoint of open_clip's own transformer towers to a mixture of experts."""
    return method_recipe(
        name="clip_moe", title="CLIP-MoE: a mixture of one model's own fine-tunings",
        purpose="More capacity at twice the FFNs' compute, from a checkpoint and the pairs at hand.",
        expect="Retrieval above the start; whether above plain fine-tuning, the method's card says.",
        tasks={name: scenes.TASKS[name] for name in ("main", "attribute")}, trained={"clip_moe": mixture()},
    )  # fmt: skip
