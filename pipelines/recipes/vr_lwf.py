"""VR-LwF: learn from new pairs while pictures keep what the old model said of them in random texts (arXiv 2207.09248).

No old data is needed: the replayed vocabulary is a thousand texts of ten random tokens, drawn once. For another session
run it again with the last result as `init`; the teacher is always the checkpoint that training starts from.
The paper: CLIP on crops with class prompts, in one session or several. Its own numbers were not found; what we follow
is ZSCL's implementation: temperature 2, weight 1, 1,000 steps, lr 1e-5, label smoothing 0.2, and each text over the
pictures as well (`texts_too`).
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run vr_lwf
Any checkpoint with CLIP's tokenizer, any pairs: clipworks run vr_lwf --set init=ViT-B-32:openai --set pairs=FOLDER
"""

from pipelines.recipe import Recipe
from pipelines.recipes._method import method_recipe
from training.specs import (
    AdamW,
    CosineSchedule,
    FrozenModel,
    InfoNCE,
    Phase,
    RandomTokens,
    ReplayedVocabulary,
    Term,
    TrainSpec,
    View,
    Vocabulary,
)

PAIRS, BATCH = 3_200, 128
WEIGHT = 1.0
VOCABULARY = RandomTokens(texts=1000, tokens=10)
CONTRAST = Term(loss=InfoNCE(multi_positive=True))


def update(
    terms: dict[str, Term], teachers: dict[str, FrozenModel], init: str, selection: str, seed: int = 0,
    pairs: int = PAIRS,
) -> TrainSpec:  # fmt: skip
    """One session on the pairs of a selection: contrast, and what `terms` keep of the teachers."""
    phase = Phase(
        view=View(augment=None), objectives={"contrast": CONTRAST, **terms}, teachers=teachers,
        optimizer=AdamW(lr=1e-3, weight_decay=0.2), schedule=CosineSchedule(warmup_samples=pairs // 10),
        samples_seen=pairs, global_batch_size=BATCH,
    )  # fmt: skip
    return TrainSpec(init=init, pairs="pairs", selection=selection, phases={"update": phase}, seed=seed)


def replayed(
    init: str, selection: str = "select", seed: int = 0, pairs: int = PAIRS, vocabulary: Vocabulary = VOCABULARY
) -> TrainSpec:
    """A session that keeps the pictures' distribution over the vocabulary."""
    terms = {"replay": Term(weight=WEIGHT, loss=ReplayedVocabulary(teacher="old"))}
    return update(terms, {"old": FrozenModel(checkpoint=init, vocabulary=vocabulary)}, init, selection, seed, pairs)


def recipe() -> Recipe:
    """An update of any checkpoint on any pairs."""
    return method_recipe(
        name="vr_lwf", title="VR-LwF: an update with replayed texts",
        purpose="Teach a checkpoint new pairs without the pairs it was made of.",
        expect="Retrieval on the new pairs above the start; `reproduce` measures what a stream of tasks forgets.",
        trained={"vr_lwf": replayed("init")},
    )  # fmt: skip
