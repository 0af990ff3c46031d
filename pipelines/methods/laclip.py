"""LaCLIP put to the test: names that no caption has, against the same length of training on originals."""

from collections.abc import Callable, Mapping

from evaluation.specs import Retrieval, Task, ZeroShot
from pipelines.methods import _bench as bench
from pipelines.methods.method import Arm, Comparison, Experiment, Limit, Measure, Method, stage_of
from pipelines.recipes import _scenes as scenes
from pipelines.recipes import laclip as ours
from training.specs import Prompts, TrainSpec

_CHOICE, _MULTI = (f"tests/training/test_{topic}.py::" for topic in ("caption_choice", "multi_text"))
# made up: no caption of any source has them, so that nothing can be known of them
_NONSENSE = tuple(
    head + tail
    for head in ("blor", "snar", "quom", "friz", "drav", "wexp", "yolp", "kreeb")
    for tail in ("vik", "peth", "zant", "uldo", "iggam")
)
_TASKS: dict[str, Task] = {
    "main": scenes.TASKS["main"],
    "main_heldout": scenes.TASKS["main_heldout"],
    "main_nonsense": ZeroShot(
        prompts=Prompts(field="main_class", templates=scenes.TEMPLATES, classes=_NONSENSE[: scenes.NOUN_COUNT])
    ),
    "retrieval": scenes.TASKS["retrieval"],
    "retrieval_heldout": Retrieval(caption_sources=("heldout",)),
}
# true captions as varied as rewrites are, in the originals' words
_SAME_WORDS = {"alt": 1.0, "statement": 2.0, "region1": 2.0}
_CAPTIONS = {"clip": {"alt": 1.0}, "same_words": _SAME_WORDS, "laclip": ours.UNIFORM}


def experiment(seeds: int) -> Experiment:
    """One start, trained on with other captions at equal pairs seen."""
    stages = {**bench.world(), **bench.starts(seeds, _TASKS)}
    for arm, captions in _CAPTIONS.items():
        stages |= bench.trained(arm, seeds, _trains(captions), _TASKS)
    all_at_once = _trains({"alt": 1.0}, {source: source for source in ours.REWRITES})
    stages |= bench.trained("laclip_mt", seeds, all_at_once, _TASKS)
    return Experiment(
        stages=stages,
        arms={
            "start": bench.START_ARM,
            "clip": Arm("originals only", "parent"),
            "laclip": Arm("originals and rewrites", "method", "one caption a visit, uniform"),
            "laclip_mt": Arm("all captions at once", "method", "five texts a pair: about twice the arithmetic"),
            "same_words": Arm("varied originals", "control", "true captions in the originals' words, one a visit"),
        },
        measures={
            "heldout": Measure("zero-shot, held-out names", "higher", "test", "main_heldout", "top1"),
            "main": Measure("zero-shot, original names", "higher", "test", "main", "top1"),
            "nonsense": Measure("zero-shot, names of no caption", "none", "test", "main_nonsense", "top1"),
            "retrieval_heldout": Measure(
                "text -> image R@1, held-out names", "higher", "test", "retrieval_heldout", "text_to_image_R@1"
            ),
            "retrieval": Measure("text -> image R@1", "higher", "test", "retrieval", "text_to_image_R@1"),
        },
        comparisons=(
            Comparison("understands held-out names better than CLIP", "heldout", "laclip", "clip", "above"),
            Comparison(
                "by the rewrites' words, not by variety", "heldout", "laclip", "same_words", "above", essential=True
            ),
            Comparison(
                "words that no caption has show no gain", "nonsense", "laclip", "clip", "equal", essential=True,
                margin=0.05,
            ),
            Comparison("finds pictures by held-out names", "retrieval_heldout", "laclip", "clip", "above"),
            Comparison("original names lose nothing", "main", "laclip", "clip", "equal", margin=0.05),
            Comparison("all captions at once give more", "heldout", "laclip_mt", "laclip", "above"),
        ),
        seeds=seeds,
        headline="heldout",
        data=bench.DATA,
    )  # fmt: skip


def _trains(captions: Mapping[str, float], slots: Mapping[str, str] = {}) -> Callable[[int], TrainSpec]:
    return lambda seed: ours.tuned(stage_of("start", seed), seed, captions, slots)


METHOD = Method(
    name="laclip",
    title="LaCLIP",
    paper="Improving CLIP Training with Language Rewrites, NeurIPS 2023, arXiv 2305.20088",
    licence="equations from the paper and its public code; no line of it is copied",
    claim="Rewriting captions with a language model and drawing one of them at each visit raises ImageNet zero-shot "
    "top-1 from 15.8 to 21.5 (CC3M, ViT-B/16), 40.2 to 48.4 (CC12M) and 67.0 to 69.3 (LAION-400M), the authors report.",
    formula="InfoNCE(image, T'), T' one of the original and its M rewrites, uniform at each visit; below two words the "
    "original. LaCLIP-MT (unverified): mean over a picture's captions of both cross-entropies.",
    deviations=(
        "Trained on from a checkpoint of originals for minutes, where the paper pretrains from nothing.",
        "Rewrites are templates with other names, not a language model's; held-out names are made of their words.",
        "LaCLIP-MT's form is unverified: which wrong captions count is an option, `candidates`.",
        "The backbone of the paper (normalised queries and keys) is not used: towers are the checkpoint's.",
    ),
    limits=(
        Limit(
            "rewrites equal to the original: CLIP bit for bit",
            f"{_CHOICE}test_rewrites_that_equal_the_original_are_plain_clip_bit_for_bit",
        ),
        Limit("each caption is as frequent", f"{_CHOICE}test_each_of_a_pairs_captions_is_as_frequent_as_the_others"),
        Limit(
            "below two words: the original",
            f"{_CHOICE}test_a_drawn_caption_of_less_than_two_words_gives_way_to_the_original",
        ),
        Limit("MT with equal captions: InfoNCE", f"{_MULTI}test_equal_captions_in_all_slots_are_info_nce"),
        Limit("MT with weight 0: CLIP", f"{_MULTI}test_weight_zero_is_the_parent_bit_for_bit"),
    ),
    recipe="laclip",
    start="any open_clip checkpoint, also a random one; pairs need the caption sources that the view names",
    result="loads in plain open_clip: towers are not changed",
    experiment=experiment,
)
