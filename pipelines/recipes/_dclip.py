"""The two training stages of DCLIP (arXiv 2505.21549): a cross-modal teacher beside frozen towers, and its student.

Sizes, rates and lengths are those of the bench; the paper's stand in the docstring of recipe `dclip`.
"""

from typing import Literal

from training.specs import (
    AdamW,
    BoxField,
    CosineSchedule,
    CrossModal,
    FeatureCosine,
    FrozenModel,
    Grid,
    InfoNCE,
    Phase,
    Term,
    TrainSpec,
    View,
)

SCALE = 20.0  # 1 / temperature 0.05, in both stages
BATCH = 64
# what trains of the student: as the paper and its README say, the image tower and nothing of the text tower; as the
# released code does, all but those parts of the image tower that its model class names without "proj"
TEXT_FROZEN = ("visual.*",)
AS_RELEASED = ("*", "!visual.*", "visual.*.attn.in_proj_*", "visual.*.attn.out_proj.*", "visual.proj")


def teacher(
    init: str = "init", seed: int = 0, regions: BoxField | Grid | None = None,
    parts: Literal["both", "image"] = "both", samples: int = 5_120,
) -> TrainSpec:  # fmt: skip
    """Cross-attention over regions and words, trained to match the frozen towers' captions.

    `regions` None: a grid, which needs no detector. `parts="image"` is the control that sees no caption.
    """
    phase = Phase(
        surgeries=(CrossModal(parts=parts, seed=seed),),
        trainable=("aids.cross_modal.*",),
        view=View(regions=regions or Grid(), augment=None),
        objectives={"contrast": Term(loss=InfoNCE(image="fused_features", scale=SCALE))},
        optimizer=AdamW(lr=5e-3, betas=(0.9, 0.999), weight_decay=0.0),
        schedule=CosineSchedule(warmup_samples=samples // 10),
        samples_seen=samples,
        global_batch_size=BATCH,
    )
    return TrainSpec(init=init, pairs="pairs", selection="select", phases={"fuse": phase}, seed=seed)


def student(
    init: str = "init", teacher: str | None = "teacher", seed: int = 0, regions: BoxField | Grid | None = None,
    trainable: tuple[str, ...] = TEXT_FROZEN, samples: int = 5_120,
) -> TrainSpec:  # fmt: skip
    """Towers pulled to the teacher's fused vectors and to its captions, with contrast; without teacher contrast alone.

    The teacher's towers are the frozen CLIP whose captions anchor the student's: one teacher says both.
    """
    terms = {"contrast": Term(loss=InfoNCE(scale=SCALE))}
    if teacher is not None:
        images, texts = {"image_features": "fused_features"}, {"text_features": "text_features"}
        terms["image"] = Term(loss=FeatureCosine(teacher="fused", features=images))
        terms["text"] = Term(loss=FeatureCosine(teacher="fused", features=texts))
    phase = Phase(
        trainable=trainable,
        view=View(regions=None if teacher is None else regions or Grid(), augment=None),
        objectives=terms,
        teachers={} if teacher is None else {"fused": FrozenModel(checkpoint=teacher)},
        optimizer=AdamW(lr=3e-4, weight_decay=0.01, clip_grad_norm=0.5),
        schedule=CosineSchedule(warmup_samples=samples // 10),
        samples_seen=samples,
        global_batch_size=BATCH,
    )
    return TrainSpec(init=init, pairs="pairs", selection="select", phases={"distil": phase}, seed=seed)
