"""What commands share: which recipe, what is changed in it, where to run, and the console to say it on."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from data import storage
from data.errors import RecipeError
from data.place import Place
from pipelines.explain import explain
from pipelines.overrides import override
from pipelines.recipe import Recipe, load_recipe
from pipelines.yaml_text import parse_yaml

if TYPE_CHECKING:
    from rich.console import Console

Add = Callable[..., argparse.ArgumentParser]
_FILE_WIDTH = 160  # of output that no terminal limits


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """RECIPE, `--set` and where to run."""
    parser.add_argument("recipe", metavar="RECIPE", help="built-in name, or a .yaml or .json file")
    set_option(parser)
    place_options(parser, "default: the place's, else `runs`")


def place_options(parser: argparse.ArgumentParser, default_root: str) -> None:
    """`--place` and `--root`."""
    parser.add_argument(
        "--place", metavar="FILE", help="YAML file that says where to run (data/place.py has the fields)"
    )
    parser.add_argument("--root", help=f"folder or s3:// prefix of all artifacts; {default_root}")


def set_option(parser: argparse.ArgumentParser) -> None:
    """`--set`."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE",
        help="change one value; repeatable. init=CHECKPOINT (a folder, ARCH, ARCH:TAG, ARCH:FILE.safetensors or a "
        "fingerprint) starts from it and leaves out the stages that only the old start needed; pairs=FOLDER (or s3://) "
        "of tars takes your own pairs",
    )  # fmt: skip


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe with its `--set` values."""
    return override(load_recipe(options.recipe), options.set, _root(options))


def _root(options: argparse.Namespace) -> str:
    """Where a checkpoint is looked for that `--set init=` names; a cluster's root is not looked into."""
    return read_place(options).root if hasattr(options, "place") else Place().root


def read_place(options: argparse.Namespace) -> Place:
    """The place file's values, `--root` above them."""
    value: Any = parse_yaml(read_text(options.place), options.place) or {} if options.place else {}
    if not isinstance(value, dict):
        raise RecipeError(f"--place {options.place}: a place is a mapping, e.g. `root: runs`")
    return parse_place({**value, **({"root": options.root} if options.root else {})}, options.place or "--root")


def parse_place(value: dict[str, Any], origin: str) -> Place:
    """A place from plain values; RecipeError names the field and where it comes from."""
    try:
        return Place.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error, Place, value)}") from error


def read_text(path: str) -> str:
    """The text of a file that the user named."""
    try:
        return storage.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise RecipeError(f"{path}: cannot read: {reason}; give a YAML or JSON file") from error


def make_console() -> "Console":
    """A console that keeps to NO_COLOR and to what the output is."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)
