"""A method for tests, found as pipelines.methods.example: train on digits with true captions, and judge that."""

from data.curation.specs import CurateSpec
from data.specs import DigitsPool, HoldoutFraction, IngestSpec, SplitSpec
from data.stage import StageSpec
from evaluation.specs import Bootstrap, EvaluateSpec, Scored, ZeroShot
from pipelines.methods.method import Arm, Comparison, Experiment, Found, Limit, Measure, Method, stage_of
from training.specs import AdamW, EmbedSpec, InfoNCE, ModelSpec, Phase, Prompts, Term, TrainSpec, View

TOWER = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = Prompts(field="class", templates=("the digit {c}",), classes=NAMES)


def logit_scale(found: Found) -> float:
    return float(found.own().record.metrics["logit_scale"])


def experiment(seeds: int) -> Experiment:
    stages: dict[str, StageSpec] = {
        "pairs": IngestSpec(pool=DigitsPool()),
        "split": SplitSpec(pairs="pairs", holdouts={"test": HoldoutFraction(fraction=0.2)}),
        "select": CurateSpec(pairs="pairs", split="split"),
        "start": ModelSpec(architecture=TOWER, seed=0),
        **judged("start", None),
    }
    for seed in range(seeds):
        stages |= {stage_of("trained", seed): train(seed), **judged("trained", seed)}
    return Experiment(
        stages=stages,
        arms={"trained": Arm("true captions", "method"), "start": Arm("random weights", "start", "learns nothing")},
        measures={
            "top1": Measure("zero-shot top-1", "higher", "test", "digits", "top1", set="digits"),
            "scale": Measure("logit scale", "none", compute=logit_scale, unit="number"),
        },
        comparisons=(
            Comparison("captions teach classes", "top1", "trained", "start", "above"),
            Comparison("the scale moves", "scale", "trained", "start", "equal", margin=0.0),
        ),
        seeds=seeds,
        headline="top1",
        data="1,797 digits of scikit-learn, a fifth held out",
    )


def train(seed: int) -> TrainSpec:
    phase = Phase(
        view=View(augment=None), objectives={"contrast": Term(loss=InfoNCE())}, optimizer=AdamW(lr=2e-3),
        samples_seen=640, global_batch_size=64,
    )  # fmt: skip
    return TrainSpec(init="start", pairs="pairs", selection="select", phases={"train": phase}, seed=seed)


def judged(arm: str, seed: int | None) -> dict[str, StageSpec]:
    checkpoint, features = stage_of(arm, seed), stage_of(arm, seed, "features")
    tasks = {"digits": ZeroShot(prompts=PROMPTS)}
    scored = Scored(features=features, pairs="pairs", split="split", splits=("test",), tasks=tasks)
    return {
        features: EmbedSpec(checkpoint=checkpoint, pairs="pairs", split="split", splits=("test",), prompts=(PROMPTS,)),
        stage_of(arm, seed, "evaluate"): EvaluateSpec(sets={"digits": scored}, bootstrap=Bootstrap(resamples=100)),
    }


METHOD = Method(
    name="example",
    title="True captions",
    paper="Nobody et al., Captions | pictures, 1999",
    licence="none",
    claim="Pairs whose captions are true teach more than <none> at all.",
    formula="loss = InfoNCE(image, caption)",
    deviations=("trained for seconds",),
    limits=(Limit("no pairs: the weights of the start", "tests/training/test_fit.py::test_nothing"),),
    recipe="tiny",
    start="any checkpoint",
    result="loads in plain open_clip",
    experiment=experiment,
)
