"""What a run would take: by hand, from what was measured where, and never a number that nothing tells."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import storage
from data.artifacts import Output, Record
from data.measurement import Measurement, cpu_model, measurement_uri
from data.place import Place
from data.spec import digest
from pipelines.cli import main
from pipelines.cluster.spec import Cluster, parse_cluster
from pipelines.overrides import override
from pipelines.planning.budget import BudgetError, check_budget, parse_budget
from pipelines.planning.cost import RunEstimate, StageEstimate, Sum, estimate_run, reserved, target_of
from pipelines.planning.plan import StagePlan, make_plan
from pipelines.planning.text import size_text
from pipelines.planning.throughput import Measured, Target, Work, estimate_time, read_measurements
from pipelines.planning.traffic import size_of
from pipelines.recipe import Recipe, parse_recipe
from pipelines.yaml_text import to_yaml
from training.sizes import count, model_config
from training.workload import embedding_flops, training_flops

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


@pytest.fixture
def recipe(small: dict[str, Any]) -> Recipe:
    return parse_recipe(small)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(root=str(tmp_path / "runs"), cpus_per_worker=2)


@pytest.fixture
def plans(recipe: Recipe, place: Place) -> dict[str, StagePlan]:
    return {plan.name: plan for plan in make_plan(recipe, place)}


def took(plan: StagePlan, seconds: float = 10.0, **changes: Any) -> Measured:
    """A measurement of the very stage, on two CPUs of this machine."""
    values: dict[str, Any] = {
        "seconds": seconds, "start_seconds": 0.0, "stage": plan.name, "kind": plan.kind,
        "fingerprint": plan.fingerprint, "config": digest(plan.spec.resolved()), "pairs": 100, "workers": 1,
        "cpus": 2.0, "gpus": 0, "device": cpu_model(),
    }  # fmt: skip
    return Measured(str(plan.artifact_name), Measurement(**{**values, **changes}))


def other(plan: StagePlan, seconds: float = 10.0, **changes: Any) -> Measured:
    """A measurement of another stage of the same kind and settings."""
    name = f"{plan.name}-0123456789ab"
    return took(plan, seconds, **{"fingerprint": "0" * 64, **changes})._replace(artifact=name)


def here(workers: int = 1, cpus: float = 2.0) -> Target:
    return Target(workers, cpus, 0, cpu_model())


def work(plan: StagePlan, pairs: int | None = 100, flops: float | None = None, **parents: str) -> Work:
    return Work(plan, pairs, flops, parents)


def test_the_very_stage_takes_what_it_took(plans: dict[str, StagePlan]) -> None:
    time = estimate_time(work(plans["match"]), here(), [took(plans["match"], 12.5)])
    assert (time.seconds, time.is_rough) == (12.5, False)
    assert time.basis == f"measured 8 pairs/s on 2 CPUs in {plans['match'].artifact_name}"


def test_by_hand_start_up_stays_and_the_rest_grows_with_pairs_and_shrinks_with_workers(
    plans: dict[str, StagePlan],
) -> None:
    measured = [other(plans["match"], 10.0, start_seconds=4.0)]
    time = estimate_time(work(plans["match"], 500), here(workers=3), measured)
    assert time.seconds == pytest.approx(4.0 + 6.0 * 5 / 3)
    assert time.is_rough
    assert "x5 the work, on 3 workers, taken as linear" in time.basis


def test_training_goes_with_flops_and_threads(plans: dict[str, StagePlan]) -> None:
    measured = [other(plans["pretrain"], 30.0, start_seconds=10.0, pairs=96, flops=1e12)]
    time = estimate_time(work(plans["pretrain"], 96, 4e12), here(cpus=8.0), measured)
    assert time.seconds == pytest.approx(10.0 + 20.0 * 4 / 4)


def test_another_model_without_counted_flops_is_unknown(plans: dict[str, StagePlan]) -> None:
    measured = [other(plans["pretrain"], parents={"init": "a" * 64})]
    assert estimate_time(work(plans["pretrain"], 100, None, init="b" * 64), here(), measured).seconds is None
    assert estimate_time(work(plans["pretrain"], 200, None, init="a" * 64), here(), measured).seconds == 20.0


@pytest.mark.parametrize("pairs", [1, 10, 100, 1000, 10_000_000])
def test_more_pairs_never_take_less_and_more_workers_never_more(plans: dict[str, StagePlan], pairs: int) -> None:
    measured = [other(plans["match"], 10.0, start_seconds=2.0)]

    def seconds(pairs: int, workers: int) -> float:
        found = estimate_time(work(plans["match"], pairs), here(workers), measured).seconds
        assert found is not None
        return found

    assert seconds(pairs + 1, 1) > seconds(pairs, 1) >= seconds(pairs, 2) >= 2.0
    assert math.isclose(seconds(pairs, 1) - 2.0, 8.0 * pairs / 100)


def test_of_several_measurements_the_most_alike_counts(plans: dict[str, StagePlan]) -> None:
    plan = plans["match"]
    exact, near = took(plan, 1.0), other(plan, 200.0, pairs=110)
    far, unlike = other(plan, 3.0, pairs=1), other(plan, 4.0, config="x" * 64, pairs=100)
    assert estimate_time(work(plan), here(), [unlike, far, near, exact]).seconds == 1.0
    assert estimate_time(work(plan), here(), [unlike, far, near]).seconds == pytest.approx(200 * 100 / 110)
    time = estimate_time(work(plan), here(), [unlike])
    assert time.seconds == 4.0
    assert time.is_rough
    assert "other settings" in time.basis


@pytest.mark.parametrize(
    ("changes", "target", "reason"),
    [
        ({}, Target(4, 32.0, 4, H100, is_here=False), "measured on 2 CPUs only"),
        ({"gpus": 1, "device": A100}, Target(1, 8.0, 1, H100, is_here=False), f"measured on 1 x {A100} only"),
        ({"gpus": 1, "device": A100}, here(), "say nothing of CPUs"),
        ({"is_whole": False}, here(), "was continued after an interruption"),
    ],
)
def test_nothing_follows_from_another_device_or_half_a_stage(
    plans: dict[str, StagePlan], changes: dict[str, Any], target: Target, reason: str
) -> None:
    time = estimate_time(work(plans["pretrain"], 100, 1e12), target, [took(plans["pretrain"], flops=1e12, **changes)])
    assert time.seconds is None
    assert reason in time.basis


def test_without_a_measurement_a_gpu_is_taken_by_its_data_sheet_only_if_the_cluster_file_says_how_well_it_is_used(
    plans: dict[str, StagePlan],
) -> None:
    bare = Target(8, 64.0, 8, None, is_here=False)
    assert estimate_time(work(plans["pretrain"], 100, 1e15), bare, []).seconds is None
    full = Target(8, 64.0, 8, H100, utilisation=0.5, peak_flops=989e12, is_here=False)
    time = estimate_time(work(plans["pretrain"], 100, 8 * 989e12), full, [])
    assert time.seconds == pytest.approx(2.0)
    assert "without start-up" in time.basis
    started = [took(plans["pretrain"], flops=1e12, start_seconds=7.0)]  # on CPUs: only its start-up tells something
    assert estimate_time(work(plans["pretrain"], 100, 8 * 989e12), full, started).seconds == pytest.approx(9.0)
    assert estimate_time(work(plans["match"]), full._replace(gpus=0), []).seconds is None
    assert estimate_time(work(plans["pretrain"], 100, None), full, []).seconds is None


def test_unknown_pairs_stay_unknown(plans: dict[str, StagePlan]) -> None:
    time = estimate_time(work(plans["match"], None), here(), [other(plans["match"])])
    assert time.seconds is None
    assert "how many pairs it goes through is not known" in time.basis


def test_a_file_of_an_earlier_version_is_good_for_its_stage_here_only(
    plans: dict[str, StagePlan], tmp_path: Path
) -> None:
    storage.write_json(measurement_uri(str(tmp_path), "match-0123456789ab"), {"seconds": 3.0})
    storage.write_json(measurement_uri(str(tmp_path), "split-0123456789ab"), ["not ours"])
    measured = read_measurements([str(tmp_path)])
    assert [one.stage for one in measured] == ["match"]
    assert estimate_time(work(plans["match"]), here(), measured).seconds == 3.0
    assert estimate_time(work(plans["match"]), here()._replace(is_here=False), measured).seconds is None
    assert estimate_time(work(plans["curate"]), here(), measured).seconds is None


def test_measurements_are_read_from_a_bucket_too(plans: dict[str, StagePlan], seaweed: Any) -> None:
    root = f"s3://{seaweed.bucket}/measured"
    for number in range(20):
        one = other(plans["match"], float(number), ended=1000.0 + number).took
        storage.write_json(measurement_uri(root, f"match-{number:012x}"), one.model_dump(mode="json"))
    found = read_measurements([root])
    assert [one.took.seconds for one in found] == [float(number) for number in range(19, -1, -1)]  # newest first


def test_flops_by_hand(recipe: Recipe) -> None:
    model = count("ViT-B-32")
    models = {"init": model, "phases.refine.teachers.first.checkpoint": model}
    assert model.training_flops() == 3 * (model.forward_flops() or 0)
    forward = model.forward_flops() or 0
    spec: Any = recipe.stages["pretrain"]
    assert training_flops(spec, models) == 64 * 3 * forward + 32 * (3 + 1) * forward  # the second phase has a teacher
    assert training_flops(spec, {"init": model}) is None
    embed: Any = recipe.stages["embed"]
    assert embedding_flops(embed, 5, {"checkpoint": model}) == 5 * forward
    assert embedding_flops(embed, 5, {}) is None


# ------------------------------------------------------------------------------------------------- the whole estimate


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., Cluster]:
    def make(**changes: Any) -> Cluster:
        root = str(tmp_path / "cluster")
        plain = {
            "kfp": {"endpoint": "http://127.0.0.1:1"}, "volumes": {"claim": str(tmp_path)},
            "place": {"root": root, "train_workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 8},
            "task": {"cpus": 3}, "launcher": {"cpus": 0.5}, "ray": {"head": {"cpus": 2}},
            "prices": {"gpu_hour": 2.0, "cpu_hour": 0.1, "gb_read": 1000.0},
            "hardware": {"gpu": H100, "utilisation": 0.5},
        }  # fmt: skip
        return parse_cluster({**plain, **changes}, "cluster.yaml")

    return make


def finish(plan: StagePlan, root: str, size: int, measured: Measured | None = None, **counts: int) -> None:
    """Make an artifact of so many bytes besides its record, and say what it took."""
    assert plan.fingerprint
    out = Output(root, plan.name, plan.fingerprint)
    with out.lock():
        if plan.kind == "ingest":
            shard = {"name": "0", "url": "shards/0.tar", "pairs": counts["pairs"], "bytes": size, "sha256": ""}
            storage.write_json(out.at("shards.json"), [shard])
            storage.write_bytes(out.at("shards", "0.tar"), b"x" * size)
        else:
            storage.write_bytes(out.at("data.bin"), b"x" * size)
        if plan.spec.MAKES == "checkpoint":
            storage.write_json(out.at("open_clip_config.json"), {"model_cfg": model_config("ViT-B-32")})
        made = Record(
            kind=plan.spec.MAKES, stage=plan.kind, revision=1, fingerprint=plan.fingerprint, config={}, counts=counts
        )
        out.commit(made)
    if measured:
        storage.write_json(measurement_uri(root, str(plan.artifact_name)), measured.took.model_dump(mode="json"))


def stage(estimate: RunEstimate, name: str) -> StageEstimate:
    return next(one for one in estimate.stages if one.plan.name == name)


def test_hours_and_money_by_hand(
    recipe: Recipe, plans: dict[str, StagePlan], place: Place, cluster: Callable[..., Cluster]
) -> None:
    on = cluster()
    finish(plans["pairs"], place.root, 7000, took(plans["pairs"]), pairs=100, shards=1)
    finish(plans["split"], place.root, 500, took(plans["split"], 3600.0), pairs=100, train=80, unseen=20)
    where = on.whole_place()
    estimate = estimate_run(recipe, make_plan(recipe, where, [place.root]), where, on, [place.root])
    split = stage(estimate, "split")
    assert split.time.seconds == 3600.0
    assert (split.cpus, split.gpus, split.cpu_hours, split.gpu_hours) == (3.0, 0, 3.0, 0.0)  # its task's pod
    shards_json = size_of(make_plan(recipe, place)[0].artifact).rest  # type: ignore[arg-type] # without pictures
    assert split.bytes_read == shards_json
    assert split.money == pytest.approx(3.0 * 0.1 + shards_json / 1e9 * 1000.0)
    train = stage(estimate, "pretrain")
    assert (train.cpus, train.gpus) == (0.5 + 2 + 4 * 8, 4)  # launcher, head, ranks
    assert train.time.seconds is None
    assert train.money is None
    money = estimate.total("money")
    assert not money.is_whole
    assert money.value == pytest.approx(sum(one.money for one in estimate.stages if one.money is not None))
    assert not estimate.elapsed.is_whole


def test_a_price_that_is_not_given_is_unknown_and_0_is_free(
    recipe: Recipe, plans: dict[str, StagePlan], place: Place, cluster: Callable[..., Cluster]
) -> None:
    finish(plans["pairs"], place.root, 7000, took(plans["pairs"]), pairs=100)
    for prices, money in (({}, None), ({"gpu_hour": 1}, None), ({"cpu_hour": 0}, 0.0), ({"cpu_hour": 3.6}, 0.03)):
        on = cluster(prices=prices)
        where = on.whole_place()
        estimate = estimate_run(recipe, make_plan(recipe, where, [place.root]), where, on, [place.root])
        assert stage(estimate, "pairs").money == (money if money is None else pytest.approx(money))


def test_training_reads_a_picture_each_time_it_sees_it_and_curation_reads_none(
    recipe: Recipe, plans: dict[str, StagePlan], place: Place
) -> None:
    finish(plans["pairs"], place.root, 10_000, pairs=100)
    for name in ("split", "match", "curate", "init"):
        finish(plans[name], place.root, 50, pairs=100, kept=80, train=80, unseen=20)
    now = make_plan(recipe, place)
    sizes = {plan.name: size_of(plan.artifact) for plan in now if plan.artifact}
    assert sizes["pairs"].pictures == 10_000
    estimate = estimate_run(recipe, now, place)
    rest = sum(sizes[name].rest for name in ("init", "pairs", "curate")) + sizes["init"].rest  # it is a teacher too
    assert stage(estimate, "pretrain").bytes_read == rest + 96 * 100
    changed = override(recipe, ["stages.curate.seed=1"])
    curate = stage(estimate_run(changed, make_plan(changed, place), place), "curate")
    assert curate.bytes_read == sum(sizes[name].rest for name in ("pairs", "split", "match"))


def test_what_is_reused_takes_nothing_and_nothing_is_read_for_it(
    recipe: Recipe, plans: dict[str, StagePlan], place: Place
) -> None:
    for plan in plans.values():
        finish(plan, place.root, 10, pairs=12)
    estimate = estimate_run(recipe, make_plan(recipe, place), place)
    assert estimate.elapsed == Sum(0.0, True)
    assert [one.money for one in estimate.stages if one.runs] == []
    check_budget(estimate, parse_budget("0h", None))


def test_the_recipes_own_minutes_stand_where_nothing_was_measured(recipe: Recipe, place: Place) -> None:
    estimate = estimate_run(recipe, make_plan(recipe, place), place)
    assert (estimate.elapsed, estimate.basis) == (Sum(180.0, True), "the recipe, on 2 CPU cores")


def test_on_a_cluster_independent_stages_run_at_once(
    recipe: Recipe, plans: dict[str, StagePlan], place: Place, cluster: Callable[..., Cluster]
) -> None:
    for name, seconds in (("pairs", 5.0), ("split", 7.0), ("match", 3.0), ("curate", 2.0), ("init", 100.0)):
        finish(plans[name], place.root, 10, took(plans[name], seconds, pairs=12), pairs=12)
    on = cluster(hardware={})
    where = on.whole_place()
    estimate = estimate_run(recipe, make_plan(recipe, where, [place.root]), where, on, [place.root])
    assert estimate.elapsed == Sum(100.0, False)  # pairs, split, match and curate go on beside init
    local = Place(root=where.root, cpus_per_worker=2)
    one_by_one = estimate_run(recipe, make_plan(recipe, local, [place.root]), local, None, [place.root])
    assert one_by_one.elapsed == Sum(117.0, False)


def test_more_workers_than_shards_are_paid_and_not_counted_on(
    recipe: Recipe, plans: dict[str, StagePlan], place: Place, cluster: Callable[..., Cluster]
) -> None:
    finish(plans["pairs"], place.root, 10, took(plans["pairs"], pairs=100), pairs=100, shards=2)
    finish(plans["split"], place.root, 10, pairs=100)
    finish(plans["match"], place.root, 10, took(plans["match"], 40.0), pairs=100)
    on = cluster(place={"root": str(Path(place.root).parent / "cluster"), "data_workers": 8})
    where = on.whole_place()
    estimate = estimate_run(recipe, make_plan(recipe, where, [place.root]), where, on, [place.root])
    match = stage(estimate, "match")
    assert match.time.seconds == 20.0
    assert match.cpus == 0.5 + 2 + 8


def test_pods_are_counted_where_a_stage_runs(recipe: Recipe, cluster: Callable[..., Cluster]) -> None:
    on = cluster(tasks={"report": {"cpus": 1}}, ray=None)
    where = on.whole_place()
    for name, pods in {"report": (1.0, 0), "split": (3.0, 0), "pretrain": (3.0, 4)}.items():
        spec = recipe.stages[name]
        assert reserved(spec.kind, target_of(spec, where, on), where, on) == pods


# ------------------------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("50", 50, "money"), (" 7.5 usd ", 7.5, "money"), ("2h", 2, "hours"), ("90min", 1.5, "hours")],
)
def test_budgets(text: str, amount: float, unit: str) -> None:
    budget = parse_budget(text, "USD")
    assert (budget.amount, budget.unit) == (amount, unit)


@pytest.mark.parametrize(("text", "currency"), [("fifty", "USD"), ("-1", "USD"), ("50 EUR", "USD"), ("50", None)])
def test_budgets_that_are_none(text: str, currency: str | None) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(text, currency)
    assert "\n" not in str(caught.value)


def test_a_run_above_its_budget_is_refused_with_the_dearest_stage(recipe: Recipe, place: Place) -> None:
    plans = make_plan(recipe, place)
    for number, plan in enumerate(plans):
        storage.write_json(
            measurement_uri(place.root, str(plan.artifact_name)), took(plan, 60.0 * (number + 1)).took.model_dump()
        )
    estimate = estimate_run(recipe, plans, place)
    assert estimate.elapsed == Sum(60.0 * 45, True)
    check_budget(estimate, parse_budget("45min", None))
    with pytest.raises(BudgetError, match=r"take 45 min 00 s, most of it report \(9 min 00 s: .*raise --budget"):
        check_budget(estimate, parse_budget("44min", None))


def test_an_unknown_cost_is_refused_unless_that_is_chosen_and_a_known_part_above_it_always(
    recipe: Recipe, place: Place
) -> None:
    plans = make_plan(recipe, place)
    storage.write_json(
        measurement_uri(place.root, str(plans[0].artifact_name)), took(plans[0], 7200.0).took.model_dump()
    )
    estimate = estimate_run(recipe, plans, place)
    with pytest.raises(BudgetError, match=r"cannot be checked: split, match, .*--budget-unknown-ok"):
        check_budget(estimate, parse_budget("3h", None))
    check_budget(estimate, parse_budget("3h", None), unknown_ok=True)
    with pytest.raises(BudgetError, match="at least 2 h 00 min"):
        check_budget(estimate, parse_budget("1h", None), unknown_ok=True)


def test_plan_on_a_cluster_in_words_and_json(
    small_file: Path, cluster: Callable[..., Cluster], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(to_yaml(cluster().model_dump(mode="json", exclude_defaults=True)))
    assert main(["plan", str(small_file), "--on", str(path)]) == 0
    said = capsys.readouterr().out
    assert "GPU h" in said.splitlines()[0]
    assert "money: ? USD" in said
    assert main(["plan", str(small_file), "--on", str(path), "--json", "--budget", "5"]) == 2
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert rows["total"]["money"] == {"value": None, "is_whole": False}
    assert rows["currency"] == "USD"
    assert captured.err.startswith("error: budget 5 USD: cannot be checked: ")
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "cluster").exists()  # a plan writes nothing


def test_a_run_above_its_budget_starts_nothing(small_file: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    line = refused("run", small_file, "--root", tmp_path / "runs", "--budget", "2min")
    assert "estimated to take 3 min 00 s" in line
    assert not (tmp_path / "runs").exists()


def test_a_cluster_has_its_own_place(small_file: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "leave out --place and --root" in refused("plan", small_file, "--on", "c.yaml", "--root", tmp_path)


@pytest.mark.parametrize(
    ("size", "text"), [(None, "?"), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")]
)
def test_sizes(size: float | None, text: str) -> None:
    assert size_text(size) == text
