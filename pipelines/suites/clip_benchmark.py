"""CLIP_benchmark's data sets (`wds_*` folders, or a list of addresses), whole or one of its collections.

Each is scored by its type: zero-shot classification, mAP, retrieval; linear probe and k-NN where it has `train` shards.
"""

from collections.abc import Mapping

from data import storage
from data.errors import RecipeError
from data.pools.benchmark import read_benchmark
from evaluation.specs import NaturalShift
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
from pipelines.suites.spec import Suite, SuiteSet

_VTAB = tuple(
    f"vtab/{name}" for name in (
        "caltech101", "cifar100", "clevr_count_all", "clevr_closest_object_distance", "diabetic_retinopathy", "dmlab",
        "dsprites_label_orientation", "dsprites_label_x_position", "dtd", "eurosat", "kitti_closest_vehicle_distance",
        "flowers", "pets", "pcam", "resisc45", "smallnorb_label_azimuth", "smallnorb_label_elevation", "svhn",
    )
)  # fmt: skip
_SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet")
GROUPS: dict[str, tuple[str, ...]] = {
    "vtab": (*_VTAB, "sun397"),
    "vtab_plus": (
        "imagenet1k", *_SHIFTS, "fer2013", "voc2007", "voc2007_multilabel", "sun397", "cars", "fgvc_aircraft", "mnist",
        "stl10", "gtsrb", "country211", "renderedsst2", "vtab/cifar10", *_VTAB,
    ),
    "retrieval": ("mscoco_captions", "flickr8k", "flickr30k"),
    "robustness": ("imagenet1k", *_SHIFTS),
}  # fmt: skip
_RECALL = ("caltech101", "fgvc_aircraft", "flowers", "pets")  # mean per-class recall, as their authors report
_LISTS = (".txt",)
_IMAGENET = "imagenet1k"


def suite(data: str, group: str = "") -> Suite:
    """All data sets below a folder or in a list of addresses, or those of one collection.

    Raises:
        RecipeError: none is there.
        ShardError: a data set's text files are wrong.
    """
    folders = _listed(data) if data.endswith(_LISTS) else folders_of(open_root(data))
    found, skipped = _all(folders) if not group else _group(GROUPS[group], folders)
    if not found:
        raise RecipeError(
            f"--data {data}: no data set of {group or 'CLIP_benchmark'} here; give the folder of wds_* folders, "
            "or a .txt file with an address a line"
        )
    sets = {name: _set(name, one) for name, one in found.items()}
    if _IMAGENET in sets:
        sets = {name: _beside_imagenet(name, one, found) for name, one in sets.items()}
    of = f" of {len(GROUPS[group])}" if group else ""
    return Suite(
        name=group or "clip_benchmark",
        title=f"CLIP_benchmark{f', {group}' if group else ''}, {len(sets)}{of} data sets",
        purpose="CLIP_benchmark's data sets, each with the metrics of its type.",
        sets=sets,
        averages={group or "all data sets": tuple(sets)},
        skipped=skipped,
    )


def _listed(data: str) -> dict[str, str]:
    try:
        lines = storage.read_text(data).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--data {data}: cannot read; give a text file with an address a line") from error
    return {_folder_name(line.strip()): line.strip() for line in lines if line.strip()}


def _folder_name(url: str) -> str:
    """Last part of an address, without what a hub adds for a branch."""
    return url.rstrip("/").removesuffix("/tree/main").removesuffix("/resolve/main").rpartition("/")[2]


def _all(folders: dict[str, str]) -> tuple[dict[str, Found], dict[str, str]]:
    found: dict[str, Found] = {}
    for name, url in folders.items():
        if storage.is_web(url) or _has_shards(url):
            found[set_name(name)] = Found(url, read_benchmark(url))
    return found, {}


def _has_shards(url: str) -> bool:
    return any(storage.exists(storage.join(url, split, "nshards.txt")) for split in storage.list_folders(url))


def _group(keys: tuple[str, ...], folders: dict[str, str]) -> tuple[dict[str, Found], dict[str, str]]:
    found: dict[str, Found] = {}
    skipped: dict[str, str] = {}
    for key in keys:
        one, name = find(key, folders), set_name(key.replace("/", "-"))
        if one is None:
            skipped[name] = f"no folder wds_{key.replace('/', '-')}"
        else:
            found[name] = one
    return found, skipped


def _set(name: str, found: Found) -> SuiteSet:
    metric = "mean_per_class_recall" if name.rpartition("-")[2] in _RECALL else None
    return benchmark_set(found, metric, probes=True)


def _beside_imagenet(name: str, one: SuiteSet, found: Mapping[str, Found]) -> SuiteSet:
    """Also the drop from ImageNet itself, where all of a set's classes are classes of ImageNet."""
    ours, theirs = found[name], found[_IMAGENET]
    if name not in _SHIFTS or not set(ours.benchmark.classes) <= set(theirs.benchmark.classes):
        return one
    # numbers mean the same only in the same list; names may repeat in it
    field = "cls" if ours.benchmark.classes == theirs.benchmark.classes else "class"
    shift = NaturalShift(prompts=class_prompts(ours, field), reference=f"{_IMAGENET}/{TEST}")
    return one.model_copy(update={"tasks": {**one.tasks, "shift": shift}})
