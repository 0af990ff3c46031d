"""Broken recipes: each is one line that names the place and what is right, with exit code 2."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.yaml_text import to_yaml

GONE = object()
WARM = "stages.pretrain.phases.warm"
REFINE = "stages.pretrain.phases.refine"
SET = "stages.evaluate.sets.small"
GROUPS = {"prompts": {"field": "group", "templates": ["a {c}"]}}
OOD = {"task": "out_of_distribution"}

# (path to change, new value, words that the line must have)
BROKEN: list[tuple[str, Any, list[str]]] = [
    ("name", GONE, ["name: missing"]),
    ("stages", GONE, ["stages: missing"]),
    ("name", "Bad Name", ["name: 'Bad Name'", "a-z"]),
    ("name", 5, ["name: 5", "should be text"]),
    ("titel", "x", ["titel", "unknown field", "'title'"]),
    ("zzzzz", "x", ["zzzzz", "unknown field", "known here: name, title"]),
    ("minutes", 0, ["minutes: 0", "greater than 0"]),
    ("minutes", "soon", ["minutes: 'soon'", "valid number"]),
    ("minutes", float("inf"), ["minutes: inf", "finite"]),
    ("stages", {}, ["stages: {}", "at least 1"]),
    ("stages", [1], ["stages: [1]", "mapping"]),
    ("stages.pairs", None, ["stages.pairs"]),
    ("stages.pairs.kind", GONE, ["stages.pairs.kind: missing", "ingest"]),
    ("stages.pairs.kind", "injest", ["stages.pairs.kind: 'injest'", "did you mean 'ingest'"]),
    ("stages.pairs.pool", GONE, ["stages.pairs.pool: missing"]),
    (
        "stages.pairs.pool.source",
        "folders",
        ["stages.pairs.pool.source: 'folders'", "'folder'", "emoji, shards, folder"],
    ),
    ("stages.pairs.pool.image_col", "x", ["stages.pairs.pool.image_col", "'image_column'"]),
    ("stages.pairs.pool.images", 7, ["stages.pairs.pool.images: 7", "text"]),
    ("stages.pairs.pairs_per_shard", 0, ["stages.pairs.pairs_per_shard: 0", "greater than or equal to 1"]),
    ("stages.pairs.pairs_per_shard", 1.5, ["stages.pairs.pairs_per_shard: 1.5", "integer"]),
    ("stages.pairs.pairs_per_shard", "many", ["stages.pairs.pairs_per_shard: 'many'"]),
    ("stages.Pairs Two", {"kind": "model", "architecture": "x"}, ["stages: 'Pairs Two'"]),
    ("stages.split.pairs", "pear", ["stages.split.pairs: 'pear'", "no such stage", "did you mean 'pairs'"]),
    ("stages.split.pairs", "curate", ["makes a selection, where a shard_set is needed", "pairs"]),
    ("stages.split.holdouts.unseen.fraction", 1.5, ["stages.split.holdouts.unseen.fraction: 1.5", "less than 1"]),
    ("stages.split.holdouts.unseen.by", "values", ["stages.split.holdouts.unseen", "field"]),
    ("stages.split.holdouts.unseen.fractoin", 0.1, ["unseen.fractoin", "'fraction'"]),
    ("stages.curate.split", "pairs", ["makes a shard_set, where a split is needed", "split"]),
    ("stages.curate.splits", ["trian"], ["stages.curate.splits.0: 'trian'", "did you mean 'train'", "unseen"]),
    ("stages.curate.splits", [], ["stages.curate.splits", "name at least one"]),
    ("stages.curate.splits", "train", ["stages.curate.splits: 'train'", "list"]),
    ("stages.curate.balance.t", 0, ["stages.curate.balance.t: 0"]),
    ("stages.curate.balance.matches", "split", ["makes a split, where a matches is needed", "match"]),
    ("stages.curate.caption_source", "alias", ["stages.curate.caption_source: 'alias'", "made with 'alt'"]),
    (
        "stages.curate.splits",
        ["train", "unseen"],
        ["stages.curate.splits.1: 'unseen'", "not among the splits of 'match'"],
    ),
    (
        "stages.curate.filters",
        [{"filter": "decodable"}],
        ["stages.curate.filters.0: 'decodable'", "reads inspection", "stages.curate.inspection"],
    ),
    ("stages.curate.filters", [{"filter": "clip_score"}], ["reads features", "'embed'", "stages.curate.features"]),
    ("stages.curate.filters", [{"filter": "decodeable"}], ["stages.curate.filters.0", "decodable"]),
    ("stages.match.metadata", [], ["stages.match.metadata: []", "at least 1 item"]),
    ("stages.match.metadata.0.source", "ngrams", ["metadata.0.source: 'ngrams'", "pool_ngrams"]),
    ("stages.match.metadata.0.min_cuont", 3, ["metadata.0.min_cuont", "'min_count'"]),
    ("stages.match.matching", "fuzzy", ["stages.match.matching: 'fuzzy'", "'exact' or 'relaxed'"]),
    ("stages.init.architecture", 5, ["stages.init.architecture: 5", "text or a mapping"]),
    ("stages.init.architecture", {"width": float("nan")}, ["stages.init.architecture.width: nan", "finite"]),
    ("stages.pretrain.init", "pretrain", ["pretrain -> pretrain", "cannot need itself"]),
    ("stages.pretrain.init", "pairs", ["makes a shard_set, where a checkpoint is needed"]),
    ("stages.pretrain.caption_layers", ["curate"], ["stages.pretrain.caption_layers.0: 'curate'", "caption_layer"]),
    ("stages.pretrain.phases", {}, ["stages.pretrain.phases: {}"]),
    (f"{WARM}.optimizer.lrr", 0.1, [f"{WARM}.optimizer.lrr: 0.1", "unknown field", "'lr'"]),
    (f"{WARM}.optimizer.lr", GONE, [f"{WARM}.optimizer.lr: missing"]),
    (f"{WARM}.optimizer.lr", -1, [f"{WARM}.optimizer.lr: -1", "greater than 0"]),
    (f"{WARM}.optimizer.lr", "1e-3x", [f"{WARM}.optimizer.lr: '1e-3x'"]),
    (f"{WARM}.optimizer.betas", [0.9], [f"{WARM}.optimizer.betas"]),
    (f"{WARM}.samples_seen", -5, [f"{WARM}.samples_seen: -5"]),
    (f"{WARM}.global_batch_size", 1, [f"{WARM}.global_batch_size: 1", "pairs per optimizer step"]),
    (f"{WARM}.objectives", {}, [f"{WARM}.objectives: {{}}"]),
    (f"{WARM}.objectives.contrast.loss.objective", "infonce", ["loss.objective: 'infonce'", "'info_nce'"]),
    (
        f"{WARM}.objectives.contrast.loss",
        "info_nce",
        [f"{WARM}.objectives.contrast.loss: 'info_nce': should be a mapping"],
    ),
    (f"{WARM}.objectives.contrast.loss.gather", "all", ["loss.gather: 'all'", "'local'"]),
    (f"{WARM}.start", "refine", [f"{WARM}.start: 'refine'", "not an earlier phase", "init"]),
    (f"{REFINE}.start", "wram", [f"{REFINE}.start: 'wram'", "did you mean 'warm'"]),
    (f"{REFINE}.objectives.distil.loss.teacher", "frist", ["loss.teacher: 'frist'", "did you mean 'first'"]),
    (f"{REFINE}.teachers", {}, ["no such teacher in this phase", "have none"]),
    (f"{REFINE}.teachers.first.checkpoint", "embed", ["makes a feature_set, where a checkpoint is needed"]),
    (f"{REFINE}.surgeries", [{"surgery": "upcycle", "experts": ["warm", "expert"]}], ["experts.1: 'expert'"]),
    (f"{REFINE}.surgeries", [{"surgery": "upcyle"}], ["surgeries.0.surgery: 'upcyle'", "'upcycle'"]),
    (f"{REFINE}.view", {"sampler": {"sampler": "cluster", "phases": ["late"]}}, ["sampler.phases.0: 'late'"]),
    (f"{REFINE}.view", {"caption_weights": {"alt": 0}}, ["caption_weights", "above 0"]),
    (f"{REFINE}.view", {"caption_weights": {"alt": -1}}, ["caption_weights.alt: -1.0", "0 or more"]),
    (f"{REFINE}.view", {"caption_noise": 2}, ["view.caption_noise: 2", "less than or equal to 1"]),
    ("stages.embed.splits", ["unseeen"], ["stages.embed.splits.0: 'unseeen'", "did you mean 'unseen'"]),
    ("stages.evaluate.sets", {}, ["stages.evaluate.sets: {}", "at least 1"]),
    ("stages.evaluate.sets.Small Set", {}, ["stages.evaluate.sets.Small Set"]),
    (f"{SET}.splits", ["train"], [f"{SET}.splits.0: 'train'", "held-out"]),
    (f"{SET}.splits", ["unseeen"], [f"{SET}.splits.0: 'unseeen'", "not embedded by 'embed'", "'unseen'"]),
    (f"{SET}.features", "pretrain", ["makes a checkpoint, where a feature_set is needed"]),
    ("stages.embed.plain", False, [f"{SET}.features: 'embed'", "views only"]),
    (f"{SET}.tasks.Groups", {"task": "retrieval"}, [f"{SET}.tasks.Groups: 'Groups'", "name a task"]),
    (f"{SET}.tasks.groups.prompts.templates", ["the {c}"], ["not embedded", "stages.embed.prompts"]),
    (f"{SET}.tasks.groups.prompts.templates", ["thing"], ["templates.0: 'thing'", "{c}"]),
    (f"{SET}.tasks.groups.prompts.classes", ["a", "b"], ["not embedded for 'group' with these classes"]),
    (f"{SET}.tasks.groups.prompts.classes", ["a"], ["prompts.classes", "at least 2"]),
    (f"{SET}.tasks.groups.group_feild", "x", ["groups.group_feild", "'group_field'"]),
    (f"{SET}.tasks.groups.only_classes", ["a"], ["groups.only_classes", "at least 2"]),
    (f"{SET}.tasks.looks", {"task": "image_retrieval", "field": "group", "ks": [0]}, ["looks.ks.0: 0", "1"]),
    (f"{SET}.tasks.retrieval.task", "retreival", ["tasks.retrieval.task: 'retreival'", "'retrieval'"]),
    (f"{SET}.tasks.calibration", {**GROUPS, "task": "calibration"}, ["calibration.fit: 'val'", "not embedded"]),
    (f"{SET}.tasks.calibration", {**GROUPS, "task": "calibration", "fit": "unseen"}, ["fit: 'unseen'", "is scored"]),
    (
        f"{SET}.tasks.probe",
        {**GROUPS, "task": "probe", "head": {"head": "gda"}},
        ["probe.fit: 'train'", "not embedded"],
    ),
    (f"{SET}.tasks.ood", {**GROUPS, **OOD, "out": ["big/unseen"]}, ["ood.out.0: 'big'", "no such set", "small"]),
    (f"{SET}.tasks.ood", {**GROUPS, **OOD, "out": ["seen"]}, ["ood.out.0: 'seen'", "no such split embedded"]),
    (
        f"{SET}.tasks.robust",
        {**GROUPS, "task": "robustness"},
        ["robust: robustness reads corrupted views", f"{SET}.views"],
    ),
    (f"{SET}.tasks.dense", {"task": "dense_probe", "fit": "unseen"}, ["dense.fit: 'unseen'"]),
    ("stages.evaluate.bootstrap", {"resamples": 5}, ["bootstrap.resamples: 5"]),
    ("stages.report.compare", {"refined": "pretrained"}, ["stages.report.compare.refined: 'refined'"]),
    ("stages.report.controls", ["pretraind"], ["controls.0: 'pretraind'", "did you mean 'pretrained'"]),
    ("stages.report.headline", ["unseen", "retrieval", "R@10"], ["stages.report.headline"]),
    ("stages.report.headline", ["smal", "unseen", "retrieval", "R@10"], ["headline.0: 'smal'", "'small'"]),
    ("stages.report.headline", ["small", "unsen", "retrieval", "R@10"], ["headline.1: 'unsen'", "'unseen'"]),
    ("stages.report.headline", ["small", "unseen", "retreival", "R@10"], ["headline.2: 'retreival'", "'retrieval'"]),
    ("stages.report.sets", {"smal": {"pairs": "pairs"}}, ["stages.report.sets.smal: 'smal'", "'small'"]),
    ("stages.report.gallery.split", "seen", ["gallery.split: 'seen'", "'unseen'"]),
    ("stages.report.gallery.queries", ["blue"], ["stages.report.gallery.queries.0: 'blue'", "stages.embed.queries"]),
    ("stages.report.checkpoints", {"pretraned": "init"}, ["checkpoints.pretraned", "'pretrained'"]),
    ("stages.report.evaluations", {"pretrained": "embed"}, ["makes a feature_set, where an evaluation"[:20]]),
]


def changed(tree: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    """A deep copy with one value set or removed."""
    result = copy.deepcopy(tree)
    *parents, last = path.split(".") if path != "stages.Pairs Two" else ["stages", "Pairs Two"]
    owner: Any = result
    for key in parents:
        owner = owner[int(key)] if isinstance(owner, list) else owner[key]
    if new is GONE:
        del owner[last]
    else:
        owner[last] = new
    return result


@pytest.mark.parametrize(("path", "new", "words"), BROKEN, ids=[f"{n}-{case[0]}" for n, case in enumerate(BROKEN)])
def test_a_broken_recipe_is_one_line(
    path: str, new: Any, words: list[str], small: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(to_yaml(changed(small, path, new)))
    line = refused("recipe", "show", file)
    assert str(file) in line
    for word in words:
        assert word in line


NOT_RECIPES = [
    ("[1, 2]", ["a recipe is a mapping"]),
    ("", ["a recipe is a mapping"]),
    ("name: [a", ["line 1, column 9", "not valid YAML"]),
    ("name: a\n  title: b", ["line 2, column 8", "not valid YAML"]),
    ("name: a\nname: b", ["line 2, column 1", "'name' comes twice"]),
    ("1: a", ["line 1, column 1", "key 1 is not text"]),
    ("name: !!python/object:os.system x", ["not valid YAML", "line 1"]),
    ("name: a\n---\nname: b", ["not valid YAML"]),
    ('{"name": "a",', ["not valid YAML"]),
    ("[" * 100_000, ["line 1, column 51", "nested deeper than 50 levels"]),
    ("- " * 1000 + "a", ["nested deeper than 50 levels"]),
]


@pytest.mark.parametrize(("text", "words"), NOT_RECIPES)
def test_what_is_no_recipe_is_one_line(
    text: str, words: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    line = refused("plan", file)
    for word in [str(file), *words]:
        assert word in line


def test_two_mistakes_are_counted(small: dict[str, Any], tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(to_yaml(changed(changed(small, "titel", 1), f"{WARM}.optimizer.lrr", 1)))
    assert refused("recipe", "show", file).rstrip().endswith("(and 1 more)")


def test_a_cycle_names_its_stages(small: dict[str, Any], tmp_path: Path, refused: Callable[..., str]) -> None:
    teacher = {"first": {"teacher": "cached_features", "features": "embed"}}
    file = tmp_path / "broken.yaml"
    file.write_text(to_yaml(changed(small, f"{REFINE}.teachers", teacher)))
    assert "pretrain -> embed -> pretrain" in refused("recipe", "show", file)


def test_a_class_that_is_asked_for_but_not_listed_is_named(
    small: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    prompts = {"field": "group", "templates": ["a {c}"], "classes": ["cats", "dogs", "birds"]}
    embedded = changed(changed(small, "stages.embed.prompts", [prompts]), f"{SET}.tasks.groups.prompts", prompts)
    file = tmp_path / "broken.yaml"
    file.write_text(to_yaml(changed(embedded, f"{SET}.tasks.groups.only_classes", ["cats", "dosg"])))
    line = refused("recipe", "show", file)
    assert "groups.only_classes.1: 'dosg': not among prompts.classes; did you mean 'dogs'" in line
    file.write_text(to_yaml(changed(embedded, f"{SET}.tasks.groups.only_classes", ["cats", "dogs"])))
    with pytest.raises(AssertionError):  # negative control: classes that are listed are not refused
        refused("recipe", "show", file)


def test_a_layer_that_is_weighted_but_not_read_is_named(
    small: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    rewrite = {"kind": "rewrite", "pairs": "pairs", "selection": "curate", "writes": "told"}
    broken = changed(changed(small, "stages.rewrite", rewrite), f"{WARM}.view", {"caption_weights": {"told": 1}})
    file = tmp_path / "broken.yaml"
    file.write_text(to_yaml(broken))
    assert "add 'rewrite' to caption_layers" in refused("recipe", "show", file)
    file.write_text(to_yaml(changed(broken, "stages.pretrain.caption_layers", ["rewrite"])))
    with pytest.raises(AssertionError):  # negative control: the repaired recipe is not refused
        refused("recipe", "show", file)
