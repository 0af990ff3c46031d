"""NegCLIP put to the test: relations and order against training on without wrong captions."""

from collections.abc import Callable

from pipelines.methods import _bench as bench
from pipelines.methods.method import Arm, Comparison, Experiment, Limit, Measure, Method, stage_of
from pipelines.recipes import neg_clip as ours
from training.specs import HardNegatives, InfoNCE, Objective, TrainSpec

_TESTS = "tests/training/test_hard_negatives.py::"


def experiment(seeds: int) -> Experiment:
    """The start, trained on with and without wrong captions at equal pairs seen."""
    with_wrong, without = HardNegatives(texts=("negative",)), InfoNCE(multi_positive=True)
    losses: dict[str, Objective] = {"neg_clip": with_wrong, "fine_tune": without}
    stages = {**bench.world(), "related": ours.RELATED, **bench.starts(seeds)}
    for arm, loss in losses.items():
        stages |= bench.trained(arm, seeds, _trains(loss))
    return Experiment(
        stages=stages,
        arms={
            "start": bench.START_ARM,
            "fine_tune": Arm("InfoNCE on the same pairs", "parent"),
            "neg_clip": Arm("InfoNCE with wrong captions", "method"),
        },
        measures={
            "relation": Measure("right relation chosen", "higher", "test", "relation", "caption_accuracy"),
            "order": Measure("right order chosen", "higher", "test", "order", "caption_accuracy"),
            "attribute": Measure("right colours chosen", "higher", "test", "attribute", "caption_accuracy"),
            "retrieval": Measure("text -> image R@1", "higher", "test", "retrieval", "text_to_image_R@1"),
        },
        comparisons=(
            Comparison("tells relations better than training on", "relation", "neg_clip", "fine_tune", "above"),
            Comparison("tells order better than training on", "order", "neg_clip", "fine_tune", "above"),
        ),
        seeds=seeds,
        headline="relation",
        data=bench.DATA,
    )


def _trains(loss: Objective) -> Callable[[int], TrainSpec]:
    return lambda seed: ours.train_on(loss, stage_of("start", seed), seed)


METHOD = Method(
    name="neg_clip",
    title="NegCLIP",
    paper="When and why vision-language models behave like bags-of-words, ICLR 2023, arXiv 2210.01936",
    licence="MIT; equations from the paper, its code not read",
    claim="Fine-tuning with swapped captions as further texts raises the choice of right relations and orders; numbers "
    "of the paper are not quoted here, because no copy of its tables was at hand.",
    formula="image->text: cross-entropy over all captions and all wrong captions of the batch; text->image: over all "
    "pictures; mean of both.",
    deviations=("No hard negative pictures (the paper also adds near neighbours of a picture to the batch).",),
    limits=(
        Limit("wrong captions out of reach: InfoNCE", f"{_TESTS}test_wrong_captions_out_of_reach_leave_info_nce"),
        Limit("two pairs by hand", f"{_TESTS}test_by_hand"),
    ),
    recipe="neg_clip",
    start="any dual encoder; pairs need a caption source with wrong captions",
    result="loads in plain open_clip",
    experiment=experiment,
)
