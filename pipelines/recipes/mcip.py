r"""MCIP: an image tower for image retrieval whose space stays the text tower's (arXiv 2409.01936).

The text side is locked. The image side learns to tell labels apart by an angular margin, and at the same time to lie
near each picture's own captions; then the image side is locked and the text side is aligned again. The paper: OpenAI's
and LAION's ViT-L, SigLIP SO400M, on labels of ImageNet-21k's kind and landmarks with captions written by a model; its
learning rates, scale and margin are unverified. Scale 30 and margin 0.3 are ArcFace's usual ones.
Labels are metadata field `main`; captions are `alt` and, in slots, two more that are true of a scene. Of one's own
pairs name the field, the number of its values (a smaller one is refused), and which captions there are:
  clipworks run mcip --set init=ViT-B-32:openai --set pairs=FOLDER \
    --set stages.mcip.phases.image.view.label.field=species \
    --set 'stages.mcip.phases.image.surgeries=[{surgery: classifier, classes: 200}]' \
    --set 'stages.mcip.phases.image.view.texts={}' \
    --set 'stages.mcip.phases.image.objectives.captions.loss.texts=[]' \
    --set stages.evaluate_init.sets.scenes.tasks.images.field=species \
    --set stages.evaluate_mcip.sets.scenes.tasks.images.field=species
Hardware: 2 CPU cores, 8 GB of memory. Command: clipworks run mcip
"""

from evaluation.specs import ImageRetrieval
from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as scenes
from pipelines.recipes._method import method_recipe
from training.specs import (
    AdamW,
    ArcMargin,
    CaptionArcMargin,
    Classifier,
    CosineSchedule,
    InfoNCE,
    Label,
    Phase,
    Term,
    TextSlot,
    TrainSpec,
    View,
)

CLASSES = scenes.NOUN_COUNT
IMAGE_SIDE, TEXT_SIDE = ("visual.*", "aids.*"), ("*", "!visual.*")
CAPTIONS = {name: TextSlot(caption_weights={name: 1.0}) for name in ("statement", "region1")}
LABELS = Label(field="main")
ARC, CAPTION_ARC = Term(loss=ArcMargin()), Term(loss=CaptionArcMargin(texts=tuple(CAPTIONS)))
PAIRS, BATCH = 9_600, 128
TASKS = {"images": ImageRetrieval(field="main")}


def labelled(pairs: int = PAIRS) -> Phase:
    """GPR-FT, 2SFT's first stage: the image side learns labels alone."""
    return Phase(
        surgeries=(Classifier(classes=CLASSES),), trainable=IMAGE_SIDE, view=View(label=LABELS, augment=None),
        objectives={"labels": ARC}, **_training(pairs),
    )  # fmt: skip


def captioned(pairs: int = PAIRS, caption_noise: float = 0.0) -> Phase:
    """MCIP: labels and captions at once, the text side locked."""
    view = View(label=LABELS, texts=CAPTIONS, augment=None, caption_noise=caption_noise)
    changes = {"view": view, "objectives": {"labels": ARC, "captions": CAPTION_ARC}}
    return labelled(pairs).model_copy(update=changes)


def aligned(pairs: int = PAIRS, start: str = "init", trainable: tuple[str, ...] = TEXT_SIDE) -> Phase:
    """Re-A: contrast on image-text pairs, the image side locked."""
    return Phase(
        start=start, trainable=trainable, view=View(augment=None),
        objectives={"contrast": Term(loss=InfoNCE(multi_positive=True))}, **_training(pairs),
    )  # fmt: skip


def _training(pairs: int) -> dict[str, object]:
    return {
        "optimizer": AdamW(lr=5e-4, weight_decay=0.2), "schedule": CosineSchedule(warmup_samples=pairs // 10),
        "samples_seen": pairs, "global_batch_size": BATCH,
    }  # fmt: skip


def stage(phases: dict[str, Phase], init: str = "init", seed: int = 0) -> TrainSpec:
    """Phases on the pairs' own training selection."""
    return TrainSpec(init=init, pairs="pairs", selection="select", phases=phases, seed=seed)


def recipe() -> Recipe:
    """From any checkpoint to one that also finds pictures by pictures."""
    half = PAIRS // 2
    return method_recipe(
        name="mcip", title="MCIP: image retrieval with the joint space kept",
        purpose="Better image-to-image retrieval from labels, without losing text-to-image retrieval.",
        expect="Image-image mAP above the start; text-image R@1 near it (the card says what was measured).",
        tasks=TASKS,
        trained={"mcip": stage({"image": captioned(half), "text": aligned(half, start="image")})},
    )  # fmt: skip
