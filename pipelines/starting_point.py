"""`--set init=...` and `--set pairs=...`: a recipe from a checkpoint of the user's own, on shards of their own."""

from collections.abc import Mapping
from typing import Any

from data import storage
from data.errors import RecipeError, UserError
from data.specs import ShardPool
from data.stage import StageSpec
from pipelines.checkpoints import WAYS, read_checkpoint
from pipelines.explain import shown
from pipelines.recipe import load_recipe, parse_recipe, recipe_names
from pipelines.unread import unread_without, without_labels
from pipelines.yaml_text import parse_yaml

MAKES = {"init": "checkpoint", "pairs": "shard_set"}  # stage that has a short name -> what it must make

_YAML = ("{", '"', "'")


def with_start(tree: dict[str, Any], name: str, text: str, root: str) -> dict[str, Any]:
    """The recipe (plain values) with its stage `init` or `pairs` replaced, without what only the old one needed.

    `init`: a checkpoint's folder, ARCH, ARCH:TAG, ARCH:FILE.safetensors, a fingerprint, or a mapping of a model stage's
    fields. `pairs`: a folder or s3:// prefix of tars, or a mapping that is a pool.

    Raises:
        RecipeError: the recipe has no such stage, or the value names nothing; one line with the fix.
    """
    stages = parse_recipe(tree).stages
    _require_stage(stages, name)
    # only braces and quotes are YAML: 64 digits would be a number, and `ARCH:` a mapping
    given = parse_yaml(text, f"--set {name}={text}") if text.lstrip().startswith(_YAML) else text.strip()
    made = _model(given, root) if name == "init" else _ingest(given, tree["stages"][name])
    return {**tree, "stages": _kept({**tree["stages"], name: made}, unread_without(stages, name))}


def _kept(stages: dict[str, Any], gone: set[str]) -> dict[str, Any]:
    """The stages (plain values) that stay; reports without the labels of those that do not."""
    kept = {name: stage for name, stage in stages.items() if name not in gone}
    made = {name: without_labels(s, gone) if s["kind"] == "report" else s for name, s in kept.items()}
    return {name: stage for name, stage in made.items() if stage is not None}


def _require_stage(stages: Mapping[str, StageSpec], name: str) -> None:
    makes = MAKES[name]
    if name not in stages:
        have = [recipe for recipe in recipe_names() if name in load_recipe(recipe).stages]
        others = [other for other, stage in stages.items() if makes == stage.MAKES]
        raise RecipeError(
            f"--set {name}: this recipe has no stage {name!r} (stages that make a {makes}: "
            f"{', '.join(others) or 'none'}); recipes that have one: {', '.join(have)}"
        )
    if makes != stages[name].MAKES:
        raise RecipeError(
            f"--set {name}: stage {name!r} of this recipe makes a {stages[name].MAKES}; set stages.{name}.FIELD instead"
        )


def _model(given: str | dict[str, Any], root: str) -> dict[str, Any]:
    """A model stage as plain values."""
    if isinstance(given, dict):
        return _with_kind(given)
    if not given:
        raise RecipeError(f"--set init=: no checkpoint; give {WAYS}, or ARCH for random weights")
    try:
        return read_checkpoint(given, root, may_be_random=True).spec.model_dump(mode="json")
    except UserError as error:
        raise type(error)(f"--set init: {error}") from error


def _with_kind(given: dict[str, Any]) -> dict[str, Any]:
    kind = given.get("kind", "model")
    if kind != "model":
        raise RecipeError(f"--set init: kind {shown(kind)}: a start is a stage of kind 'model'; leave kind out")
    return {"kind": "model", **given}


def _ingest(given: str | dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """An ingest stage as plain values; of one that stood there only the pool changes."""
    pool = ShardPool(url=_shards_url(given)).model_dump(mode="json") if isinstance(given, str) else given
    return {**old, "pool": pool} if old["kind"] == "ingest" else {"kind": "ingest", "pool": pool}


def _shards_url(word: str) -> str:
    url = storage.normalise(word) if word else ""
    if not url or (storage.is_local(url) and not storage.is_folder(url)):
        raise RecipeError(
            f"--set pairs={word}: no such folder; give the folder or s3:// prefix that holds the .tar files, or a "
            "mapping that is a pool, e.g. {source: folder, images: my/pictures, captions: my/captions.csv}"
        )
    return url
