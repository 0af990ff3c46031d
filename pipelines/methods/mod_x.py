"""Mod-X put to the test on a stream of tasks: against plain fine-tuning, joint training, and keeping wrong rows too."""

from pipelines.methods import _bench as bench
from pipelines.methods import _continual as continual
from pipelines.methods.method import Arm, Comparison, Experiment, Limit, Method
from pipelines.recipes.mod_x import kept

_TESTS = "tests/training/test_similarity_rows.py::"
_STAGES = "tests/training/test_kept_and_margined_stages.py::"


def experiment(seeds: int) -> Experiment:
    """The stream with right rows kept, with all rows kept, and what all continual methods are held against."""
    stages = continual.base(seeds)
    stages |= continual.stream("mod_x", seeds, kept)
    stages |= continual.stream("all_rows", seeds, lambda init, selection, n: kept(init, selection, n, rows="all"))
    return Experiment(
        stages=stages, arms=_ARMS, measures=continual.measures(("fine_tune", "mod_x", "all_rows")),
        comparisons=_COMPARISONS, seeds=seeds, headline="backward_transfer", data=bench.DATA,
    )  # fmt: skip


_ARMS = {
    **continual.ARMS,
    "mod_x": Arm("rows that the old model has right are kept", "method"),
    "all_rows": Arm("all rows are kept, wrong ones too", "control"),
}
_COMPARISONS = (
    Comparison("forgets less of earlier tasks", "backward_transfer", "mod_x", "fine_tune", "above"),
    Comparison("ends with more of all tasks", "final", "mod_x", "fine_tune", "above"),
    Comparison("than with wrong rows kept too", "final", "mod_x", "all_rows", "above", essential=True),
    Comparison("keeps more of what is never updated", "retained", "mod_x", "fine_tune", "above"),
    Comparison("retrieves better at the end", "retrieval", "mod_x", "fine_tune", "above"),
    Comparison("joint training is the upper end", "final", "mod_x", "joint", "below"),
)
METHOD = Method(
    name="mod_x",
    title="Mod-X",
    paper="Continual Vision-Language Representation Learning with Off-Diagonal Information, ICML 2023, "
    "arXiv 2305.07437",
    licence="the released code has none: read, not copied",
    claim="Sequential training turns the two modalities apart; keeping the old model's similarity rows, those it has "
    "right, keeps earlier tasks. The paper's numbers were not found, so none is quoted (unverified).",
    formula="loss = InfoNCE + 20 (KL(softmax A_old || softmax A) + the same of the transposed) / 2, A = I T^T, summed "
    "over rows; a row of A_old whose maximum is not its own pair is replaced by A's, which then adds nothing.",
    deviations=(
        "As in the released code and despite the paper's name the diagonal is kept: `drop_diagonal` removes it.",
        "As in the released code rows are cosines without temperature, nearly uniform: `use_scale` puts them to scale.",
        "A row whose own pair ties with another is right, for captions repeat; the code takes its argmax's choice.",
        "A stream of two groups of things instead of COCO and five parts of Flickr30k.",
    ),
    limits=(
        Limit(
            "the formula with rows replaced as in the code",
            f"{_TESTS}test_mod_xs_form_is_its_formula_and_the_teacher_is_right_and_wrong_in_it",
        ),
        Limit("a replaced row: no value, no gradient", f"{_TESTS}test_a_replaced_row_adds_neither_value_nor_gradient"),
        Limit("new = old: no gradient", f"{_TESTS}test_a_student_equal_to_its_teacher_learns_nothing"),
        Limit(
            "modalities turned together: the same; apart: not",
            f"{_TESTS}test_a_common_rotation_is_not_seen_and_unequal_ones_are",
        ),
        Limit("weight 0: fine-tuning, to the bit", f"{_STAGES}test_weight_0_is_plain_fine_tuning_to_the_bit"),
    ),
    recipe="mod_x",
    start="any checkpoint; student and teacher may differ in width, for rows alone are compared",
    result="the start's architecture: loads in plain open_clip where the start does",
    experiment=experiment,
)
