"""The samples behind a number, by kind, and what cannot be asked."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.errors import EvaluationError
from evaluation.examples import examples, line
from evaluation.specs import Geometry
from pipelines.cli import main

TASK = "emoji/unseen_vendor/groups"


@pytest.fixture(scope="module")
def models(tmp_path_factory, world_at):
    """A weak and a strong model; one pair has no label."""
    world = world_at(tmp_path_factory.mktemp("examples") / "runs")
    pairs = list(world.pairs)
    pairs[80] = pairs[80]._replace(meta={name: v for name, v in pairs[80].meta.items() if name != "group"})
    world = world_at(tmp_path_factory.mktemp("dropped") / "runs", pairs)
    found = {}
    for label, skill in (("weak", 0.4), ("strong", 3.0), ("constant", 0.0)):
        features = world.embed(f"embed-{label}", world.checkpoint(label, world.select()), skill, constant=skill == 0)
        tasks = world.evaluate_spec().sets["emoji"].tasks | {"geometry": Geometry()}
        found[label] = world.evaluate(f"evaluate-{label}", features, splits=("unseen_vendor",), tasks=tasks)
    return found, pairs[80].uid


def truth(evaluation):
    table = pq.read_table(evaluation.at("rows", f"{TASK}.parquet")).to_pandas()
    return table[table.dropped == ""].set_index("sample")


def test_right_and_wrong_are_all_there_is(models):
    weak, own = models[0]["weak"], truth(models[0]["weak"])
    wrong, right = examples(weak, TASK, "wrong", top=99), examples(weak, TASK, "right", top=99)
    assert {one.sample for one in wrong} == set(own.index[own.correct == 0])
    assert {one.sample for one in right} == set(own.index[own.correct == 1])
    assert all(one.label != one.prediction for one in wrong)
    confidence = [one.numbers["confidence"] for one in wrong]
    assert confidence == sorted(confidence, reverse=True)
    assert [one.sample for one in examples(weak, TASK, "wrong", top=3)] == [one.sample for one in wrong[:3]]


def test_the_worst_ranks_come_first_where_there_is_no_confidence(models):
    found = examples(models[0]["weak"], "emoji/unseen_vendor/captions/image_to_text", "wrong", top=99)
    ranks = [one.numbers["rank"] for one in found]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > 1


def test_where_one_model_fails_and_the_other_does_not(models):
    weak, strong = models[0]["weak"], models[0]["strong"]
    a, b = truth(weak), truth(strong)
    both = a.join(b, rsuffix="_strong")
    found = examples(weak, TASK, "worse_than", strong, top=99)
    assert {one.sample for one in found} == set(both.index[(both.correct == 0) & (both.correct_strong == 1)])
    assert all(one.other == one.label for one in found)
    assert {one.sample for one in examples(strong, TASK, "better_than", weak, top=99)} == {one.sample for one in found}


def test_ties_and_dropped_samples_can_be_asked_for(models):
    (found, uid) = models
    assert len(examples(found["constant"], TASK, "ties", top=99)) == 39
    assert examples(found["strong"], TASK, "ties") == []
    assert [(one.sample, one.reason) for one in examples(found["weak"], TASK, "dropped")] == [(uid, "no_label")]
    assert line(examples(found["weak"], TASK, "dropped")[0]) == f"{uid}: no_label"


def test_a_baselines_examples_are_its_own(models):
    found = examples(models[0]["weak"], TASK, "wrong", top=99, baseline="majority")
    assert len({one.prediction for one in found}) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"where": "emoji/unseen_vendor/group"}, "did you mean 'emoji/unseen_vendor/groups'"),
        ({"where": "emoji/unseen_vendor/captions"}, "names 2 tasks; give one of emoji/unseen_vendor/captions/image"),
        ({"where": "emoji/unseen_vendor/geometry"}, "no 'correct'; their columns are alignment"),
        ({"where": TASK, "top": 0}, "top: 0 is below 1"),
        ({"where": TASK, "kind": "wrongly"}, "'wrongly' is no kind"),
        ({"where": TASK, "kind": "worse_than"}, "needs a second evaluation"),
        ({"where": TASK, "baseline": "oracle"}, "names 0 tasks beside 'oracle'"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(models, asked, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        examples(models[0]["weak"], **asked)
    assert "\n" not in str(caught.value)


def test_the_command_prints_them(models, capsys):
    weak, strong = models[0]["weak"], models[0]["strong"]
    assert main(["examples", weak.uri, TASK, "--top", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert " -> " in out[0]
    assert main(["examples", weak.uri, TASK, "--worse-than", strong.uri, "--json"]) == 0
    assert "other" in json.loads(capsys.readouterr().out)[0]
    short = str(Path(weak.uri).with_name("evaluate-weak"))  # the name without its fingerprint
    assert main(["examples", short, TASK, "--dropped"]) == 0
    assert capsys.readouterr().out == f"{models[1]}: no_label\n"
    assert main(["examples", weak.uri, "emoji/unseen_vendor/group"]) == 2
    assert "did you mean" in capsys.readouterr().err
