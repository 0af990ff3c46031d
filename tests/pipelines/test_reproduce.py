"""`clipworks reproduce`: seeds, verdicts, the sentence they lead to, the card; on made artifacts, and once for real."""

import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data import storage
from data.artifacts import Artifact, Output, Record, fingerprint, open_artifact
from data.measurement import Measurement, measurement_uri
from data.place import Place
from data.stage import run_stage
from pipelines import methods
from pipelines.cli import main
from pipelines.methods import load_method
from pipelines.methods.method import Arm, Comparison, Experiment, Found, Measure, Method, MethodError, Ordering, Role
from pipelines.reproduction import judgement
from pipelines.reproduction.card import ArmOfCard, Card, MeanOfCard, MeasureOfCard, read_card
from pipelines.reproduction.checks import make_experiment
from pipelines.reproduction.making import compare, make_card, rank
from pipelines.reproduction.page import axis_around, render
from pipelines.reproduction.running import recipe_of
from pipelines.reproduction.statistics import count_expected, differences_of, kendall_tau, spread_of, verdict_of
from training.specs import ModelSpec

ANY = ModelSpec(architecture="ViT-B-32")
T_2 = 4.302653  # Student's t at 0.975 with two degrees of freedom, as tables have it


# -------------------------------------------------------------------------------------------------------- statistics


def test_an_interval_by_hand() -> None:
    spread = spread_of([0.02, 0.05, 0.02])  # deviation sqrt(0.0003), over sqrt(3): 0.01
    assert spread.mean == pytest.approx(0.03)
    assert spread.low == pytest.approx(0.03 - 0.01 * T_2)
    assert spread.high == pytest.approx(0.03 + 0.01 * T_2)
    assert spread_of([0.02, None, 0.05, 0.02]) == spread  # a seed without a number counts for nothing


def test_no_interval_without_two_values() -> None:
    assert spread_of([]) == (None, None, None, 0)
    assert spread_of([0.5, None]) == (0.5, None, None, 1)
    assert verdict_of(spread_of([0.5]), "above") == "not shown"


def test_pairing_removes_what_seeds_share() -> None:
    left, right = [0.21, 0.52, 0.82], [0.19, 0.48, 0.79]
    assert verdict_of(spread_of(differences_of(left, right)), "above") == "holds"
    # negative control: the same numbers in another order are no longer pairs
    assert verdict_of(spread_of(differences_of(left, [0.48, 0.79, 0.19])), "above") == "not shown"
    assert differences_of([0.5, None], [0.2, 0.1]) == (0.3, None)


@pytest.mark.parametrize(
    ("differences", "expect", "margin", "verdict"),
    [
        ([0.03, 0.04, 0.03], "above", None, "holds"),
        ([0.03, 0.04, 0.03], "below", None, "contradicted"),
        ([-0.03, -0.04, -0.03], "below", None, "holds"),
        ([-0.03, -0.04, -0.03], "above", None, "contradicted"),
        ([-0.03, 0.04, 0.03], "above", None, "not shown"),
        ([0.0, 0.0, 0.0], "above", None, "not shown"),
        ([0.0, 0.0, 0.0], "equal", 0.0, "holds"),
        ([0.003, 0.004, 0.003], "equal", 0.01, "holds"),
        ([0.03, 0.04, 0.03], "equal", 0.01, "contradicted"),
        ([-0.03, -0.04, -0.03], "equal", 0.01, "contradicted"),
        ([0.003, 0.02, -0.01], "equal", 0.01, "not shown"),  # wide intervals are no evidence of equality
    ],
)
def test_verdicts(differences: list[float], expect: Any, margin: float | None, verdict: str) -> None:
    assert verdict_of(spread_of(differences), expect, margin) == verdict


def test_seeds_as_expected() -> None:
    assert count_expected([0.1, 0.0, -0.1, None], "above") == 1
    assert count_expected([0.1, 0.0, -0.1, None], "below") == 1
    assert count_expected([0.1, 0.0, -0.1, None], "equal", 0.1) == 3


def test_kendall_by_hand_and_at_its_ends() -> None:
    assert kendall_tau([3, 2, 1]) == 1
    assert kendall_tau([1, 2, 3]) == -1
    assert kendall_tau([1, 1, 1]) == 0
    assert kendall_tau([3, 1, 2]) == pytest.approx(1 / 3)
    assert kendall_tau([2, 2, 1]) == pytest.approx(2 / 3)  # a tie is not credited


# --------------------------------------------------------------------------------------------------------- judgement

ROLES: dict[str, Role] = {"new": "method", "old": "parent", "sham": "control", "start": "start"}
ARMS = {name: ArmOfCard(title=name, role=role, note="") for name, role in ROLES.items()}
GAIN = Comparison("the method gains", "top1", "new", "old", "above")
CONTROL = Comparison("the control does not", "top1", "new", "sham", "above", essential=True)


def measured(values: Mapping[str, Sequence[float | None]]) -> MeasureOfCard:
    """A measure with these values by arm."""
    means = {arm: MeanOfCard(**spread_of(own)._asdict()) for arm, own in values.items()}
    return MeasureOfCard(title="top-1", better="higher", unit="fraction", place="s/t/z/top1", samples=100, chance=0.1,
                         values={arm: tuple(own) for arm, own in values.items()}, means=means)  # fmt: skip


OLD = [0.50, 0.51, 0.52]
BETTER, SAME, WORSE = [0.55, 0.56, 0.575], [0.50, 0.515, 0.51], [0.45, 0.46, 0.48]


@pytest.mark.parametrize(
    ("new", "sham", "head", "lost"),
    [
        (BETTER, SAME, judgement.REPRODUCED, "yes"),
        (BETTER, BETTER, judgement.CONTROL_TOO, "not shown"),
        (BETTER, [0.60, 0.61, 0.62], judgement.CONTROL_TOO, "no"),
        (BETTER, [0.40, 0.60, 0.55], judgement.NOT_TOLD_APART, "not shown"),
        (SAME, SAME, judgement.NOT_REPRODUCED, "not shown"),
        (SAME, WORSE, judgement.NOT_REPRODUCED, "yes"),
        (WORSE, SAME, judgement.OPPOSITE, "no"),
    ],
)
def test_the_sentence_at_the_head(new: list[float], sham: list[float], head: str, lost: str) -> None:
    measure = measured({"new": new, "old": OLD, "sham": sham})
    judged: Any = ("top1", ARMS, {"top1": measure}, [compare(GAIN, measure), compare(CONTROL, measure)])
    assert judgement.head_of(*judged) == head
    assert judgement.effect_text(*judged).endswith(f"points top-1 vs parent; control loses it: {lost}")


def test_a_lower_number_may_be_the_gain() -> None:
    measure = measured({"new": WORSE, "old": OLD, "sham": WORSE})
    down = [replace(GAIN, expect="below"), replace(CONTROL, expect="below")]
    compared = [compare(one, measure) for one in down]
    assert judgement.head_of("top1", ARMS, {"top1": measure}, compared) == judgement.CONTROL_TOO


def test_without_control_or_gain_the_head_says_so() -> None:
    measure = measured({"new": BETTER, "old": OLD, "sham": SAME, "start": OLD})
    head: Callable[..., str] = lambda *all_: judgement.head_of(  # noqa: E731
        "top1", ARMS, {"top1": measure}, [compare(one, measure) for one in all_]
    )
    assert head(GAIN) == judgement.UNCONTROLLED
    assert head(CONTROL) == f"{judgement.NO_GAIN}; 1 of 1 statements hold"
    assert head(replace(GAIN, right="start"), CONTROL) == judgement.REPRODUCED  # no parent: against the start
    even = Comparison("the control is like the parent", "top1", "sham", "old", "equal", essential=True, margin=0.001)
    assert head(GAIN, even) == judgement.NOT_TOLD_APART
    assert head(GAIN, replace(CONTROL, left="old", right="new")) == judgement.CONTROL_SAYS_NO


def test_what_decides_on_another_arm_does_not_speak_of_this_one() -> None:
    measure = measured({"new": BETTER, "old": OLD, "sham": SAME, "start": BETTER})
    other = Comparison("another form wins too", "top1", "start", "sham", "below", essential=True)
    judged: Any = ("top1", ARMS, {"top1": measure}, [compare(one, measure) for one in (GAIN, CONTROL, other)])
    assert judgement.head_of(*judged) == judgement.REPRODUCED
    assert judgement.effect_text(*judged).endswith("control loses it: yes")
    alone: Any = (*judged[:3], [compare(one, measure) for one in (GAIN, other)])
    assert judgement.head_of(*alone) != judgement.REPRODUCED  # there is no other control, so this one counts


def test_the_effect_in_numbers() -> None:
    compared = compare(GAIN, measured({"new": [0.52, 0.56, 0.54], "old": OLD}))
    assert compared.differences == pytest.approx((0.02, 0.05, 0.02))
    assert (compared.as_expected, compared.n, compared.verdict) == (3, 3, "not shown")
    assert judgement.plus_minus(compared, "fraction") == "+3.0 ± 4.3 points"
    assert judgement.plus_minus(compared, "number") == "+0.03 ± 0.043"
    assert judgement.expectation_text("equal", 0.01, "fraction") == "within ±1.0 points"


def test_rankings() -> None:
    measure = measured({"new": [3.0, 1.0, None], "old": [2.0, 2.0, 2.0], "sham": [1.0, 3.0, 3.0]})
    ranked = rank(Ordering("as said", "top1", ("new", "old", "sham")), measure)
    assert ranked.taus == (1.0, -1.0, None)
    assert (ranked.mean_tau, ranked.in_order, ranked.n) == (0.0, 1, 2)


# ------------------------------------------------------------------------------------------------------------ checks


def logit_scale(found: Found) -> float:
    return float(found.own().record.metrics["logit_scale"])


def made_experiment(seeds: int) -> Experiment:
    """Method, parent and control from a start that they share."""
    own = [f"{of}{arm}_s{seed}" for arm in ("new", "old", "sham") for seed in range(seeds) for of in ("", "evaluate_")]
    top1 = Measure("top-1", "higher", "test", "zero", "top1")
    return Experiment(
        stages=dict.fromkeys(["start", "evaluate_start", *own], ANY),
        arms={name: Arm(f"arm {name}", role) for name, role in ROLES.items()},
        measures={"top1": top1, "scale": Measure("scale", "none", compute=logit_scale, unit="number", arms=("new",))},
        comparisons=(GAIN, CONTROL),
        seeds=seeds,
        headline="top1",
        data="made up",
        orderings=(Ordering("new first", "top1", ("new", "old")),),
    )


def made_method(experiment: Callable[[int], Experiment] = made_experiment) -> Method:
    said = {name: f"its {name} <b>" for name in ("title", "paper", "licence", "claim", "formula", "start", "result")}
    return Method(name="made", deviations=("one",), limits=(), recipe="tiny", experiment=experiment, **said)


def test_a_right_experiment_passes() -> None:
    assert make_experiment(made_method(), 2).seeds == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"headline": "top2"}, "headline: 'top2' is unknown; did you mean 'top1'?"),
        ({"seeds": 3}, "seeds: 3 where 2 were asked for"),
        ({"comparisons": (replace(GAIN, left="newer"),)}, "comparisons.0: 'newer' is unknown; did you mean 'new'?"),
        ({"comparisons": (replace(GAIN, measure="scale"),)}, "arm 'old' is not measured by 'scale'"),
        ({"comparisons": (replace(GAIN, expect="equal"),)}, "`margin` goes with `equal`"),
        ({"comparisons": (replace(GAIN, margin=0.1),)}, "`margin` goes with `equal`"),
        (
            {"measures": {"top1": Measure("x", "higher")}, "orderings": ()},
            "measures.top1: neither split, task and metric",
        ),
        (
            {"orderings": (Ordering("x", "top1", ("new", "new")),)},
            "orderings.0.arms: name at least two arms, each once",
        ),
        ({"stages": {"start": ANY}}, "arm 'new' has no stage 'evaluate_new_s0'"),
    ],
)
def test_a_wrong_experiment_is_refused_before_anything_runs(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=r"^method made: ") as error:
        make_experiment(made_method(lambda seeds: replace(made_experiment(seeds), **changed)), 2)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- the card

TOP1 = {"new": [0.55, 0.56, 0.575], "old": [0.50, 0.51, 0.52], "sham": [0.50, 0.515, 0.51]}


def put(root: Path, name: str, stage: str, parents: Mapping[str, Artifact] = {}, **said: Any) -> Artifact:
    """Make an artifact as a stage would have, with what is said of it, and the time that it took."""
    report, seconds = said.pop("report", None), said.pop("seconds", 12.0)
    prints = {role: parent.fingerprint for role, parent in parents.items()}
    out = Output(str(root), name, fingerprint(stage, 1, {"name": name}, prints))
    kind = {"train": "checkpoint", "model": "checkpoint"}.get(stage, "evaluation")
    record = Record(kind=kind, stage=stage, revision=1, fingerprint=fingerprint(stage, 1, {"name": name}, prints),
                    config={"name": name}, parents=prints, **said)  # fmt: skip
    with out.lock():
        if report is not None:
            storage.write_json(out.at("report.json"), {"rows": report})
        made = out.commit(record)
    took = Measurement(seconds=seconds, start_seconds=2.0, kind=stage, pairs=1000 if stage == "train" else 0,
                       flops=5e6 if stage == "train" else None, device="a CPU", cpus=2.0)  # fmt: skip
    storage.write_json(measurement_uri(str(root), out.name), took.model_dump(mode="json"))
    return made


def number(value: float | None, metric: str = "top1", **more: Any) -> dict[str, Any]:
    return {"set": "scenes", "split": "test", "task": "zero", "metric": metric, "value": value, "unit": "fraction",
            "n": 100, "chance": 0.1, "baseline": "", **more}  # fmt: skip


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Artifact]:
    """What the made experiment leaves with three seeds."""
    root = tmp_path / "runs"
    base = put(root, "base", "train")
    made = {"base": base, "start": put(root, "start", "train", {"init": base}, counts={"parameters": 5000})}
    made["evaluate_start"] = put(root, "evaluate_start", "evaluate", report=[number(0.3)])
    for arm, values in TOP1.items():
        for seed, value in enumerate(values):
            metrics = {"logit_scale": 10.0 + seed, "active_parameters": 4000, "forward_flops_per_pair": 2e6}
            made[f"{arm}_s{seed}"] = put(root, f"{arm}_s{seed}", "train", {"init": made["start"]},
                                         counts={"parameters": 5000}, metrics=metrics, seconds=12.0 + seed)  # fmt: skip
            rows = [number(0.99, baseline="majority"), number(value), number(0.7, "top5", n=7)]
            made[f"evaluate_{arm}_s{seed}"] = put(root, f"evaluate_{arm}_s{seed}", "evaluate", report=rows)
    return made


@pytest.fixture
def card(artifacts: dict[str, Artifact]) -> Card:
    return make_card(made_method(), made_experiment(3), artifacts, "clipworks reproduce made --seeds 3", {"torch": "2"})


def test_the_card(card: Card) -> None:
    measure = card.measures["top1"]
    assert {arm: list(values) for arm, values in measure.values.items()} == {**TOP1, "start": [0.3] * 3}
    assert (measure.place, measure.samples, measure.chance) == ("scenes/test/zero/top1", 100, 0.1)
    assert measure.means["old"].mean == pytest.approx(0.51)
    assert card.measures["scale"].values == {"new": (10.0, 11.0, 12.0)}
    gain = card.comparisons[0]
    assert gain.mean == pytest.approx(0.155 / 3)  # of 0.05, 0.05 and 0.055, whose deviation is 0.005 / sqrt(3)
    assert gain.high == pytest.approx(0.155 / 3 + T_2 * 0.005 / 3)
    assert (gain.as_expected, gain.n, gain.verdict) == (3, 3, "holds")
    assert card.head == judgement.REPRODUCED
    assert card.effect == "+5.2 ± 0.7 points top-1 vs parent; control loses it: yes"
    assert (card.orderings[0].mean_tau, card.orderings[0].in_order) == (1.0, 3)


def test_what_arms_cost(card: Card) -> None:
    cost = card.arms["new"].cost
    assert (cost.parameters, cost.active_parameters, cost.forward_flops_per_pair) == (5000, 4000, 2e6)
    assert (cost.training_flops, cost.training_pairs) == (5e6, 1000)  # the start's own training is not the arm's
    assert cost.training_pairs_per_second == pytest.approx(1000 / 11, rel=1e-5)  # 10, 11, 12 s behind the start-up
    assert card.arms["start"].cost.training_flops == 1e7  # its own and that of what it was made from
    assert card.arms["start"].cost.active_parameters is None
    assert (card.device, card.cpus, card.stages) == ("a CPU", 2.0, 21)
    assert card.compute_seconds == pytest.approx(21 * 12 + 3 * (1 + 2))


def test_what_was_not_measured_stays_unknown(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    trained = artifacts["new_s0"]
    Path(measurement_uri(trained.root, storage.name_of(trained.uri))).unlink()
    kept = {name: one for name, one in artifacts.items() if not name.startswith("sham_")}
    found = make_card(made_method(), made_experiment(3), kept, "", {})
    assert found.arms["new"].cost.training_flops is None
    assert found.arms["new"].cost.training_pairs is None
    assert found.arms["sham"].cost.parameters is None  # an arm without a checkpoint of its own
    assert found.compute_seconds is None


def test_a_number_that_no_evaluation_has_is_named(artifacts: dict[str, Artifact]) -> None:
    wrong = Measure("x", "higher", "test", "zero", "top_1", arms=("new", "old", "sham"))
    with pytest.raises(MethodError, match=r"new, seed 0: no number 'scenes/test/zero/top_1' .*did you mean '.*top1'"):
        make_card(made_method(), replace(made_experiment(3), measures={"top1": wrong}), artifacts, "", {})


def test_a_value_without_meaning_is_not_zero(artifacts: dict[str, Artifact]) -> None:
    undefined = Measure("undefined", "none", compute=lambda found: math.nan)
    one = replace(made_experiment(3), measures={"top1": undefined})
    found = make_card(made_method(), one, artifacts, "", {})
    assert found.measures["top1"].values["new"] == (None, None, None)
    assert found.comparisons[0].verdict == "not shown"
    assert found.head == judgement.NOT_REPRODUCED
    assert "no interval" in render(made_method(), found)


class Page(HTMLParser):
    """Counts elements, and fails on one that is closed where another is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def test_the_page_shows_every_seed_and_needs_nothing_else(card: Card) -> None:
    text = render(made_method(), card)
    page = Page(text)
    seeds = [attrs for tag, attrs in page.found if tag == "circle"]
    in_measures = 4 * 3 + 3  # four arms of one measure, one of the other
    assert len(seeds) == in_measures + 2 * 3  # and of two comparisons
    assert all(0 <= float(str(one["cx"]).rstrip("%")) <= 100 for one in seeds)
    assert "its claim &lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"(src|href)=|@import|url\(", text)
    assert len(text.encode()) < 60_000
    assert "Reproduced at this scale." in text


@pytest.mark.parametrize("values", [[0.55, 0.57], [0.0], [], [0.3, 0.3], [-2.0, 5.0], [1e-9, 2e-9]])
def test_an_axis_holds_its_values_and_round_ticks(values: list[float]) -> None:
    axis = axis_around(values)
    assert all(axis.low < value < axis.high for value in values)
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert 2 <= len(axis.ticks) <= 9


# ---------------------------------------------------------------------------------------------------------- for real


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The method `example`, in a folder that a test may edit."""
    folder = tmp_path / "methods"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("example_method.py"), folder / "example.py")
    monkeypatch.setattr(methods, "__path__", [str(folder)])
    monkeypatch.delitem(sys.modules, "pipelines.methods.example", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return folder / "example.py"


def make_stages(root: Path, seeds: int) -> None:
    """Make the example's artifacts in this process: a run of them would start two dozen others."""
    recipe = recipe_of(load_method("example"), make_experiment(load_method("example"), seeds))
    place, made = Place(root=str(root), ranks="local", cpus_per_worker=1, loader_workers=0), dict[str, str]()
    for name in recipe.order():
        parents = {role: made[stage] for role, (stage, _) in recipe.stages[name].roles().items()}
        made[name] = run_stage(name, recipe.stages[name], parents, place).uri


@pytest.mark.timeout(600)  # two trainings, each in a process of its own
def test_the_card_of_real_trainings(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_stages(tmp_path / "runs", 2)
    words = ["reproduce", "example", "--seeds", "2", "--root", "runs"]
    assert main(words) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert "0 of 12 stages to run" in out
    folder = tmp_path / "runs" / "methods"
    assert f"card: {folder}/example.html" in out
    card = read_card(str(folder / "example.json"))
    assert card is not None
    assert card.head in out
    for seed in range(2):
        made = open_artifact(str(next((tmp_path / "runs").glob(f"evaluate_trained_s{seed}-*"))))
        value = made.record.metrics["digits/test/digits/top1"]["value"]
        assert card.measures["top1"].values["trained"][seed] == pytest.approx(value, rel=1e-5)
    assert card.measures["top1"].values["start"][0] == card.measures["top1"].values["start"][1]
    assert card.arms["trained"].cost.training_pairs == 640
    assert (card.arms["trained"].cost.training_flops or 0) > 0
    assert card.arms["start"].cost.training_pairs == 0
    page, numbers = (folder / "example.html").read_bytes(), (folder / "example.json").read_bytes()
    assert str(tmp_path).encode() not in page + numbers

    (tmp_path / "docs" / "methods").mkdir(parents=True)
    assert main(words) == 0
    assert (tmp_path / "docs/methods/example.html").read_bytes() == page
    assert (tmp_path / "docs/methods/example.json").read_bytes() == numbers


@pytest.mark.e2e
@pytest.mark.timeout(900)  # of a dozen processes, where other work has the cores
def test_a_stage_that_fails_leaves_no_card(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    broken = 'HoldoutFraction(field="no_such_field", fraction=0.2)'
    example.write_text(example.read_text().replace("HoldoutFraction(fraction=0.2)", broken))
    assert load_method("example").name == "example"
    assert main(["reproduce", "example", "--seeds", "2", "--root", "runs", "--out", "cards"]) == 2
    said = capsys.readouterr().err
    assert "no_such_field" in said
    assert "continue: clipworks reproduce example --seeds 2 --root runs --out cards" in said
    assert not (tmp_path / "cards").exists()
