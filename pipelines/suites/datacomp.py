"""DataComp's evaluation: its tasks, main metrics and averages (arXiv 2304.14108; tasklist.yml of its repository).

40 tasks, of which 38 are averaged: FairFace and UTKFace have no main metric. What the folder lacks is skipped and said.
Two rules differ from its code: a tie is never credited, and the worst region of FMoW counts all regions that have
pictures, as its code does and its paper does not (there "Other" is left out).
"""

import csv
import io
from collections.abc import Mapping
from typing import NamedTuple

from data import storage
from data.errors import RecipeError
from data.specs import CompositionPool, HoldoutRest
from evaluation.specs import Association, Task, ZeroShot
from pipelines.suites.benchmark_sets import (
    TEST,
    Found,
    benchmark_set,
    class_prompts,
    find,
    folders_of,
    open_root,
    set_name,
)
from pipelines.suites.spec import Main, Suite, SuiteSet

RECALL = "mean_per_class_recall"
IMAGENET, SHIFTS, VTAB, RETRIEVAL = "ImageNet", "ImageNet shifts", "VTAB", "retrieval"
ALL = "DataComp"
WINOGAVIL = "misc/winogavil"


class Asked(NamedTuple):
    """What DataComp asks of one data set: groups that it counts in, its main metric where it is not top-1."""

    groups: tuple[str, ...] = ()
    metric: str | None = None
    group_field: str | None = None
    value_names: tuple[str, ...] = ()


_FACES = ("age", "gender", "race", "race_binary")
TASKS: dict[str, Asked] = {
    "imagenet1k": Asked((IMAGENET,)),
    "vtab/caltech101": Asked((VTAB,), RECALL),
    "cifar10": Asked(),
    "vtab/cifar100": Asked((VTAB,)),
    "vtab/clevr_count_all": Asked((VTAB,)),
    "vtab/clevr_closest_object_distance": Asked((VTAB,)),
    "country211": Asked(),
    "vtab/dtd": Asked((VTAB,)),
    "vtab/eurosat": Asked((VTAB,)),
    "fgvc_aircraft": Asked((), RECALL),
    "food101": Asked(),
    "gtsrb": Asked(),
    "imagenet_sketch": Asked((SHIFTS,)),
    "imagenetv2": Asked((SHIFTS,)),
    "imagenet-a": Asked((SHIFTS,)),
    "imagenet-o": Asked((SHIFTS,)),
    "imagenet-r": Asked((SHIFTS,)),
    "vtab/kitti_closest_vehicle_distance": Asked((VTAB,)),
    "mnist": Asked(),
    "objectnet": Asked((SHIFTS,)),
    "vtab/flowers": Asked((VTAB,), RECALL),
    "vtab/pets": Asked((VTAB,), RECALL),
    "voc2007": Asked(),
    "vtab/pcam": Asked((VTAB,)),
    "renderedsst2": Asked(),
    "vtab/resisc45": Asked((VTAB,)),
    "cars": Asked(),
    "stl10": Asked(),
    "sun397": Asked((VTAB,)),
    "vtab/svhn": Asked((VTAB,)),
    "retrieval/flickr30k": Asked((RETRIEVAL,)),
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": Asked((RETRIEVAL,)),
    WINOGAVIL: Asked((RETRIEVAL,), "jaccard_10-12"),
    "wilds/iwildcam": Asked((), "macro_f1"),
    "wilds/camelyon17": Asked(),
    "wilds/fmow": Asked((), "worst_region_top1", "region", ("region", "year", "y")),
    "fairness/dollar_street": Asked((), "worst_income_ds_top5", "income_ds", ("income_ds", "income_meta", "region")),
    "fairness/geode": Asked((), "worst_region_top1", "region", ("region", "country")),
    "fairness/fairface": Asked(value_names=_FACES),
    "fairness/utkface": Asked(value_names=_FACES),
}
_NOT_AVERAGED = ("fairness/fairface", "fairness/utkface")
_OTHER_NAMES = {"retrieval/mscoco_2014_5k_test_image_text_retrieval": "mscoco_captions"}  # CLIP_benchmark's own folder


def suite(data: str) -> Suite:
    """DataComp's tasks that lie below a folder, as `download_evalsets.py` or CLIP_benchmark lays them out.

    Raises:
        RecipeError: none is there.
        ShardError: a data set's text files are wrong.
    """
    folders = folders_of(open_root(data))
    sets: dict[str, SuiteSet] = {}
    groups: dict[str, list[str]] = {ALL: []}
    skipped: dict[str, str] = {}
    for key, asked in TASKS.items():
        name = set_name(key.removeprefix("retrieval/").removeprefix("misc/").replace("/", "-"))
        made = _set(key, asked, folders)
        if isinstance(made, str):
            skipped[name] = made
            continue
        sets[name] = made
        for group in () if key in _NOT_AVERAGED else (ALL, *asked.groups):
            groups.setdefault(group, []).append(name)
    first = next((name for name in sets if sets[name].main is not None), None)
    if first is None:
        raise RecipeError(f"--data {data}: none of DataComp's data sets here, e.g. wds_cifar10_test; give their folder")
    return Suite(
        name="datacomp",
        title=f"DataComp, {len(sets)} of {len(TASKS)} tasks",
        purpose="DataComp's tasks with its main metrics and averages.",
        sets={first: sets[first], **sets},
        averages={_counted(label, len(names)): tuple(names) for label, names in groups.items()},
        skipped=skipped,
    )


def _counted(group: str, found: int) -> str:
    """Name of an average, which says so where it lacks some of its tasks: it then cannot be compared with others'."""
    averaged = [asked for key, asked in TASKS.items() if key not in _NOT_AVERAGED]
    known = [asked for asked in averaged if group in (ALL, *asked.groups)]
    return group if found == len(known) else f"{group}, {found} of {len(known)} tasks"


def _set(key: str, asked: Asked, folders: Mapping[str, str]) -> SuiteSet | str:
    """The set, or why it is skipped."""
    if key == WINOGAVIL:
        return _winogavil(folders)
    found = find(key, folders) or (find(_OTHER_NAMES[key], folders) if key in _OTHER_NAMES else None)
    if found is None:
        return f"no folder wds_{key.replace('/', '-')}_test"
    if key in _NOT_AVERAGED:
        return _faces(found, asked)
    return benchmark_set(found, asked.metric, asked.group_field, asked.value_names)


def _faces(found: Found, asked: Asked) -> SuiteSet:
    """Age and gender, whose class names and templates stand in one file each behind `age:` and `gender:`."""
    made = benchmark_set(found, value_names=asked.value_names)
    tasks: dict[str, Task] = {
        field: ZeroShot(prompts=class_prompts(found, field, prefix=field), group_field="race")
        for field in ("gender", "age")
    }
    return made.model_copy(update={"tasks": tasks, "main": None})


def _winogavil(folders: Mapping[str, str]) -> SuiteSet | str:
    url = folders.get("winogavil")
    annotations = storage.join(url, "winogavil_dataset.csv") if url else ""
    if url is None or not storage.exists(annotations):
        return "no winogavil/winogavil_dataset.csv with its images/"
    task = Association()
    return SuiteSet(
        pool=CompositionPool(layout="winogavil", annotations=annotations, images=storage.join(url, "images")),
        holdouts={TEST: HoldoutRest()}, scored=(TEST,),
        tasks={"association": task}, queries=task.queries(_cues(annotations)),
        main=Main(split=TEST, task="association", metrics=("jaccard_10-12",)),
    )  # fmt: skip


def _cues(annotations: str) -> list[str]:
    """Every cue of WinoGAViL's table, once, sorted."""
    text = storage.read_bytes(annotations).decode("utf-8-sig", "replace")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "cue" not in (rows.fieldnames or ()):
        raise RecipeError(f"{annotations}: no column 'cue'; give the authors' own file")
    return sorted({row["cue"] for row in rows if row["cue"]})
