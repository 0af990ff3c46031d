"""The built-in suites: what they ask, what they find in a folder, and what they say of what is not there."""

import ast
import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import RecipeError, UserError
from data.specs import BenchmarkPool
from evaluation.specs import NaturalShift, Probe, Retrieval, ZeroShot
from pipelines.cli import main
from pipelines.evaluating import Model, suite_recipe
from pipelines.recipes import quickstart
from pipelines.suites import SUITES, load_suite
from pipelines.suites.clip_benchmark import GROUPS
from pipelines.suites.datacomp import TASKS
from pipelines.suites.spec import parse_suite
from pipelines.yaml_text import to_yaml
from training.specs import EmbedSpec, ModelSpec

VIT: dict[str, Any] = {"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {"layers": 1}}
MODELS = {"one": Model("one", ModelSpec(architecture=VIT), VIT)}


def data_set(
    root: Path,
    name: str,
    classes: tuple[str, ...] = ("cat", "dog"),
    kind: str = "",
    splits: tuple[str, ...] = ("test",),
    templates: str = "a photo of a {c}\n",
) -> Path:
    """The text files of a data set in CLIP_benchmark's layout; suites open no tar."""
    path = root / name
    for split in splits:
        (path / split).mkdir(parents=True)
        (path / split / "nshards.txt").write_text("1")
    if kind != "retrieval":
        (path / "classnames.txt").write_text("\n".join(classes) + "\n")
        (path / "zeroshot_classification_templates.txt").write_text(templates)
    if kind:
        (path / "dataset_type.txt").write_text(kind)
    return path


@pytest.fixture
def evalsets(tmp_path: Path) -> Path:
    """Some of DataComp's data sets."""
    for name in ("imagenet1k", "vtab-cifar100", "vtab-pets", "fgvc_aircraft", "wilds-fmow", "dollar_street", "geode"):
        data_set(tmp_path, f"wds_{name}_test")
    faces = ("gender:male", "gender:female", "age:young", "age:old", "race:a", "race:b", "toxic:x")
    data_set(
        tmp_path, "wds_fairface_test", faces, templates="gender:a {c} person\nage:a {c} face\nrace:{c}\ntoxic:{c}\n"
    )
    data_set(tmp_path, "wds_mscoco_captions", kind="retrieval")
    winogavil = tmp_path / "winogavil"
    (winogavil / "images").mkdir(parents=True)
    (winogavil / "winogavil_dataset.csv").write_text(
        'ID,cue,candidates,associations\n1,Owl,"[]","[]"\n2,bear,"[]","[]"\n'
    )
    return tmp_path


def test_datacomp_has_its_forty_tasks_and_their_groups() -> None:
    in_group = {group: [key for key, asked in TASKS.items() if group in asked.groups] for group in
                ("VTAB", "ImageNet shifts", "retrieval")}  # fmt: skip
    assert len(TASKS) == 40
    assert [len(keys) for keys in in_group.values()] == [13, 6, 3]  # as DataComp's aggregate_scores.py counts them
    recall = {key for key, asked in TASKS.items() if asked.metric == "mean_per_class_recall"}
    assert recall == {"vtab/caltech101", "fgvc_aircraft", "vtab/flowers", "vtab/pets"}


def test_datacomp_takes_what_is_there_and_says_what_is_not(evalsets: Path) -> None:
    suite = load_suite("datacomp", str(evalsets))
    metrics = {name: one.main.metrics if one.main else None for name, one in suite.sets.items()}
    assert metrics == {
        "imagenet1k": ("top1",),
        "vtab-cifar100": ("top1",),
        "fgvc_aircraft": ("mean_per_class_recall",),
        "vtab-pets": ("mean_per_class_recall",),
        "mscoco_2014_5k_test_image_text_retrieval": ("image_to_text_R@1", "text_to_image_R@1"),
        "winogavil": ("jaccard_10-12",),
        "wilds-fmow": ("worst_region_top1",),
        "fairness-dollar_street": ("worst_income_ds_top5",),
        "fairness-geode": ("worst_region_top1",),
        "fairness-fairface": None,  # DataComp averages 38 of its 40 tasks
    }
    assert len(suite.sets) + len(suite.skipped) == 40
    assert suite.skipped["cifar10"] == "no folder wds_cifar10_test"
    assert suite.averages["VTAB, 2 of 13 tasks"] == ("vtab-cifar100", "vtab-pets")
    assert suite.averages["ImageNet"] == ("imagenet1k",)
    assert len(suite.averages["DataComp, 9 of 38 tasks"]) == 9


def test_numbers_beside_a_label_get_their_names(evalsets: Path) -> None:
    sets = load_suite("datacomp", str(evalsets)).sets
    pool, task = sets["wilds-fmow"].pool, sets["wilds-fmow"].tasks["zero_shot"]
    assert isinstance(pool, BenchmarkPool)
    assert isinstance(task, ZeroShot)
    assert (pool.value_names, task.group_field) == (("region", "year", "y"), "region")
    age = sets["fairness-fairface"].tasks["age"]
    assert isinstance(age, ZeroShot)
    assert (age.prompts.field, age.prompts.classes, age.prompts.templates) == ("age", ("young", "old"), ("a {c} face",))


def test_cues_are_embedded_once_each(evalsets: Path) -> None:
    assert load_suite("datacomp", str(evalsets)).sets["winogavil"].queries == ("An owl", "A bear")


def test_clip_benchmark_takes_every_folder_by_its_type(tmp_path: Path) -> None:
    data_set(tmp_path, "wds_flickr8k", kind="retrieval")
    data_set(tmp_path, "wds_voc2007_multilabel", kind="multilabel")
    data_set(tmp_path, "wds_cars", splits=("test", "train"))
    (tmp_path / "no data set").mkdir()
    suite = load_suite("clip_benchmark", str(tmp_path))
    tasks = {name: [type(task) for task in one.tasks.values()] for name, one in suite.sets.items()}
    assert tasks == {"cars": [ZeroShot, Probe, Probe], "flickr8k": [Retrieval], "voc2007_multilabel": [ZeroShot]}
    assert suite.sets["cars"].learnt_from == ("train", "val")
    assert suite.sets["voc2007_multilabel"].main is not None
    assert suite.sets["voc2007_multilabel"].main.metrics == ("mAP",)


@pytest.mark.parametrize(("group", "size"), [("vtab", 19), ("vtab_plus", 35 + 1), ("retrieval", 3), ("robustness", 6)])
def test_collections_are_those_of_clip_benchmark(group: str, size: int, tmp_path: Path) -> None:
    data_set(tmp_path, f"wds_{GROUPS[group][0].replace('/', '-')}", kind="retrieval" if group == "retrieval" else "")
    suite = load_suite(group, str(tmp_path))
    assert len(suite.sets) + len(suite.skipped) == size
    assert len(suite.sets) == 1


def test_collections_agree_with_the_installed_peer() -> None:
    package = importlib.util.find_spec("clip_benchmark")
    if package is None or package.origin is None:
        pytest.skip("clip_benchmark is not installed")
    # read, because its import takes long
    tree = ast.parse(Path(package.origin).with_name("datasets").joinpath("builder.py").read_text())
    theirs = next(
        ast.literal_eval(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "dataset_collection"
    )  # fmt: skip
    names = {"vtab": "vtab", "vtab+": "vtab_plus", "retrieval": "retrieval"}
    for their_name, ours in names.items():
        assert set(GROUPS[ours]) == set(theirs[their_name])
    assert set(GROUPS["robustness"]) == {*theirs["imagenet_robustness"], "imagenet1k"}


def test_a_shift_is_measured_where_the_classes_are_imagenets(tmp_path: Path) -> None:
    for name, classes in {
        "imagenet1k": ("cat", "dog", "owl"),
        "imagenetv2": ("cat", "dog", "owl"),
        "imagenet-r": ("cat", "owl"),
        "objectnet": ("cat", "chair"),
    }.items():
        data_set(tmp_path, f"wds_{name}", classes)
    sets = load_suite("robustness", str(tmp_path)).sets
    shifts = {name: one.tasks.get("shift") for name, one in sets.items()}
    fields = {name: task.prompts.field for name, task in shifts.items() if isinstance(task, NaturalShift)}
    # a number means a class of ImageNet only where the list is ImageNet's own
    assert fields == {"imagenetv2": "cls", "imagenet-r": "class"}


def test_addresses_may_be_listed_in_a_file(tmp_path: Path) -> None:
    one = data_set(tmp_path / "far", "wds_mnist")
    (tmp_path / "sets.txt").write_text(f"{one}\n\n")
    assert list(load_suite("clip_benchmark", str(tmp_path / "sets.txt")).sets) == ["mnist"]


def test_composition_takes_the_authors_files(tmp_path: Path) -> None:
    for name in ("sugar_crepe", "val2017", "winoground/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sugar_crepe" / "swap_att.json").write_text("{}")
    (tmp_path / "winoground" / "examples.jsonl").write_text("")
    suite = load_suite("composition", str(tmp_path))
    assert list(suite.sets) == ["sugar_crepe-swap_att", "winoground"]
    assert suite.skipped["mmvp"] == "no mmvp/Questions.csv"
    assert list(load_suite("sugar_crepe", str(tmp_path)).sets) == ["sugar_crepe-swap_att"]


def test_the_bundled_suite_has_the_quickstarts_pairs_and_splits() -> None:
    recipe, trained = suite_recipe(load_suite("bundled"), MODELS), quickstart.recipe()
    assert recipe.stages["pairs_emoji"] == trained.stages["pairs"]
    split = recipe.stages["split_emoji"].model_copy(update={"pairs": "pairs"})
    assert split == trained.stages["split"]  # so that the guard knows what a quickstart's checkpoint was trained on


def test_every_suite_makes_a_recipe_that_fits_together(evalsets: Path) -> None:
    for name, listed in SUITES.items():
        if listed.module == "composition":
            continue
        suite = load_suite(name, str(evalsets) if listed.needs_data else None)
        recipe = suite_recipe(suite, MODELS)  # a recipe checks itself
        assert any(isinstance(stage, EmbedSpec) for stage in recipe.stages.values())
        assert parse_suite(suite.to_yaml(), name) == suite


def test_suites_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SUITES)
    assert main(["suite", "show", "bundled"]) == 0
    assert parse_suite(capsys.readouterr().out, "shown") == load_suite("bundled")


SMALL: dict[str, Any] = {
    "name": "small", "title": "t", "purpose": "p",
    "sets": {"one": {
        "pool": {"source": "digits"}, "holdouts": {"test": {"by": "rest"}}, "scored": ["test"],
        "tasks": {"retrieval": {"task": "retrieval"}},
        "main": {"split": "test", "task": "retrieval", "metrics": ["image_to_text_R@1"]},
    }},
}  # fmt: skip

OTHER = {"scored": ["test"], "tasks": {"a": {"task": "retrieval"}}}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("sets.one.pool", None, ["sets.one", "give a pool"]),
        ("sets.one.pool.source", "digit", ["sets.one.pool.source: 'digit'", "did you mean 'digits'"]),
        ("sets.one.scord", ["test"], ["sets.one.scord", "'scored'"]),
        ("sets.one.scored", ["tset"], ["sets.one.main.split: 'test'", "have tset"]),
        ("sets.one.main.task", "retreival", ["sets.one.main.task: 'retreival'", "'retrieval'"]),
        ("sets.one.main", None, ["sets.one.main: missing", "headline"]),
        (
            "sets.two",
            {"like": "oen", "scored": ["test"], "tasks": {"a": {"task": "retrieval"}}},
            ["sets.two.like: 'oen'"],
        ),
        ("averages", {"all": ["tow"]}, ["averages.all.0: 'tow'", "have one"]),
        ("name", "Big Name", ["name: 'Big Name'"]),
    ],
)
def test_a_wrong_suite_is_one_line(path: str, value: Any, words: list[str]) -> None:
    tree = copy.deepcopy(SMALL)
    *parents, last = path.split(".")
    owner = tree
    for key in parents:
        owner = owner[key]
    owner[last] = value
    with pytest.raises(RecipeError) as caught:
        parse_suite(to_yaml(tree), "my.yaml")
    assert "\n" not in str(caught.value)
    for word in ["my.yaml", *words]:
        assert word in str(caught.value)


def test_a_task_that_learns_from_what_is_scored_is_refused() -> None:
    suite = parse_suite(
        """
{name: s, title: t, purpose: p, sets: {one: {pool: {source: digits}, holdouts: {test: {by: fraction, fraction: 0.5}},
 scored: [test], tasks: {calibration: {task: calibration, fit: test, prompts: {field: class}}},
 main: {split: test, task: calibration, metrics: [ece]}}}}
""",
        "s",
    )
    with pytest.raises(RecipeError, match=r"calibration\.fit: 'test': is scored in set 'one'"):
        suite_recipe(suite, MODELS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: (path / "zeroshot_classification_templates.txt").write_text("a photo\n"), "has no {c}"),
        (lambda path: (path / "zeroshot_classification_templates.txt").unlink(), "no template"),
        (lambda path: (path / "classnames.txt").write_text("cat\n"), "1 classes; write one name a line"),
        (lambda path: (path / "dataset_type.txt").write_text("retreival"), "did you mean 'retrieval'"),
        (lambda path: (path / "test").rename(path / "tset"), "no split 'test', only tset"),
    ],
)
def test_a_wrong_data_set_is_one_line(change: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    change(data_set(tmp_path, "wds_cars"))
    with pytest.raises(UserError) as caught:
        load_suite("clip_benchmark", str(tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    for name, listed in SUITES.items():
        if listed.needs_data:
            with pytest.raises(RecipeError, match="--data"):
                load_suite(name, str(tmp_path))
