"""VR-LwF put to the test on a stream of tasks: against fine-tuning, joint training, and a vocabulary of one text."""

from pipelines.methods import _bench as bench
from pipelines.methods import _continual as continual
from pipelines.methods.method import Arm, Comparison, Experiment, Limit, Method
from pipelines.recipes.vr_lwf import VOCABULARY, replayed
from training.specs import GivenTexts

_TESTS = "tests/training/test_replay.py::"
_STAGES = "tests/training/test_kept_and_margined_stages.py::"
CONSTANT = GivenTexts(texts=("a thing",) * VOCABULARY.texts)


def experiment(seeds: int) -> Experiment:
    """The stream with replayed texts, with one text instead, and what all continual methods are held against."""
    stages = continual.base(seeds)
    stages |= continual.stream("vr_lwf", seeds, replayed)
    stages |= continual.stream(
        "constant", seeds, lambda init, selection, n: replayed(init, selection, n, vocabulary=CONSTANT)
    )
    return Experiment(
        stages=stages, arms=_ARMS, measures=continual.measures(("fine_tune", "vr_lwf", "constant")),
        comparisons=_COMPARISONS, seeds=seeds, headline="backward_transfer", data=bench.DATA,
    )  # fmt: skip


_ARMS = {
    **continual.ARMS,
    "vr_lwf": Arm("1,000 random texts replayed", "method"),
    "constant": Arm("one text, 1,000 times", "control", "says nothing of a picture"),
}
_COMPARISONS = (
    Comparison("forgets less of earlier tasks", "backward_transfer", "vr_lwf", "fine_tune", "above"),
    Comparison("by its vocabulary's words", "backward_transfer", "vr_lwf", "constant", "above", essential=True),
    Comparison(
        "one text, however often, is plain fine-tuning",
        "backward_transfer",
        "constant",
        "fine_tune",
        "equal",
        margin=0.01,
    ),
    Comparison("keeps more of what is never updated", "retained", "vr_lwf", "fine_tune", "above"),
    Comparison("ends with more of all tasks", "final", "vr_lwf", "fine_tune", "above"),
    Comparison("joint training is the upper end", "final", "vr_lwf", "joint", "below"),
)
METHOD = Method(
    name="vr_lwf",
    title="VR-LwF",
    paper="Don't Stop Learning: Towards Continual Learning for the CLIP Model, arXiv 2207.09248",
    licence="no code of the authors was found; two by others were read: ZSCL (MIT) and wildclip (GPL-3)",
    claim="An update that keeps each picture's distribution over replayed vocabulary forgets less than fine-tuning, "
    "without old data. The paper's numbers were not found, so none is quoted (unverified).",
    formula="loss = InfoNCE + weight T^2 CE(softmax(o / T), softmax(n / T)) over V texts of 10 random tokens, embedded "
    "by the old model; o = s I_old V^T, n = s I_new V^T with the present logit scale s; T = 2, weight 1.",
    deviations=(
        "Which distribution weighs the cross-entropy in the paper is unverified: the old one by default, as in ZSCL; "
        "`direction: new_to_old` is wildclip's, whose gradient is not 0 where nothing was forgotten.",
        "Random tokens leave start and end out (`safe`), which else move the place where a text is read, as in ZSCL.",
        "Each picture over the texts only; ZSCL's script adds each text over the pictures: `texts_too`.",
        "Contrast on captions instead of crops with class prompts; no label smoothing (0.2 in ZSCL's script).",
    ),
    limits=(
        Limit("the formula as ZSCL and wildclip have it", f"{_TESTS}test_value_and_gradients_are_the_formulas"),
        Limit("new = old: no gradient", f"{_TESTS}test_nothing_is_learnt_while_new_is_old"),
        Limit(
            "the other direction: a gradient at new = old",
            f"{_TESTS}test_the_other_direction_sharpens_a_model_that_forgot_nothing",
        ),
        Limit("one text: no gradient", f"{_TESTS}test_one_text_however_often_says_nothing"),
        Limit("weight 0: fine-tuning, to the bit", f"{_STAGES}test_weight_0_is_plain_fine_tuning_to_the_bit"),
    ),
    recipe="vr_lwf",
    start="any checkpoint; random texts need CLIP's tokenizer with start and end, else give `given_texts`",
    result="the start's architecture: loads in plain open_clip where the start does",
    experiment=experiment,
)
