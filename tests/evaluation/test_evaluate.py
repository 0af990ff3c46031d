"""The evaluate stage on artifacts written by hand: tasks, controls, drops, the guard, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.artifacts import ArtifactError
from data.errors import EvaluationError
from data.features import write_features
from evaluation.rows import rows_of as read_rows_of
from evaluation.specs import Bootstrap, EvaluateSpec, Retrieval, Scored, ZeroShot
from training.specs import Prompts


@pytest.fixture
def checkpoint(world):
    return world.checkpoint("pretrain", world.select())


def entries(artifact):
    return json.loads(Path(artifact.at("report.json")).read_text())["rows"]


def rows_of(artifact, baseline=""):
    rows = [row for row in entries(artifact) if row["baseline"] == baseline]
    return {(row["split"], row["task"], row["metric"]): row for row in rows}


def test_a_perfect_model_finds_everything(world, checkpoint):
    rows = rows_of(world.evaluate("evaluate", world.embed("embed", checkpoint, skill=1e4)))
    for split, candidates in (("unseen_vendor", 40), ("unseen_concepts", 8)):
        row = rows[split, "captions", "image_to_text_R@1"]
        assert (row["value"], row["high"], row["candidates"], row["ties"]) == (1, 1, candidates, 0)
        assert row["chance"] == pytest.approx(1 / candidates)
        assert rows[split, "captions", "text_to_image_median_rank"]["value"] == 1
    # two vendors draw each unseen concept: 16 pictures, 8 captions with two pictures each
    row = rows["unseen_concepts", "captions", "text_to_image_R@1"]
    assert (row["n"], row["candidates"], row["clusters"]) == (8, 16, 8)
    assert row["chance"] == pytest.approx(2 / 16)
    assert rows["unseen_vendor", "groups", "top1"]["chance"] == 0.25


def test_noise_is_at_chance_and_a_constant_model_below_it(world, checkpoint):
    noise = rows_of(world.evaluate("noise", world.embed("embed-noise", checkpoint, skill=0)))
    row = noise["unseen_vendor", "captions", "image_to_text_R@5"]
    assert row["low"] <= row["chance"] <= row["high"]
    constant = rows_of(world.evaluate("constant", world.embed("embed-constant", checkpoint, constant=True)))
    shares = [row for row in constant.values() if row["unit"] == "fraction"]
    assert all(row["value"] <= row["chance"] for row in shares if row["candidates"] > 5)
    assert {row["value"] for key, row in constant.items() if key[2] in ("top1", "image_to_text_R@1")} == {0}
    assert all(row["ties"] == row["n"] for row in constant.values())


def test_rows_and_draws_give_back_the_metrics(world, checkpoint):
    artifact = world.evaluate("evaluate", world.embed("embed", checkpoint, skill=1))
    found = rows_of(artifact)["unseen_vendor", "groups", "top1"]
    own = pq.read_table(artifact.at("rows", found["file"])).to_pandas()
    assert len(own) == found["n"] == 40
    assert own.correct.mean() == pytest.approx(found["value"])
    assert ((own.label == own.prediction) | (own.ties > 0)).eq((own.correct == 1) | (own.ties > 0)).all()
    assert {row["file"] for row in rows_of(artifact).values()} == {
        f"emoji/{split}/{name}.parquet" for split in ("unseen_vendor", "unseen_concepts")
        for name in ("groups", "captions.image_to_text", "captions.text_to_image")
    }  # fmt: skip
    draws = np.load(artifact.at("draws.npy"))
    assert draws.shape == (len(entries(artifact)), 200)
    for row, own_draws in zip(entries(artifact), draws, strict=True):
        low, high = np.quantile(own_draws, (0.025, 0.975))
        if 0 < row["value"] < 1 or row["unit"] != "fraction":  # at its ends a share has the binomial bound
            assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    metrics = artifact.record.metrics["emoji/unseen_vendor/groups/top1"]
    assert metrics == {name: found[name] for name in ("value", "low", "high", "chance", "n")}
    guard = artifact.record.metrics["guard"]
    assert (guard["selections"], guard["unchecked_selections"], guard["pretrained_elsewhere"]) == (1, 0, [])


def test_baselines_stand_beside_and_know_nothing(world, checkpoint):
    artifact = world.evaluate("evaluate", world.embed("embed", checkpoint, skill=1e4))
    majority, shuffled = (rows_of(artifact, name) for name in ("majority", "shuffled_labels"))
    assert majority["unseen_vendor", "groups", "top1"]["value"] == 0.25
    row = shuffled["unseen_vendor", "groups", "top1"]
    assert row["low"] <= row["chance"] <= row["high"]
    assert not {key for key in artifact.record.metrics if "majority" in key or "shuffled" in key}


def test_a_stage_that_was_stopped_goes_on_at_the_next_task(world, checkpoint, monkeypatch):
    """Stopped after its first task, a stage that is run again makes the bytes of one that was not."""
    from evaluation.tasks import retrieval

    features, right = world.embed("embed", checkpoint), retrieval.answer
    whole = world.evaluate("whole", features, bootstrap=Bootstrap(resamples=100))
    asked = []

    def stopped(spec, subject):
        asked.append(subject.part.name)
        if asked == ["unseen_vendor"]:
            raise KeyboardInterrupt
        return right(spec, subject)

    monkeypatch.setattr(retrieval, "answer", stopped)
    spec = {"bootstrap": Bootstrap(resamples=100, seed=1)}
    with pytest.raises(KeyboardInterrupt):
        world.evaluate("evaluate", features, **spec)
    again = world.evaluate("evaluate", features, **spec)
    assert asked == ["unseen_vendor", "unseen_vendor", "unseen_concepts"]
    values = [[(row["metric"], row["value"], row["n"]) for row in entries(one)] for one in (again, whole)]
    assert values[0] == values[1]


def test_features_of_two_checkpoints_are_refused(world, checkpoint):
    features = world.embed("embed", checkpoint)
    views = world.embed("views", world.checkpoint("other", world.select()), views={"noise": 0.5})
    with pytest.raises(EvaluationError, match="made with different checkpoints"):
        world.evaluate("evaluate", features, views=views)


def test_two_sets_are_scored_side_by_side(world, checkpoint):
    features = world.embed("embed", checkpoint)
    scored = world.evaluate_spec().sets["emoji"]
    spec = EvaluateSpec(
        sets={"first": scored, "second": scored.model_copy(update={"splits": ("unseen_vendor",)})},
        bootstrap=Bootstrap(resamples=100),
    )
    assert isinstance(spec.sets["second"], Scored)
    parents = {"features": features, "pairs": world.shard_set, "split": world.split}
    both = {f"sets.{name}.{role}": parent for name in spec.sets for role, parent in parents.items()}
    rows = entries(world.run("both", spec, **both))
    assert {(row["set"], row["split"]) for row in rows} == {
        ("first", "unseen_vendor"), ("first", "unseen_concepts"), ("second", "unseen_vendor"),
    }  # fmt: skip
    own = [
        [(r["task"], r["metric"], r["baseline"], r["value"], r["low"]) for r in rows if r["set"] == name]
        for name in ("first", "second")
    ]
    assert set(own[1]) < set(own[0])


def test_pairs_without_a_label_or_caption_are_dropped_with_a_reason(make_world, world):
    pairs = list(world.pairs)
    bare = {name: value for name, value in pairs[80].meta.items() if name != "group"}
    pairs[80], pairs[81] = pairs[80]._replace(meta=bare), pairs[81]._replace(captions={})
    other = make_world(pairs)
    artifact = other.evaluate("evaluate", other.embed("embed-dropped", other.checkpoint("c", other.select())))
    rows = rows_of(artifact)
    assert rows["unseen_vendor", "groups", "top1"]["dropped_reasons"] == {"no_label": 1}
    assert rows["unseen_vendor", "captions", "image_to_text_R@1"]["dropped_reasons"] == {"no_caption": 1}
    assert rows["unseen_vendor", "captions", "image_to_text_R@1"]["n"] == 39
    gone = read_rows_of(artifact, rows["unseen_vendor", "groups", "top1"]["file"]).dropped
    assert gone == {pairs[80].uid: "no_label"}


def test_pictures_that_were_not_embedded_are_counted(world, checkpoint):
    features = world.embed("embed", checkpoint)
    uids = world.uids("unseen_vendor")

    def fewer(uri):
        from data.features import FeatureSet

        whole = FeatureSet(features)
        rows = [i for i, uid in enumerate(whole.uids) if uid != uids[0]]
        write_features(uri, [whole.uids[i] for i in rows], whole.images[rows], whole.texts, whole.text_features)

    rows = rows_of(world.evaluate("fewer", world.embed("embed-fewer", checkpoint, change=fewer)))
    assert rows["unseen_vendor", "groups", "top1"]["dropped_reasons"] == {"not_embedded": 1}


def test_template_average_is_normalised_and_order_free(world, checkpoint):
    features = world.embed("embed", checkpoint)
    both = [("{c}", "a picture of a {c}"), ("a picture of a {c}", "{c}")]
    found = [
        rows_of(world.evaluate(f"e{i}", features, tasks={"z": ZeroShot(prompts=Prompts(field="group", templates=t))}))
        for i, t in enumerate(both)
    ]
    assert found[0] == found[1]


def test_a_pair_that_training_kept_is_refused(world):
    leaked = world.uids("unseen_concepts")[3]
    leaky = world.select(kept=[*world.uids("train"), leaked])
    # the leak hides behind a teacher, two steps up
    teacher = world.checkpoint("teacher", leaky)
    student = world.checkpoint("student", world.select(), teacher=teacher)
    with pytest.raises(EvaluationError, match=rf"'unseen_concepts': 1 of 16 pairs .* e\.g\. '{leaked}'"):
        world.evaluate("evaluate", world.embed("embed", student))
    clean = world.checkpoint("clean", world.select())
    assert world.evaluate("evaluate", world.embed("embed-clean", clean)).record.counts["metrics"] > 0


def test_a_selection_of_another_split_is_checked_pair_by_pair(world):
    """What counts is which pairs were trained on, not which stage parted them."""
    import pyarrow as pa

    from data.selection import write_split

    table = pa.table({"uid": list(world.split_of), "split": ["train"] * len(world.split_of)})
    other = world.put("split2", "split", "split", {"pairs": world.shard_set}, lambda uri: write_split(uri, table))
    apart = world.checkpoint("apart", world.select(split=other))
    assert world.evaluate("evaluate", world.embed("embed", apart)).record.metrics["guard"]["selections"] == 1
    leaked = world.uids("unseen_vendor")[0]
    leaky = world.checkpoint("leaky", world.select(kept=[leaked], split=other))
    with pytest.raises(EvaluationError, match=rf"'unseen_vendor': 1 of 40 pairs .* e\.g\. '{leaked}'"):
        world.evaluate("leaked", world.embed("embed-leaky", leaky))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"pretrained": "openai"}, "openai"),
        ({"source": {"weights": "ab" * 32}}, "weights abababababab"),  # a folder in open_clip's layout
        ({"source": {"weights": "ab" * 32, "origin": "cd" * 32}}, "checkpoint cdcdcdcdcdcd"),  # ours, of another root
    ],
)
def test_weights_from_elsewhere_are_named(world, config, name):
    checkpoint = world.checkpoint("pretrain", world.select(), config=config)
    artifact = world.evaluate("evaluate", world.embed("embed", checkpoint))
    assert artifact.record.metrics["guard"]["pretrained_elsewhere"] == [name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ("unseen_vendr",)}, "did you mean 'unseen_vendor'"),
        ({"splits": ("train",)}, "42 of 64 pairs are in the training selection"),
        ({"tasks": {"z": ZeroShot(prompts=Prompts(field="grup"))}}, "did you mean 'group'"),
        ({"tasks": {"z": ZeroShot(prompts=Prompts(field="group", templates=("a picture",)))}}, r"has no \{c\}"),
        ({"tasks": {"z": ZeroShot(prompts=Prompts(field="group", templates=("the {c}",)))}}, "'the circle' was not"),
        ({"tasks": {"z": ZeroShot(prompts=Prompts(field="base"))}}, "was not embedded"),
        ({"tasks": {"r": Retrieval(caption_sources=("rewritten",))}}, "sources are alt"),
        ({"cluster_field": "bas"}, "did you mean 'base'"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said_in_one_line(world, checkpoint, changes, message):
    with pytest.raises((EvaluationError, ArtifactError), match=message) as caught:
        world.evaluate("evaluate", world.embed("embed", checkpoint), **changes)
    assert "\n" not in str(caught.value)


def test_a_split_that_was_not_embedded_is_an_error(world, checkpoint):
    with pytest.raises(ArtifactError, match="no pair of split 'unseen_concepts'"):
        world.evaluate("evaluate", world.embed("embed", checkpoint, splits=("unseen_vendor",)))


def test_diverged_features_are_an_error(world, checkpoint):
    def diverge(uri):
        images = np.load(f"{uri}/images.npy")
        images[3] = np.nan
        np.save(f"{uri}/images.npy", images)

    with pytest.raises(EvaluationError, match="not finite"):
        world.evaluate("evaluate", world.embed("embed", checkpoint, change=diverge))
