"""LightCLIP put to the test: each of its three additions alone, all of them, and masked words without a picture."""

import json
from collections.abc import Mapping
from functools import partial

from data import storage
from evaluation.specs import Task
from pipelines.methods import _bench as bench
from pipelines.methods.method import Arm, Comparison, Experiment, Found, Limit, Measure, Method, stage_of
from pipelines.recipes import _scenes as scenes
from pipelines.recipes import lightclip as ours
from training.specs import Term, TrainSpec

_SOFT, _TOKENS, _WORDS, _RANKS = (
    f"tests/training/test_{topic}.py::"
    for topic in ("soft_contrast", "token_matching", "masked_language", "lightclip_ranks")
)
_TASKS: Mapping[str, Task] = {name: scenes.TASKS[name] for name in ("retrieval", "main", "attribute")}
_MASKED = {**ours.CLIP, **ours.MASKED}
_TERMS: Mapping[str, Mapping[str, Term] | None] = {
    "clip": ours.CLIP,
    "soft": ours.SOFT,
    "tokens": {**ours.CLIP, **ours.MATCHED},
    "words": _MASKED,
    "blind": _MASKED,
    "lightclip": None,
}
_LAST = 3  # logged steps


def masked_word_loss(found: Found) -> float:
    """Cross-entropy of masked words in nats, mean over the last logged training steps."""
    text = storage.read_bytes(storage.join(found.own().uri, "metrics.jsonl")).decode()
    losses = [float(line["words"]) for line in map(json.loads, text.splitlines())]
    return sum(losses[-_LAST:]) / len(losses[-_LAST:])


def _trained(arm: str, seed: int) -> TrainSpec:
    return ours.trained(stage_of("start", seed), seed, _TERMS[arm], 0 if arm == "blind" else 1)


def experiment(seeds: int) -> Experiment:
    """One start, trained on for the same pairs with some of the terms."""
    stages = {**bench.world(), **bench.starts(seeds, _TASKS)}
    for arm in _TERMS:
        stages |= bench.trained(arm, seeds, partial(_trained, arm), _TASKS)
    return Experiment(
        stages=stages,
        arms={
            "start": bench.START_ARM,
            "clip": Arm("InfoNCE", "parent"),
            "soft": Arm("soft targets alone", "control"),
            "tokens": Arm("InfoNCE and matched tokens", "control"),
            "words": Arm("InfoNCE and masked words", "control", "told with the picture"),
            "blind": Arm("InfoNCE and masked words, no picture", "control", "told by the words before them alone"),
            "lightclip": Arm("all three", "method", "costs more a pair: a second reading of the text"),
        },
        measures={
            "retrieval": Measure("text -> image R@1", "higher", "test", "retrieval", "text_to_image_R@1"),
            "back": Measure("image -> text R@1", "higher", "test", "retrieval", "image_to_text_R@1"),
            "main": Measure("zero-shot top-1", "higher", "test", "main", "top1"),
            "attribute": Measure("right colours chosen", "higher", "test", "attribute", "caption_accuracy"),
            "masked": Measure(
                "masked words' cross-entropy, nats", "lower", compute=masked_word_loss, unit="number",
                arms=("words", "blind", "lightclip"),
            ),
        },
        comparisons=(
            Comparison("better retrieval than CLIP for the same pairs", "retrieval", "lightclip", "clip", "above"),
            Comparison("better zero-shot than CLIP for the same pairs", "main", "lightclip", "clip", "above"),
            Comparison("soft targets help alone", "retrieval", "soft", "clip", "above"),
            Comparison("matched tokens help alone", "retrieval", "tokens", "clip", "above"),
            Comparison("masked words help alone", "retrieval", "words", "clip", "above"),
            Comparison("by the picture, not the words alone", "retrieval", "words", "blind", "above", essential=True),
            Comparison("the picture tells masked words", "masked", "words", "blind", "below", essential=True),
        ),
        seeds=seeds,
        headline="retrieval",
        data=bench.DATA,
    )  # fmt: skip


METHOD = Method(
    name="lightclip",
    title="LightCLIP",
    paper="LightCLIP: Learning Multi-Level Interaction for Lightweight Vision-Language Models, arXiv 2312.00674",
    licence="no public code by the authors is known; ours is from the abstract and from summaries",
    claim="Small image encoders gain zero-shot accuracy and retrieval from softened targets, token matching and masked "
    "words with fusion, at no cost at inference (equations, weights and result tables unverified).",
    formula="L = L_soft + l1 L_token + l2 L_words. Soft: Y_ij = (1 - a) [i = j] + a w_ij [i != j], w_i = softmax over "
    "j != i of the detached logits, a from 0 to its end over the phase. Token: InfoNCE on mean_w max_p P_ip . W_jw. "
    "Words: cross-entropy of 15 % of the words, masked 80 / 10 / 10, after cross-attention to the patches.",
    deviations=(
        "All equations are our reading: the paper's own are unverified. Options: ramp linear or cosine, matching exact "
        "or relaxed, who takes the best partner (words, patches, both), the number of fused blocks.",
        "Words are told in a second reading by the text tower with its causal mask, so from the words before them and "
        "the picture; a hidden word is a learned vector, as CLIP's vocabulary has no mask.",
        "The fusion starts at zero, so that training starts from the tower as it is.",
        "Trained on from one checkpoint at equal pairs seen, not equal arithmetic; a small ViT instead of MobileNetV2, "
        "ResNet18 or Swin-Nano, whose patches cannot be told here.",
    ),
    limits=(
        Limit("softness 0: InfoNCE, bit for bit", f"{_SOFT}test_without_softness_it_is_info_nce_to_the_bit"),
        Limit("value and gradients are the formula's", f"{_SOFT}test_it_is_the_formula_written_out"),
        Limit("rows of targets sum to 1", f"{_SOFT}test_soft_targets_by_hand"),
        Limit("relaxed matching is never below exact", f"{_TOKENS}test_relaxed_is_never_below_exact"),
        Limit("equal where no two want one", f"{_TOKENS}test_they_are_equal_where_no_two_words_want_one_patch"),
        Limit("one patch and one word: InfoNCE", f"{_TOKENS}test_one_patch_and_one_word_are_info_nce"),
        Limit("the picture tells what words do not", f"{_WORDS}test_the_picture_tells_what_the_words_do_not"),
        Limit("removed: plain open_clip, same parameters", f"{_WORDS}test_nothing_of_it_stays"),
        Limit("all weights 0: CLIP, bit for bit", f"{_RANKS}test_weights_of_zero_are_clip_to_the_bit"),
        Limit("two ranks give the weights of one", f"{_RANKS}test_a_stage_on_two_ranks_gives_the_weights_of_one"),
    ),
    recipe="lightclip",
    start="any checkpoint with open_clip's own ViT and causal text tower; others are refused: no tokens to match",
    result="loads in plain open_clip: what was added for training is left out",
    experiment=experiment,
)
