"""Quality Captions put to the test: one recipe, and a dial of how much captions say and how much of it is true."""

from collections.abc import Callable

from data.pools.scene_words import COLORS
from data.specs import Dial
from data.stage import StageSpec
from evaluation.specs import LinearProbe, Probe, Task, ZeroShot
from pipelines.methods import _bench as bench
from pipelines.methods.method import Arm, Comparison, Experiment, Limit, Measure, Method, Ordering, stage_of
from pipelines.recipes import _scenes as scenes
from pipelines.recipes import quality_captions as ours
from training.specs import Prompts, TrainSpec

_CHOICE, _MULTI, _ORDER, _OBJECTIVES = (
    f"tests/training/test_{topic}.py::" for topic in ("caption_choice", "multi_text", "order", "objectives")
)
# what the web says of a picture: half of the facts, a quarter of those wrong
_DIALS = {"web": Dial(mentioned_fraction=0.5, swap_rate=0.25)}
_WEB, _SYNTHETIC = {"web": 1.0}, {"statement": 1.0}
_COLORS = Prompts(field="main_color", templates=("a {c} tile",), classes=tuple(COLORS)[: scenes.COLOR_COUNT])
_TASKS: dict[str, Task] = {
    "main": scenes.TASKS["main"],
    "color": ZeroShot(prompts=_COLORS),
    "probe": Probe(prompts=scenes.MAIN, head=LinearProbe(), fit="train", select="val"),
    "attribute": scenes.TASKS["attribute"],
}
Train = Callable[[str, int], TrainSpec]
_ARMS: dict[str, Train] = {
    "web": lambda init, seed: ours.trained(init, seed, _WEB),
    "synthetic": lambda init, seed: ours.trained(init, seed, _SYNTHETIC),
    "two_terms": lambda init, seed: ours.trained(init, seed, _WEB, _SYNTHETIC),
    "permuted": lambda init, seed: ours.trained(init, seed, _SYNTHETIC, noise=1.0),
}


def experiment(seeds: int) -> Experiment:
    """Pretraining from the same random towers on captions of other quality, all else equal."""
    stages: dict[str, StageSpec] = {**bench.world(scenes.pairs(dials=_DIALS)), **bench.towers(seeds)}
    for seed in range(seeds):
        init = stage_of("towers", seed)
        stages |= _measured("towers", seed)
        for arm, train in _ARMS.items():
            stages |= {stage_of(arm, seed): train(init, seed), **_measured(arm, seed)}
    return Experiment(
        stages=stages,
        arms={
            "towers": Arm("random towers", "start"),
            "web": Arm("noisy captions", "parent", "half of the facts, a quarter of those wrong"),
            "synthetic": Arm("full captions", "method", "all facts, all true"),
            "two_terms": Arm("both, a term each", "method", "two texts a pair"),
            "permuted": Arm("full captions of other pictures", "control"),
        },
        measures={
            "probe": Measure("linear probe top-1", "higher", "test", "probe", "top1"),
            "color": Measure("zero-shot colour", "higher", "test", "color", "top1"),
            "main": Measure("zero-shot top-1", "higher", "test", "main", "top1"),
            "attribute": Measure("right colours chosen", "higher", "test", "attribute", "caption_accuracy"),
        },
        comparisons=(
            Comparison("better captions, better colours", "color", "synthetic", "web", "above"),
            Comparison("better captions, better features", "probe", "synthetic", "web", "above"),
            Comparison("better captions, colours at the right thing", "attribute", "synthetic", "web", "above"),
            Comparison("a second, better caption helps", "color", "two_terms", "web", "above"),
            Comparison(
                "captions of other pictures lose the gain", "color", "synthetic", "permuted", "above", essential=True
            ),
            Comparison("and teach no colour", "color", "permuted", "towers", "equal", margin=0.05),
            Comparison("and leave random features as they are", "probe", "permuted", "towers", "equal", margin=0.05),
        ),
        orderings=(Ordering("the better the captions, the better", "color", ("synthetic", "web", "permuted")),),
        seeds=seeds,
        headline="color",
        data=bench.DATA,
    )  # fmt: skip


def _measured(arm: str, seed: int) -> dict[str, StageSpec]:
    """As the bench has it, with features of pairs that the probe fits on."""
    features = stage_of(arm, seed, "features")
    return {
        features: scenes.embed(stage_of(arm, seed), _TASKS, splits=("train", *scenes.EMBEDDED)),
        stage_of(arm, seed, "evaluate"): scenes.evaluate(features, _TASKS),
    }


METHOD = Method(
    name="quality_captions",
    title="CLIP with Quality Captions",
    paper="CLIP with Quality Captions: A Strong Pretraining for Vision Tasks, 2024, arXiv 2405.08911",
    licence="no repository; equations from the authors' sibling code (MIT), no line of it is copied",
    claim="With the CLIP recipe fixed and only captions improved, a ViT-B/16 has 12.1 % higher mIoU and 11.5 % lower "
    "depth error than MAE after fine-tuning (abstract; absolute values not found).",
    formula="InfoNCE(image, real caption) + InfoNCE(image, synthetic caption), or one caption drawn by weight.",
    deviations=(
        "Judged by zero-shot and a linear probe of the largest object: scenes have no masks to segment by.",
        "Whether the paper's runs also distil (as the sibling code can) is unverified: none here.",
        "Captions' quality is a dial: the share of a scene's facts that are told, and of those that are wrong.",
    ),
    limits=(
        Limit("equal captions in both slots: twice the term", f"{_MULTI}test_two_equal_slots_are_twice_the_term"),
        Limit("mixing draws by weight", f"{_ORDER}test_caption_frequencies_follow_the_weights"),
        Limit(
            "permuted captions: none is its own",
            f"{_ORDER}test_derange_moves_exactly_the_fraction_and_keeps_all_captions",
        ),
        Limit(
            "equal second source: CLIP bit for bit",
            f"{_CHOICE}test_rewrites_that_equal_the_original_are_plain_clip_bit_for_bit",
        ),
        Limit(
            "distillation, teacher = student: zero gradient",
            f"{_OBJECTIVES}test_a_student_equal_to_its_teacher_learns_nothing",
        ),
    ),
    recipe="quality_captions",
    start="random towers, or any open_clip checkpoint to train on; pairs need the caption sources that the view names",
    result="loads in plain open_clip: towers are not changed",
    experiment=experiment,
)
