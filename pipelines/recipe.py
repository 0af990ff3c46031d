"""A recipe: the whole plan as one frozen, typed tree, equal to its YAML, and refused in one line where it is wrong."""

import importlib
import json
import math
import pkgutil
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from data import storage
from data.curation.specs import CurateSpec, DedupSpec, InspectSpec, MatchSpec
from data.errors import RecipeError, nearest
from data.spec import Spec
from data.specs import IngestSpec, RewriteSpec, SplitSpec
from evaluation.specs import EvaluateSpec, ReportSpec
from pipelines import checks
from pipelines.explain import explain, shown
from pipelines.yaml_text import parse_yaml, to_yaml
from training.specs import EmbedSpec, ModelSpec, TrainSpec

Stage = Annotated[
    IngestSpec
    | SplitSpec
    | InspectSpec
    | DedupSpec
    | MatchSpec
    | CurateSpec
    | RewriteSpec
    | ModelSpec
    | TrainSpec
    | EmbedSpec
    | EvaluateSpec
    | ReportSpec,
    Field(discriminator="kind"),
]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_SUFFIXES = (".yaml", ".yml", ".json")


class Recipe(Spec):
    """Every stage of a run with every number that matters, and what to expect of it."""

    name: str
    title: str
    purpose: str
    hardware: str = Field(description="the machine that `minutes` holds for")
    minutes: float | None = Field(default=None, gt=0, description="expected duration of a first run")
    expect: str = Field(description="what the run should show")
    stages: dict[str, Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for where, name in [("name", self.name), *(("stages", name) for name in self.stages)]:
            if not NAME.fullmatch(name):
                raise RecipeError(f"{where}: {name!r}: use at most 40 of a-z, 0-9, _ and -, a letter or digit first")
        checks.check_references(self.stages)
        checks.order(self.stages)
        checks.check_stages(self.stages)
        return self

    def order(self) -> list[str]:
        """Names of the stages, parents first, otherwise in the recipe's own order."""
        return checks.order(self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The recipe as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def to_yaml(self) -> str:
        """The recipe as YAML, headed by its purpose and the command that runs it."""
        header = [self.title, self.purpose, f"Hardware: {self.hardware}.", f"Expect: {self.expect}", "",
                  "Run it:   clipworks run FILE.yaml", "Try one:  clipworks run FILE.yaml --set a.b=value"]  # fmt: skip
        lines = [line for text in header for line in (text.splitlines() or [""])]
        return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n" + to_yaml(self.to_dict())


def parse_recipe(value: Any, origin: str = "") -> Recipe:
    """Make a recipe from plain values.

    Raises:
        RecipeError: one line with the path, the value and the nearest right name.
    """
    prefix = f"{origin}: " if origin else ""
    if not isinstance(value, dict):
        raise RecipeError(
            f"{prefix}{shown(value)}: a recipe is a mapping with name, title, purpose, hardware, expect, stages"
        )
    try:
        _refuse_non_finite(value, "")
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise RecipeError(prefix + explain(error, Recipe, value)) from error
    except RecipeError as error:
        raise RecipeError(f"{prefix}{error}") from error


def _refuse_non_finite(value: Any, path: str) -> None:
    """An infinite or undefined number passes `gt=0` and cannot be part of an identity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{path}: {value}: give a finite number")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        _refuse_non_finite(child, f"{path}.{key}" if path else str(key))


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML or JSON file."""
    try:
        text = storage.read_text(str(path))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file; `clipworks recipe list` names the built-in recipes") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not text (byte {error.start} is not UTF-8); give a YAML or JSON file") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot read: {error.strerror or error}; give a YAML or JSON file") from error
    return parse_recipe(parse_yaml(text, str(path)), str(path))


def recipe_names() -> list[str]:
    """Names of the built-in recipes: the modules of `pipelines/recipes`."""
    from pipelines import recipes

    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__) if not module.name.startswith("_"))


def load_recipe(name_or_path: str) -> Recipe:
    """Load a built-in recipe by name, or a recipe file.

    Raises:
        RecipeError: there is no such recipe, or it is wrong.
    """
    if name_or_path.endswith(_SUFFIXES) or "/" in name_or_path:
        return read_recipe(name_or_path)
    name, names = name_or_path.replace("-", "_"), recipe_names()
    if name not in names:
        raise RecipeError(
            f"{name_or_path!r}: no such recipe{nearest(name, names)}; have {', '.join(names)}, or give a .yaml file"
        )
    made = importlib.import_module(f"pipelines.recipes.{name}").recipe()
    assert isinstance(made, Recipe)
    return made
