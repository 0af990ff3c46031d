"""The built-in suites, each a module with `suite(data)`; `data` is what the command's `--data` names."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple

from data import storage
from data.errors import RecipeError, nearest
from pipelines.suites.spec import Suite, parse_suite

_FROM_YAML = (".yaml", ".yml", ".json")


class Listed(NamedTuple):
    """A built-in suite: its module, what it is, whether it reads `--data`, and the group of sets it takes."""

    module: str
    title: str
    needs_data: bool = True
    group: str = ""


SUITES = {
    "bundled": Listed("bundled", "emoji, textile photographs and digits that packages ship; no download", False),
    "datacomp": Listed("datacomp", "DataComp's tasks with its main metrics and averages"),
    "clip_benchmark": Listed("clip_benchmark", "every data set of CLIP_benchmark's layout in a folder"),
    "vtab": Listed("clip_benchmark", "CLIP_benchmark's VTAB sets", group="vtab"),
    "vtab_plus": Listed("clip_benchmark", "CLIP_benchmark's VTAB+ sets", group="vtab_plus"),
    "retrieval": Listed("clip_benchmark", "Flickr8k, Flickr30k, MS COCO", group="retrieval"),
    "robustness": Listed("clip_benchmark", "ImageNet's natural shifts beside ImageNet", group="robustness"),
    "composition": Listed("composition", "SugarCrepe, ARO, Winoground, MMVP in their authors' own files"),
    "sugar_crepe": Listed("composition", "SugarCrepe's seven files", group="sugar_crepe"),
}


def load_suite(name_or_path: str, data: str | None = None) -> Suite:
    """Load a built-in suite by name, or a suite file.

    Raises:
        RecipeError: there is no such suite, it is wrong, or `data` is missing.
    """
    if name_or_path.endswith(_FROM_YAML) or "/" in name_or_path:
        return _read(name_or_path)
    name = name_or_path.replace("-", "_")
    if name not in SUITES:
        raise RecipeError(
            f"--suite {name_or_path!r}: no such suite{nearest(name, SUITES)}; have {', '.join(SUITES)}, or give a .yaml"
        )
    listed = SUITES[name]
    if listed.needs_data and data is None:
        raise RecipeError(f"--data: missing; suite {name!r} reads data sets: give the folder that holds them")
    if not listed.needs_data and data is not None:
        raise RecipeError(f"--data {data}: suite {name!r} brings its own pairs; leave --data out")
    make: Callable[..., Suite] = import_module(f"pipelines.suites.{listed.module}").suite
    if listed.group:
        make = partial(make, group=listed.group)
    return make(data) if listed.needs_data else make()


def _read(path: str) -> Suite:
    try:
        text = storage.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise RecipeError(f"--suite {path}: cannot read: {reason}; `clipworks suite list` has built-in ones") from error
    return parse_suite(text, path)
