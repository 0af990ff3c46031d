"""Data sets in CLIP_benchmark's layout as sets of a suite: what their own text files say becomes part of the recipe."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from data import storage
from data.errors import RecipeError
from data.pools.benchmark import Benchmark, read_benchmark
from data.specs import BenchmarkPool, Holdout, HoldoutFraction, HoldoutValues
from evaluation.specs import LinearProbe, NearestNeighbours, Probe, Retrieval, Task, ZeroShot
from pipelines.suites.spec import Main, SuiteSet
from training.specs import Prompts

TEST = "test"
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text_R@1", "text_to_image_R@1"
_USUAL = {"classification": ("top1",), "multilabel": ("mAP",), "retrieval": (IMAGE_TO_TEXT, TEXT_TO_IMAGE)}
_CAPTIONS = ("alt*",)  # one a line of the picture's text, however many there are


class Found(NamedTuple):
    """A data set's folder and what its text files say."""

    url: str
    benchmark: Benchmark


def open_root(data: str) -> str:
    """The folder that `--data` names.

    Raises:
        RecipeError: it is not there.
    """
    root = storage.normalise(data)
    if not storage.is_web(root) and not storage.is_folder(root):
        raise RecipeError(f"--data {data}: no such folder; give the one that holds the data sets (wds_*)")
    return root


def set_name(folder: str) -> str:
    """Name of a set by its folder: `wds_vtab-cifar100_test` -> `vtab-cifar100`."""
    name = folder.rstrip("/").rpartition("/")[2].lower().removeprefix("wds_").removesuffix("_test")
    return re.sub(r"[^a-z0-9_-]", "_", name)[:40]


def benchmark_set(
    found: Found, metric: str | None = None, group_field: str | None = None, value_names: Iterable[str] = (),
    probes: bool = False,
) -> SuiteSet:  # fmt: skip
    """A set by its type: zero-shot classification (multi-label too) or retrieval; probes where it has pairs to fit on.

    Raises:
        RecipeError: it has no test split, or its class names or templates are missing.
    """
    kind, splits = found.benchmark.type, found.benchmark.splits
    if TEST not in splits:
        raise RecipeError(f"{found.url}: no split {TEST!r}, only {', '.join(splits)}; add it")
    fit = _fit_splits(splits) if probes and kind == "classification" else ()
    tasks = _tasks(found, group_field, bool(fit))
    holdouts: dict[str, Holdout] = {TEST: HoldoutValues(field="split", values=(TEST,))}
    if fit:
        own = tuple(split for split in fit if split != "train")
        holdouts["val"] = HoldoutValues(field="split", values=own) if own else HoldoutFraction(fraction=0.2)
    return SuiteSet(
        pool=BenchmarkPool(url=found.url, splits=(*fit, TEST), value_names=tuple(value_names)),
        holdouts=holdouts, scored=(TEST,), learnt_from=("train", "val") if fit else (), tasks=tasks,
        main=Main(split=TEST, task=next(iter(tasks)), metrics=(metric,) if metric else _USUAL[kind]),
    )  # fmt: skip


def _fit_splits(splits: Iterable[str]) -> tuple[str, ...]:
    """Splits that heads may learn from; without `train` none."""
    known = tuple(split for split in ("train", "val", "validation") if split in splits)
    return known if "train" in known else ()


def _tasks(found: Found, group_field: str | None, fits: bool) -> dict[str, Task]:
    if found.benchmark.type == "retrieval":
        return {"retrieval": Retrieval(caption_sources=_CAPTIONS)}
    prompts = class_prompts(found, "cls")
    tasks: dict[str, Task] = {"zero_shot": ZeroShot(prompts=prompts, group_field=group_field)}
    if fits:
        tasks["linear_probe"] = Probe(prompts=prompts, head=LinearProbe())
        tasks["nearest_neighbours"] = Probe(prompts=prompts, head=NearestNeighbours())
    return tasks


def class_prompts(found: Found, field: str, prefix: str = "") -> Prompts:
    """Class names and templates of a data set; with a prefix, those that begin with `prefix:`.

    Raises:
        RecipeError: there are fewer than two classes, or no template.
    """
    head = f"{prefix}:" if prefix else ""
    classes = tuple(name.removeprefix(head) for name in found.benchmark.classes if name.startswith(head))
    templates = tuple(text.removeprefix(head) for text in found.benchmark.templates if text.startswith(head))
    if len(classes) < 2:
        raise RecipeError(f"{found.url}/classnames.txt: {len(classes)} classes; write one name a line, two or more")
    if not templates:
        raise RecipeError(
            f"{found.url}/zeroshot_classification_templates.txt: no template; write one a line, {{c}} for the class"
        )
    return Prompts(field=field, templates=templates, classes=classes)


def candidates(task: str) -> list[str]:
    """Folder names under which a data set called `vtab/cifar100` may lie, the likeliest first."""
    joined, last = task.replace("/", "-"), task.rpartition("/")[2]
    return [f"wds_{joined}_test", f"wds_{joined}", f"wds_{last}_test", f"wds_{last}", joined, last]


def find(task: str, folders: Mapping[str, str]) -> Found | None:
    """The data set among these folders (name -> address); None where there is none."""
    name = next((name for name in candidates(task) if name in folders), None)
    return Found(folders[name], read_benchmark(folders[name])) if name else None


def folders_of(root: str) -> dict[str, str]:
    """Name -> address of the folders below a root; of a web address, which cannot be listed, of a list of addresses."""
    return {name: storage.join(root, name) for name in storage.list_folders(root)}
