"""DCLIP put to the test: its student against plain contrast of the same cost and against a teacher without captions.

Costs in forward passes of a tower a pair, with 1.5 regions a picture: contrast 4 (picture 3, caption 1); the student's
teacher 3.5 more; the teacher's own training 3.5. So contrast sees 2.75 times the pairs.
"""

from evaluation.specs import Retrieval, Task
from pipelines.methods import _bench as bench
from pipelines.methods._dclip_probe import TEACHERS, leaked, matched
from pipelines.methods.method import Arm, Comparison, Experiment, Limit, Measure, Method, stage_of
from pipelines.recipes import _dclip as dclip
from pipelines.recipes import _scenes as scenes
from training.specs import BoxField, TrainSpec

SAMPLES = 5_120
BOXES = BoxField()
TASKS: dict[str, Task] = {"retrieval": Retrieval(), "main": scenes.TASKS["main"]}
_BLOCK, _STAGES = "tests/training/test_cross_modal.py::", "tests/training/test_dclip.py::"


def experiment(seeds: int) -> Experiment:
    """Teachers beside the same start, and students from it; only the teacher differs between them."""
    stages = {**bench.world(), **bench.starts(seeds, TASKS)}
    for seed in range(seeds):
        start = stage_of(bench.START, seed)
        stages[stage_of("teacher", seed)] = dclip.teacher(start, seed, BOXES, samples=SAMPLES)
        stages[stage_of("image_teacher", seed)] = dclip.teacher(start, seed, BOXES, "image", samples=SAMPLES)
    for arm, teacher in {**TEACHERS, "contrastive": None}.items():
        stages |= bench.trained(arm, seeds, lambda seed, teacher=teacher: _student(seed, teacher), TASKS)  # type: ignore[misc]
    return Experiment(
        stages=stages, arms=_ARMS, measures=_MEASURES, comparisons=_COMPARISONS, seeds=seeds,
        headline="text_to_image", data=bench.DATA,
    )  # fmt: skip


def _student(seed: int, teacher: str | None) -> TrainSpec:
    start = stage_of(bench.START, seed)
    if teacher is None:
        return dclip.student(start, None, seed, samples=SAMPLES * 11 // 4)
    return dclip.student(start, stage_of(teacher, seed), seed, BOXES, samples=SAMPLES)


_ARMS = {
    "start": bench.START_ARM,
    "contrastive": Arm("contrast at 1/20 alone", "parent", "as many FLOPs: 2.75 times the pairs, no teacher"),
    "dclip": Arm("distilled from regions and words", "method"),
    "image_only": Arm("distilled from regions alone", "control", "the same block, which sees no caption"),
}
_MEASURES = {
    "text_to_image": Measure("text -> image R@1", "higher", "test", "retrieval", "text_to_image_R@1"),
    "image_to_text": Measure("image -> text R@1", "higher", "test", "retrieval", "image_to_text_R@1"),
    "main": Measure("zero-shot, main object", "higher", "test", "main", "top1"),
    "matched": Measure("teacher: caption found, own regions", "higher", compute=matched, arms=tuple(TEACHERS)),
    "leaked": Measure("teacher: caption found, another picture's regions", "lower", compute=leaked,
                      arms=tuple(TEACHERS)),
}  # fmt: skip
_COMPARISONS = (
    Comparison("retrieval above plain contrast of the same cost", "text_to_image", "dclip", "contrastive", "above"),
    Comparison("the other direction too", "image_to_text", "dclip", "contrastive", "above"),
    Comparison("retrieval above the start", "text_to_image", "dclip", "start", "above"),
    Comparison("the caption in the teacher matters", "text_to_image", "dclip", "image_only", "above", essential=True),
    Comparison("zero-shot is kept: the paper says 94 % of it", "main", "dclip", "start", "equal", margin=0.06),
    Comparison("the teacher finds captions without their picture: it leaks", "leaked", "dclip", "image_only", "above"),
)
METHOD = Method(
    name="dclip",
    title="DCLIP",
    paper="Distill CLIP (DCLIP): Enhancing Image-Text Retrieval via Cross-Modal Transformer Distillation, "
    "arXiv 2505.21549",
    licence="the released code (ChuckDanz/DCLIP) has none: read for facts, written from the equations",
    claim="A student distilled from a cross-attention teacher over detected regions and caption words retrieves better "
    "and keeps about 94 % of CLIP's zero-shot accuracy, with about 67,500 pairs; the released README says +15 to +35 "
    "points of retrieval. The paper's table values were not found: unverified.",
    formula="W' = LN(W + MHA(W, R, R)), R' = LN(R + MHA(R, W, W)), pool(X) = softmax(cos(x_j, mean X) / 2) X, "
    "g = pool(W') / 2 + pool(R') / 2; teacher: InfoNCE(g, T) at temperature 0.05; student: L = mean(1 - cos(I, g)) + "
    "mean(1 - cos(T, T_clip)) + InfoNCE(I, T) at temperature 0.05.",
    deviations=(
        "Empty places of regions and words take no part; the released code lets them in as zeros, as does "
        "padding=zero, where their number is the view's and not the batch's, so that chunks and ranks change nothing.",
        "The text tower is frozen, as paper and README say; recipe dclip_released trains what the released code does.",
        "Regions are cut from the tower's input and stretched to its size; theirs from the picture at full size.",
        "Boxes are the scenes' own, or a grid, where the paper runs YOLOv8x.",
        "A constant number of pairs, a cosine schedule, AdamW at 5e-3 (teacher) and 3e-4 (student): tiny towers.",
        "The contrast sees the whole batch; theirs the 32 pairs of one of 4 accumulated pieces.",
    ),
    limits=(
        Limit("the block is the equations, with its gradients",
              f"{_BLOCK}test_the_fused_vector_is_the_formula_with_its_gradients"),
        Limit("more empty places change nothing masked, and something as zeros",
              f"{_BLOCK}test_empty_places_change_nothing_masked_and_something_as_zeros"),
        Limit("the whole picture is its own crop",
              f"{_BLOCK}test_the_whole_picture_is_its_own_crop_and_a_part_is_interpolated"),
        Limit("the teacher's stage leaves the towers to the bit",
              f"{_STAGES}test_the_teacher_stage_trains_the_block_alone_and_keeps_it"),
        Limit("student = teacher: no distillation loss, no gradient",
              f"{_STAGES}test_a_student_equal_to_its_teacher_has_no_distillation_loss_and_no_gradient"),
        Limit("teacher at weight 0: contrast to the bit",
              f"{_STAGES}test_without_weight_on_the_teacher_it_is_contrast_bit_for_bit"),
        Limit("one rank or two: one training", f"{_STAGES}test_two_ranks_give_the_training_of_one"),
    ),
    recipe="dclip",
    start="an open_clip ViT with open_clip's causal text tower, whose words can be told; others are refused",
    result="the start's architecture: loads in plain open_clip wherever the start does; the teacher, which has the "
    "block beside its towers, loads with clipworks' loader",
    experiment=experiment,
)  # fmt: skip
