"""CLIP-MoE put to the test: against plain copies as experts, averaging, single experts, and plain fine-tuning."""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from data.features import FeatureSet, Floats
from data.stage import StageSpec
from pipelines.methods import _bench as bench
from pipelines.methods.method import Arm, Comparison, Experiment, Found, Limit, Measure, Method, stage_of
from pipelines.recipes import _scenes as scenes
from pipelines.recipes import clip_moe as ours
from training.specs import Phase, TrainSpec, UniformSampler, Upcycle

_TESTS = "tests/training/test_experts.py::"
_SURGERY = "tests/training/test_surgeries.py::"
_ORDER = "tests/training/test_order.py::"
NEIGHBOURS, TEXTS = 10, 1_000
TASKS = {name: scenes.TASKS[name] for name in ("retrieval", "main")}
# which checkpoints are an arm's experts by themselves
EXPERTS = {"clip_moe": ("start", "expert_1", "expert_2"), "copies": ("start", "copy_1", "copy_2")}


def experiment(seeds: int) -> Experiment:
    """The mixture, mixtures of other experts and of other weights, its experts alone, and the start trained on."""
    stages = {**bench.world(), **bench.starts(seeds)}
    stages |= bench.trained("clip_moe", seeds, lambda n: ours.mixture(stage_of("start", n), n), TASKS)
    stages |= bench.trained("continued", seeds, lambda n: ours.continued(stage_of("start", n), n), TASKS)
    stages |= _copies(seeds)
    average = Upcycle(experts=("init",) * 3, numbers=(0, 1, 2), top_k=3, router_std=0.0)
    stages |= bench.trained("uniform", seeds, _changed("clip_moe", average), TASKS)
    for expert in (1, 2):
        stages |= bench.trained(f"expert_{expert}", seeds, _changed("clip_moe", _alone(expert)), TASKS)
    return Experiment(
        stages=stages, arms=_ARMS, measures=_MEASURES, comparisons=_COMPARISONS, seeds=seeds, headline="retrieval",
        data=bench.DATA,
    )  # fmt: skip


def _copies(seeds: int) -> dict[str, StageSpec]:
    """Experts from uniform batches in another order each: two stages, for a stage has one seed; and each alone."""
    stages: dict[str, StageSpec] = {}
    for seed in range(seeds):
        stages[stage_of("copy_base", seed)] = _stage(stage_of("start", seed), 100 + seed, {
            "base": ours.untrained(),
            "copy_1": ours.fine_tuned(UniformSampler()),
            "both": ours.untrained("base", Upcycle(experts=("base", "copy_1"), top_k=2)),
        })  # fmt: skip
    stages |= bench.trained("copies", seeds, _second_copy, TASKS)
    for copy in (1, 2):
        name = f"copy_{copy}"
        for seed in range(seeds):
            stages[stage_of(name, seed)] = _changed("copies", _alone(copy))(seed)
            stages[stage_of(name, seed, "features")] = scenes.embed(stage_of(name, seed), TASKS)
    return stages


def _second_copy(seed: int) -> TrainSpec:
    """Another copy from the start, which is the first expert of what it begins with; then the routers of all three."""
    every = Upcycle(experts=("init", "init", "copy_2"), numbers=(0, 1, 0), top_k=2)
    return _stage(stage_of("copy_base", seed), 200 + seed, {
        "base": ours.untrained("init", _alone(0)),
        "copy_2": ours.fine_tuned(UniformSampler()),
        "router": ours.routed(every),
    })  # fmt: skip


def _alone(expert: int) -> Upcycle:
    return Upcycle(experts=("init",), numbers=(expert,), top_k=1)


def _changed(arm: str, upcycle: Upcycle) -> Callable[[int], TrainSpec]:
    """An arm's mixture put together anew, without training."""
    return lambda seed: _stage(stage_of(arm, seed), seed, {"changed": ours.untrained("init", upcycle)})


def _stage(init: str, seed: int, phases: dict[str, Phase]) -> TrainSpec:
    return TrainSpec(init=init, pairs="pairs", selection="select", phases=phases, seed=seed)


def overlap(found: Found) -> float:
    """Share of common nearest neighbours between an arm's experts: mean over pairs of experts, pictures and texts."""
    sets = [FeatureSet(found.artifact(stage_of(arm, found.seed, "features"))) for arm in EXPERTS[found.arm]]
    texts = sets[0].texts[:TEXTS]
    kinds = ([np.asarray(one.images) for one in sets], [one.text_features[one.text_rows(texts)] for one in sets])
    near = [[neighbours(features) for features in kind] for kind in kinds]
    shares = [common(one, other) for kind in near for one, other in combinations(kind, 2)]
    return float(np.mean(shares))


def neighbours(features_ND: Floats) -> Floats:
    """(N, N), 1 for the rows that are nearest to a row, itself left out."""
    similarity_NN = features_ND @ features_ND.T
    np.fill_diagonal(similarity_NN, -np.inf)
    near_NK = np.argpartition(-similarity_NN, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    is_near_NN = np.zeros(similarity_NN.shape, np.float32)
    np.put_along_axis(is_near_NN, near_NK, 1, axis=1)
    return is_near_NN


def common(one_NN: Floats, other_NN: Floats) -> float:
    """Share of neighbours that two models have in common."""
    return float((one_NN * other_NN).sum() / one_NN.sum())


_ARMS = {
    "start": bench.START_ARM,
    "continued": Arm("all weights trained on, as many pairs", "parent"),
    "clip_moe": Arm("experts from single-cluster batches, 2 of 3 active", "method"),
    "copies": Arm("experts fine-tuned on uniform batches with other seeds", "control"),
    "uniform": Arm("the same experts, all averaged", "control", "half as many FLOPs again in the FFNs"),
    "expert_1": Arm("the first fine-tuned expert alone", "control", "half the FLOPs in the FFNs"),
    "expert_2": Arm("the second fine-tuned expert alone", "control", "half the FLOPs in the FFNs"),
}
_MEASURES = {
    "retrieval": Measure("text -> image R@1", "higher", "test", "retrieval", "text_to_image_R@1"),
    "image_to_text": Measure("image -> text R@1", "higher", "test", "retrieval", "image_to_text_R@1"),
    "main": Measure("zero-shot, main object", "higher", "test", "main", "top1"),
    "overlap": Measure(
        f"common ones among experts' {NEIGHBOURS} nearest neighbours", "lower", compute=overlap, arms=tuple(EXPERTS)
    ),
}
_COMPARISONS = (
    Comparison("retrieves better than plain fine-tuning", "retrieval", "clip_moe", "continued", "above"),
    Comparison("better than with plain copies as experts", "retrieval", "clip_moe", "copies", "above", essential=True),
    Comparison("experts differ more than plain copies", "overlap", "clip_moe", "copies", "below", essential=True),
    Comparison("routing is better than averaging", "retrieval", "clip_moe", "uniform", "above"),
    Comparison("better than its base expert", "retrieval", "clip_moe", "start", "above"),
    Comparison("better than its first fine-tuned expert", "retrieval", "clip_moe", "expert_1", "above"),
    Comparison("better than its second fine-tuned expert", "retrieval", "clip_moe", "expert_2", "above"),
)
METHOD = Method(
    name="clip_moe",
    title="CLIP-MoE",
    paper="CLIP-MoE: Towards Building Mixture of Experts for CLIP with Diversified Multiplet Upcycling, EMNLP 2025, "
    "arXiv 2409.19291",
    licence="the released code has none: read, not copied",
    claim="Experts that are fine-tuned on batches from one cluster each learn different things, and a mixture of them "
    "is better than the model they come from; the paper's numbers were not found, so none is quoted (unverified).",
    formula="FFN(x) = sum of the k largest p_e(x) FFN_e(x) / sum of those p; p = softmax(router x). Routers alone "
    "train, on InfoNCE + 0.01 (balance of images + balance of texts / 2); balance = E sum over k and e of (share "
    "of tokens whose k-th choice is e) (mean p_e), which is k for uniform routers and E for collapsed ones.",
    deviations=(
        "3 experts and 2 x 2 clusters a stage where the code has 4 and 3 x 3: 6,800 pairs fill no more.",
        "The balance loss counts all ranks' tokens; `scope: rank` and `per_rank` are the released code's form.",
        "No stretched text positions and no short captions; both are options (`stretch_positions`, `texts`).",
        "No dropout in the experts (0.1 in the code): `dropout`.",
    ),
    limits=(
        Limit("equal experts: the dense model", f"{_SURGERY}test_equal_experts_equal_the_dense_model"),
        Limit("one expert: the dense model, to the bit", f"{_SURGERY}test_one_expert_is_the_dense_model_to_the_bit"),
        Limit("k = E: softmax-weighted sum", f"{_SURGERY}test_all_experts_chosen_is_the_softmax_weighted_sum"),
        Limit(
            "experts compute their own tokens only",
            f"{_TESTS}test_experts_compute_their_own_tokens_and_no_others",
        ),
        Limit(
            "two ranks: the weights of one",
            f"{_TESTS}test_the_whole_method_on_two_ranks_is_that_on_one",
        ),
        Limit("balance: k if uniform, E if collapsed", f"{_TESTS}test_collapse_is_above_uniform_and_bounded"),
        Limit(
            "every batch from one cell", f"{_ORDER}test_cluster_batches_have_a_single_cell_and_no_pair_twice_an_epoch"
        ),
    ),
    recipe="clip_moe",
    start="any checkpoint with open_clip's own transformer towers; others are refused, for they have no FFN blocks",
    result="a mixture: loads with training.towers.load_towers, not in plain open_clip",
    experiment=experiment,
)
