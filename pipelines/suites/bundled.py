"""What runs anywhere: the quickstart's emoji on their two held-out axes, textile photographs, digits, drawn objects.

Pairs and splits of the emoji are the quickstart's own, so that what was trained on them is checked against them, and
features that a run made are reused. Sizes are chosen for 2 CPU cores.
"""

from data.pools.association import OBJECTS
from data.specs import AssociationPool, DigitsPool, DirectionPool, Holdout, HoldoutFraction, HoldoutRest, TextilePool
from evaluation.specs import (
    GDA,
    Calibration,
    ConceptAssociation,
    DenseProbe,
    LinearProbe,
    NearestNeighbours,
    OutOfDistribution,
    PairedSelection,
    Probe,
    Robustness,
    Task,
    TipAdapter,
    VisualFactors,
    ZeroShot,
)
from pipelines.recipes import _emoji as emoji
from pipelines.suites.spec import Main, Suite, SuiteSet
from training.specs import Corrupted, Corruption, Patches, Prompts

TEXTILE = Prompts(
    field="class",
    templates=("a photo of {c}", "a close-up photo of {c}", "an industrial inspection photo of {c}"),
    classes=("nominal", "local defect", "global defect"),
)
DIGITS = Prompts(
    field="class",
    templates=("the digit {c}", "a photo of the number {c}", "a handwritten {c}"),
    classes=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
)
KINDS: tuple[Corruption, ...] = ("gaussian_noise", "defocus_blur", "contrast", "pixelate", "jpeg")  # a kind a family
SHOTS = (1, 4, 16)


def suite() -> Suite:
    """All sets."""
    splits = (*emoji.SCORED, "val", "train")
    return Suite(
        name="bundled",
        title="Bundled suite",
        purpose="Every kind of task on pairs that packages ship, without a download.",
        sets={
            "emoji": _emoji(splits),
            "emoji_probes": SuiteSet(like="emoji", scored=("unseen_vendor",), learnt_from=("train", "val"),
                                     tasks=_probes(emoji.GROUPS), cluster_field="base", shown=emoji.SHOWN),
            "emoji_damaged": _damaged(),
            "textile": _labelled(TextilePool(), TEXTILE, "emoji/unseen_vendor", "digits/test"),
            "digits": _labelled(DigitsPool(), DIGITS, "emoji/unseen_vendor", "textile/test"),
            "association": _association(),
            "direction": _direction(),
        },
        averages={"zero-shot": ("emoji", "textile", "digits")},
    )  # fmt: skip


def _emoji(splits: tuple[str, ...]) -> SuiteSet:
    pairs, split = emoji.pairs(), emoji.split()
    tasks: dict[str, Task] = {
        **emoji.TASKS,
        **emoji.MORE_TASKS,
        "ood_far": OutOfDistribution(prompts=emoji.GROUPS, out=("textile/test", "digits/test")),
        "factors": VisualFactors(prompts=emoji.GROUPS, fields=("skin_tone", "gender")),
    }
    return SuiteSet(
        pool=pairs.pool, pairs_per_shard=pairs.pairs_per_shard, holdouts=split.holdouts, scored=emoji.SCORED,
        learnt_from=splits, tasks=tasks, queries=emoji.QUERIES, cluster_field="base", shown=emoji.SHOWN,
        patches=Patches(pairs_per_split=256),
        main=Main(split="unseen_vendor", task="groups", metrics=("top1",)),
    )  # fmt: skip


def _probes(prompts: Prompts) -> dict[str, Task]:
    """Heads on frozen features, all pairs and few."""
    return {
        "linear_probe": Probe(prompts=prompts, head=LinearProbe()),
        "nearest_neighbours": Probe(prompts=prompts, head=NearestNeighbours()),
        "gda": Probe(prompts=prompts, head=GDA()),
        "few_shot": Probe(prompts=prompts, head=TipAdapter(), shots=SHOTS),
    }


def _damaged() -> SuiteSet:
    """Five kinds of damage in five severities: 25 looks at every picture, so on one axis only; patches beside them."""
    views = {
        f"{kind}-{severity}": Corrupted(kind=kind, severity=severity) for kind in KINDS for severity in range(1, 6)
    }
    return SuiteSet(
        like="emoji", scored=("unseen_concepts",), learnt_from=("train", "val"), views=dict(views),
        tasks={"robustness": Robustness(prompts=emoji.GROUPS), "foreground": DenseProbe(),
               "factors": VisualFactors(prompts=emoji.GROUPS, fields=("vendor",))},
        cluster_field="base", shown=emoji.SHOWN,
    )  # fmt: skip


def _labelled(pool: TextilePool | DigitsPool, prompts: Prompts, *out: str) -> SuiteSet:
    """A set of labelled pictures: a third is scored, a fifth of the rest chooses, heads fit on what is left."""
    holdouts: dict[str, Holdout] = {"test": HoldoutFraction(fraction=1 / 3), "val": HoldoutFraction(fraction=0.2)}
    tasks: dict[str, Task] = {
        "zero_shot": ZeroShot(prompts=prompts),
        "calibration": Calibration(prompts=prompts),
        **_probes(prompts),
        "ood": OutOfDistribution(prompts=prompts, out=out, fit="train"),
    }
    return SuiteSet(
        pool=pool, holdouts=holdouts, scored=("test",), learnt_from=("train", "val"), tasks=tasks,
        main=Main(split="test", task="zero_shot", metrics=("top1",)),
    )  # fmt: skip


def _association() -> SuiteSet:
    task = ConceptAssociation()
    return SuiteSet(
        pool=AssociationPool(), holdouts={"test": HoldoutRest()}, scored=("test",), tasks={"colors": task},
        queries=task.queries(OBJECTS, sorted(set(OBJECTS.values()))), cluster_field="pair",
    )  # fmt: skip


def _direction() -> SuiteSet:
    return SuiteSet(
        pool=DirectionPool(), holdouts={"test": HoldoutRest()}, scored=("test",),
        tasks={"facing": PairedSelection()}, cluster_field="base",
    )  # fmt: skip
